"""The comparison with llm-compressor without its environment: Barber's side as a process, the tables, the refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from barber.bundled import MODEL_DIR
from barber.config import PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.models.decoder import DecoderView
from barber.models.loading import load
from barber.pruning.prune import prune
from benchmarks.peers import CASE, OURS, THEIRS, count, tables

pytestmark = pytest.mark.process

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def process(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", BENCHMARKS / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_run_of_barber_writes_the_weights_that_prune_makes(tmp_path):
    loaded = load("storyteller", "cpu", "bfloat16")
    tokens = torch.randint(0, loaded.model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    done = process(
        "peer_run.py", OURS, MODEL_DIR, tmp_path / "tokens.npy", "bfloat16", "wanda", "2:4", torch.get_num_threads(),
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert result["seconds"] > 0
    assert result["versions"]["torch"] == torch.__version__
    sparsity = Sparsity.parse("2:4")
    for _ in prune(loaded.model, CalibrationSet(tokens, "tokens", 0), PruneConfig(sparsity, "wanda", barber=False)):
        pass
    written = load_file(tmp_path / "model.safetensors")
    for name, value in loaded.model.named_parameters():
        assert torch.equal(written[name], value), name
    weights = [weight.view for layer in DecoderView(loaded.model).layers for weight in layer.weights]
    counted = count(weights, sparsity)
    assert counted["groups"] == 1
    assert 2 * counted["zeros"] >= counted["weights"] == sum(weight.numel() for weight in weights)


def test_groups_with_too_few_zeros_are_counted():
    weight = torch.tensor([[0.0, 0, 1, 1, 0, 0, 0, 1], [1, 2, 3, 0, 0, 1, 0, 1]])
    assert count([weight, weight[:1]], Sparsity.parse("2:4")) == {"weights": 24, "zeros": 13, "groups": 5 / 6}
    assert count([weight], Sparsity.parse("50%")) == {"weights": 16, "zeros": 8}


def test_the_ratios_are_of_medians():
    runs = {OURS: ([2.0, 9.0, 1.0], 10.0, 50), THEIRS: ([8.0, 6.0, 7.0], 11.0, 51)}
    frame = pd.DataFrame(
        [
            ("float32", "wanda", "50%", tool, wall, wall / 2, 2**30, perplexity, 100, zeros)
            for tool, (walls, perplexity, zeros) in runs.items()
            for wall in walls
        ],
        columns=[*CASE, "tool", "seconds", "processor_seconds", "peak_bytes", "perplexity", "weights", "zeros"],
    )
    cost, quality = (text.splitlines()[-1].strip("| ").split(" | ") for text in tables(frame).split("\n\n"))
    case = ["float32", "wanda", "50%"]
    assert cost == [*case, "3", "2.0 s, 1.0 s", "7.0 s, 3.5 s", "3.5", "3.5", "1.00 GiB", "1.00 GiB"]
    assert quality == [*case, "10.00", "11.00", "50.0000%", "51.0000%"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "has no environment with llmcompressor=="),
        (["--calibration", "no-such-file"], "has no environment with llmcompressor=="),
    ],
)
def test_a_missing_environment_is_refused_first(tmp_path, change, message):
    given = ["--model", "storyteller", "--calibration", "storyteller", "--evaluation", "storyteller"]
    refused = process("peers.py", *given, "--environment", tmp_path / "absent", *change)
    assert refused.returncode == 2
    assert message in refused.stderr.splitlines()[-1]
    assert "add --install" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "absent").exists()
