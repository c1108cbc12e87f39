"""Processes that run out of memory: they continue with smaller batches, or end with a user error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from barber.events import Notice, RunFinished
from barber.runs.directory import RunDirectory
from tests.support.jobs import ROOT, equal_share, flags, recorded, save_inputs
from tests.support.tiny import llama

# The limit is relative to the memory of the process after all imports. argv: MiB, then the command line.
LIMITED = """
import resource, sys
import psutil, torch
import barber.jobs.job, transformers.models.llama.modeling_llama
from barber.cli import main

held = psutil.Process().memory_info().vms
torch.set_num_threads(1)
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[1]) * 2**20,) * 2)
sys.exit(main(sys.argv[2:]))
"""
PRUNE = ["--prune_method", "wanda", "--sparsity_ratio", "0.5", "--prune_barber", "--prune_granularity", "block",
         "--threshold", "0.3"]  # fmt: skip
SAMPLES, SEQLEN, ENOUGH, TOO_LITTLE = 16, 512, 200, 50

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A wide MLP: 4 MiB for each sequence in each of its activations."""
    model = llama(intermediate_size=2048, num_hidden_layers=2, max_position_embeddings=SEQLEN)
    return save_inputs(tmp_path_factory.mktemp("wide"), model, rows=SAMPLES, seqlen=SEQLEN)


def run(workspace, mebibytes: int, *more: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-c",
        LIMITED,
        str(mebibytes),
        *flags(workspace, *PRUNE, *more, samples=SAMPLES, seqlen=SEQLEN),
    ]
    # With a fixed threshold, freed memory returns to the system, so the limit applies to memory in use.
    own = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command[command.index("--eval_windows") + 1] = "1"
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "more",
    [[], ["--order", "one-pass"], ["--stream", "--target", "dense-stream"], ["--allocation", "saliency"]],
    ids=" ".join,
)
def test_smaller_batches_give_the_same_masks(workspace, more, tmp_path):
    roomy = run(workspace, 0, *more, "--run_dir", str(tmp_path / "roomy"))
    tight = run(workspace, ENOUGH, *more, "--run_dir", str(tmp_path / "tight"))
    assert (roomy.returncode, tight.returncode) == (0, 0), tight.stderr
    assert "halved" not in roomy.stdout + roomy.stderr
    assert "Memory ran out, so batches were halved" in tight.stdout
    events = [RunDirectory(tmp_path / name).events() for name in ("roomy", "tight")]
    sizes = [int(e.message.split()[-2]) for e in events[1] if isinstance(e, Notice) and "halved" in e.message]
    assert all(size in (1, 2, 4) for size in sizes)
    (one,), (other,) = ([e for e in stream if isinstance(e, RunFinished)] for stream in events)
    assert one.zeros == other.zeros == one.weights / 2
    masks = [recorded(tmp_path / name) for name in ("roomy", "tight")]
    assert equal_share(*masks) >= 0.999
    for layer, name, stage in masks[0]:
        if stage == "initial":
            assert torch.equal(masks[0][layer, name, stage].sum(1), masks[1][layer, name, stage].sum(1))


@pytest.mark.parametrize("more", [[], ["--order", "one-pass"]], ids=" ".join)
def test_no_memory_for_one_sequence_is_a_user_error(workspace, more):
    result = run(workspace, TOO_LITTLE, *more)
    assert result.returncode == 2, result.stderr
    message = result.stderr.strip().splitlines()[-1].split("\r")[-1]
    assert message.startswith("error: ")
    assert f"does not fit into this device's memory with {SAMPLES} sequences" in message
    assert "Traceback" not in result.stderr
    assert "are pruned" not in result.stdout  # what was measured before is printed, but not as the end of a run
