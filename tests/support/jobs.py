"""Jobs in tests: a small model and tokens on disk, and the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from barber.config import PruneConfig, Sparsity
from barber.events import LayerInitialised, Stage, SubBlockRebuilt
from barber.job_spec import JobSpec
from barber.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
STAGE_OF = {LayerInitialised: Stage.INITIAL, SubBlockRebuilt: Stage.REBUILT}

Masks = dict[tuple, Tensor]  # (layer, name, stage) -> mask


def save_inputs(folder: Path, model, rows: int = 64, seqlen: int = 24) -> Path:
    """A model folder, calibration.npy and evaluation.npy of (rows, seqlen) random tokens."""
    model.save_pretrained(folder / "model")
    size = model.config.vocab_size
    for seed, name in enumerate(("calibration", "evaluation")):
        tokens = torch.randint(3, size, (rows, seqlen), generator=torch.Generator().manual_seed(seed))
        np.save(folder / f"{name}.npy", tokens.numpy())
    return folder


def job(workspace: Path, pattern: str = "50%", samples: int = 8, seqlen: int = 24, **settings) -> JobSpec:
    """A job on the inputs in a folder. settings: of the PruneConfig."""
    return JobSpec(
        model=str(workspace / "model"),
        prune=PruneConfig(Sparsity.parse(pattern), **settings),
        calibration=str(workspace / "calibration.npy"),
        evaluation=(str(workspace / "evaluation.npy"),),
        nsamples=samples,
        seqlen=seqlen,
        eval_windows=8,
        device="cpu",
    )


def flags(workspace: Path, *more: str, samples: int = 8, seqlen: int = 24) -> list[str]:
    """The command line of such a job."""
    return [
        "--model", str(workspace / "model"), "--calibration", str(workspace / "calibration.npy"),
        "--eval_data", str(workspace / "evaluation.npy"), "--eval_windows", "8", "--device", "cpu",
        "--nsamples", str(samples), "--seqlen", str(seqlen), *more,
    ]  # fmt: skip


def start(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
    """main.py as a process with one thread. before: arguments of python in front of main.py."""
    command = [sys.executable, *before, str(ROOT / "main.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run main.py to its end."""
    process = start(*arguments, before=before)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def masks_in_events(events: list) -> Masks:
    """The masks in events, by (layer, name, stage)."""
    found = [event for event in events if type(event) in STAGE_OF]
    return {(e.layer, name, STAGE_OF[type(e)]): mask for e in found for name, mask in e.masks.items()}


def values_in_events(events: list) -> dict[tuple, Tensor]:
    """The updated weights in events, by the same keys."""
    found = [event for event in events if type(event) in STAGE_OF]
    return {(e.layer, name, STAGE_OF[type(e)]): value for e in found for name, value in e.weights.items()}


def recorded(path: Path, part: str = "masks") -> Masks:
    """The masks (or the "weights") in a run directory."""
    directory = RunDirectory(path)
    return {
        (layer, name, stage): tensor
        for layer in directory.layers()
        for stage in STAGE_OF.values()
        for name, tensor in getattr(directory, part)(layer, stage).items()
    }


def same(one: dict[tuple, Tensor], other: dict[tuple, Tensor]) -> bool:
    """Whether the tensors are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def equal_share(one: Masks, other: Masks) -> float:
    """Share of the mask bits that are equal."""
    assert one.keys() == other.keys()
    return sum(int((one[k] == other[k]).sum()) for k in one) / sum(mask.numel() for mask in one.values())
