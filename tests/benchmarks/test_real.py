"""The tournament on a real model, here the bundled one: its CSV goes on, and the pages have its numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from barber.bundled import MODEL_DIR
from benchmarks.real_tables import ROOT, pages, read, replaced

pytestmark = pytest.mark.process

KEYS = ["pattern", "method", "rebuild", "refit", "seed"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workspace")


def tournament(workspace: Path, **more: str) -> subprocess.CompletedProcess:
    options = {
        "model": str(MODEL_DIR), "calibration": "storyteller", "evaluation": "storyteller", "sequences": "4",
        "windows": "8", "seqlen": "64", "device": "cpu", "methods": "magnitude,sparsegpt", "patterns": "2:4",
        "rebuilds": "block 0.1", "refits": "none", "runs": "runs", "csv": "real.csv",
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in (options | more).items()]
    command = [sys.executable, ROOT / "benchmarks" / "real.py", *words]
    return subprocess.run(command, cwd=workspace, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(workspace) -> tuple[str, pd.DataFrame]:
    """The CSV after the first call, and the rows after a second one that adds to it."""
    first = tournament(workspace)
    assert first.returncode == 0, first.stderr
    before = (workspace / "real.csv").read_text()
    second = tournament(workspace, rebuilds="block 0.1,none", refits="none,refit", seeds="0,1", methods="sparsegpt")
    assert second.returncode == 0, second.stderr
    assert (workspace / "real.csv").read_text().startswith(before), "what ran is not run again"
    return before, read(workspace / "real.csv")


def test_every_job_is_a_line_once(made):
    before, frame = made
    assert len(before.splitlines()) == 1 + 2
    assert len(frame) == 1 + 2 * 2 * 2
    assert not frame.duplicated(KEYS).any()
    assert (frame["zeros"] * 2 == frame["weights"]).all()
    assert frame["dense"].nunique() == 1
    for row in frame.itertuples():
        assert row.perplexity_low < row.perplexity < row.perplexity_high
        share = math.log(row.initial / row.perplexity) / math.log(row.initial / row.dense)
        assert math.isclose(row.gap_recovered, share, abs_tol=1e-9)
        if row.rebuild == "none" and row.refit == "none":
            assert (row.perplexity, row.swaps) == (row.initial, 0)
        else:
            assert row.perplexity != row.initial
    assert (frame["model"] == "storyteller").all(), "no path of this machine"
    assert not frame.astype(str).apply(lambda column: column.str.contains("/")).to_numpy().any()


def test_a_mistake_is_a_sentence(workspace):
    result = tournament(workspace, evaluation="nothing.npy", csv="other.csv")
    assert result.returncode == 2
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("change", [{"windows": "4"}, {"sequences": "8"}])
def test_rows_of_other_data_do_not_get_into_the_same_csv(workspace, change):
    before = (workspace / "real.csv").read_text()
    result = tournament(workspace, **change, seeds="2")
    assert result.returncode == 2
    assert "holds runs of this model on other data" in result.stderr
    assert (workspace / "real.csv").read_text() == before


def test_the_pages_have_the_numbers(made):
    _, frame = made
    texts = pages(frame)
    assert {path.name for path in texts} == {"quality.md", "README.md"}
    magnitude = frame[frame["method"] == "magnitude"].iloc[0]
    sparsegpt = frame[(frame["method"] == "sparsegpt") & (frame["rebuild"] == "block 0.1") & (frame["refit"] == "none")]
    mean, deviation = sparsegpt["perplexity"].mean(), sparsegpt["perplexity"].std()
    for text in texts.values():
        lines = [line for line in text.splitlines() if line.startswith("| 2:4 | magnitude |")]
        assert f"| {magnitude['perplexity']:.2f} ({magnitude['gap_recovered']:.0%}) | - |" in lines[0]
        assert f"{mean:.2f} ± {deviation:.2f}" in text
    page = replaced((ROOT / "README.md").read_text("utf-8"), "THE TABLE")
    assert page.count("THE TABLE") == 1


def test_the_tables_in_the_pages_are_those_of_the_csv():
    for path, part in pages(read()).items():
        text = path.read_text("utf-8")
        assert replaced(text, part) == text, f"run benchmarks/real_tables.py: {path.name} is not up to date"
