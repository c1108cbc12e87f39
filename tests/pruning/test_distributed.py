"""Several processes that share a run: the masks of a single process, one output, and an error if one process ends."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from barber.errors import UserError
from barber.events import LayerInitialised, RunFinished, SubBlockRebuilt
from barber.pruning.distributed import Ranks
from barber.runs.directory import RunDirectory
from tests.support.families import ROUTED
from tests.support.jobs import equal_share, flags, recorded, run, save_inputs, start
from tests.support.tiny import llama

pytestmark = pytest.mark.process

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
BASE = ["--sparsity_ratio", "0.5", "--prune_barber"]
FIXED = ["--prune_method", "wanda", "--prune_granularity", "block", "--threshold", "0.3"]
WAYS = {
    "fixed": FIXED,
    "auto": ["--prune_method", "magnitude", "--threshold", "auto", "--rounds", "2"],
    "sparsegpt": ["--prune_method", "sparsegpt", "--threshold", "0.3"],
    "one-swap": ["--prune_method", "wanda", "--refiner", "one-swap"],
    "reconstruct": [*FIXED, "--reconstruct"],
    "streamed": [*FIXED, "--stream"],
    "one-pass": [*FIXED, "--order", "one-pass"],
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=2), rows=32)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_masks_of_one(way, workspace, tmp_path):
    """The refit has batches of other sequences, so only its guarantees are the same."""
    one, two = (tmp_path / name for name in ("one", "two"))
    single = run(*flags(workspace, *BASE, *WAYS[way], "--run_dir", str(one)))
    shared = run(*flags(workspace, *BASE, *WAYS[way], "--run_dir", str(two)), before=TWO)
    assert (single.returncode, shared.returncode) == (0, 0), shared.stderr
    assert shared.stdout.count("prunable weights are pruned") == 1
    assert shared.stdout.count("evaluation.npy") == single.stdout.count("evaluation.npy")
    ends = [[e for e in RunDirectory(path).events() if isinstance(e, RunFinished)] for path in (one, two)]
    assert [(e.weights, e.zeros) for e in ends[0]] == [(e.weights, e.zeros) for e in ends[1]]
    assert all(math.isfinite(e.error_after) for e in RunDirectory(two).events() if isinstance(e, SubBlockRebuilt))
    if way != "reconstruct":
        share = equal_share(recorded(one), recorded(two))
        assert share == 1 if way in ("fixed", "streamed") else share >= 0.9999
    assert [row["stage"] for row in json.loads((two / "perplexity.json").read_text())] == [
        "dense",
        "initial",
        "rebuilt",
    ]


@pytest.mark.parametrize("way", ["fixed", "sparsegpt", "one-swap"])
def test_processes_whose_tokens_reach_different_experts(way, tmp_path):
    """Of two sequences of six tokens, one on each process, each reaches other experts of eight."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **ROUTED | {"num_local_experts": 8}))
    workspace = save_inputs(tmp_path, model, rows=8, seqlen=6)
    one, two = (tmp_path / name for name in ("one", "two"))
    size = {"samples": 2, "seqlen": 6}
    single = run(*flags(workspace, *BASE, *WAYS[way], "--run_dir", str(one), **size))
    shared = run(*flags(workspace, *BASE, *WAYS[way], "--run_dir", str(two), **size), before=TWO)
    assert (single.returncode, shared.returncode) == (0, 0), shared.stderr
    starved = [[e.starved for e in RunDirectory(p).events() if isinstance(e, LayerInitialised)] for p in (one, two)]
    assert starved[0] == starved[1]
    assert any(starved[0])
    assert equal_share(recorded(one), recorded(two)) >= 0.9999


def test_sequences_that_cannot_be_shared(workspace):
    result = run(*flags(workspace, *BASE, *FIXED, samples=7), before=TWO)
    assert result.returncode != 0
    assert "error: 7 calibration sequences cannot be shared evenly by 2 processes" in result.stderr
    assert result.stdout == ""


def wait_for(path: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until so many events are recorded."""
    while not (path / "events.jsonl").exists() or (path / "events.jsonl").read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize("again", [(), TWO], ids=["alone", "together"])
def test_a_process_that_is_killed_ends_the_run(again, workspace, tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "run"
    assert run(*flags(workspace, *BASE, *FIXED, "--run_dir", str(whole), samples=32)).returncode == 0
    process = start(*flags(workspace, *BASE, *FIXED, "--run_dir", str(path), samples=32), before=TWO)
    wait_for(path, 3, process)
    ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children(recursive=True)}
    ranks["1"].send_signal(signal.SIGKILL)
    _, message = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Another process of this run has ended" in message
    result = run("--resume", str(path), before=again)
    assert result.returncode == 0, result.stderr
    assert equal_share(recorded(path), recorded(whole)) == 1


def test_processes_with_different_data_are_refused():
    """Both processes report that their data differs."""
    code = (
        "import sys, torch\n"
        "from barber.errors import UserError\n"
        "from barber.pruning.distributed import join, leave\n"
        "ranks = join()\n"
        "ranks.same('alike', torch.device('cpu'))\n"
        "try:\n"
        "    ranks.same(f'data {ranks.rank}', torch.device('cpu'))\n"
        "except UserError as error:\n"
        "    sys.stderr.write(f'{ranks.rank}: {error}\\n')\n"
        "leave()\n"
    )
    command = [sys.executable, *TWO, "--no-python", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    for rank in (0, 1):
        assert f"{rank}: The processes of this run do not have the same model, data and settings" in result.stderr


def test_every_rank_gets_a_share():
    assert [Ranks(rank, 3).share(range(9)) for rank in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert Ranks().share([4, 5]) == [4, 5]
    with pytest.raises(UserError, match="8 calibration sequences cannot be shared evenly by 3 processes"):
        Ranks(0, 3).share(range(8))
