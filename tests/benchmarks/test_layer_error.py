"""The benchmark of layer errors as a process, on the bundled model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.layer_error import output_energy

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "benchmarks" / "layer_error.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_energy_is_that_of_the_outputs():
    weight, x = torch.randn(5, 9), torch.randn(40, 9)
    assert output_energy(weight, x.T @ x) == pytest.approx((x @ weight.T).square().sum().item(), rel=1e-5)


def test_methods_are_ordered_by_error(tmp_path):
    csv = tmp_path / "errors.csv"
    done = benchmark("--layers", "1", "--patterns", "50%,2:4", "--sequences", "8", "--seqlen", "64", "--csv", str(csv))
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(csv)
    assert (frame["seconds"] >= 0).all()
    assert set(frame["weight"].str.split(".").str[1]) == {"1"}
    assert set(frame["pattern"]) == {"50%", "2:4"}
    mean = frame.groupby(["pattern", "method"])["error"].mean().unstack()
    for better in (column for column in mean if column != "Wanda"):
        assert (mean[better] < mean["Wanda"]).all(), better
    assert (mean["ALPS"] < mean["SparseGPT"]).all()
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + mean.size
    assert [line.split(" | ")[3] for line in lines if "| Wanda |" in line] == ["1.000"] * 2


def test_an_unknown_layer_is_refused():
    done = benchmark("--layers", "99")
    assert done.returncode == 2
    assert "layers 0 to" in done.stderr
    assert "Traceback" not in done.stderr
