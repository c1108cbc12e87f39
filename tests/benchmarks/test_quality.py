"""The benchmark of the refiners as a process: its CSV and its tables agree, and their sums are right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.support import tiny

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SMALL = ["--methods=wanda,sparsegpt", "--patterns=2:4", "--seeds=0", "--sequences=4", "--windows=4", "--seqlen=64"]
TREATMENTS = ["published", "auto", "one-swap", "dsnot", "auto+re-fit"]  # of the group "default"
TITLES = ["published, best of 6", "auto", "one-swap", "dsnot", "auto + refit"]


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "benchmarks" / "quality.py", *SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """All tables of a text, each a list of rows by heading."""
    found = []
    for part in markdown.split("\n\n"):
        lines = [line.strip().strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
        if lines:
            head, _, *body = [[cell.strip() for cell in line] for line in lines]
            found.append([dict(zip(head, line, strict=True)) for line in body])
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, pd.DataFrame, str]:
    folder = tmp_path_factory.mktemp("quality")
    made = benchmark("--csv", str(folder / "runs.csv"), "--markdown", str(folder / "tables.md"))
    assert made.returncode == 0, made.stderr
    assert not made.stdout
    return folder, pd.read_csv(folder / "runs.csv"), (folder / "tables.md").read_text("utf-8")


def test_every_run_is_a_line_with_consistent_figures(done):
    _, frame, _ = done
    assert len(frame) == 2 * (1 + 6 + 4)
    assert set(frame["treatment"]) == {"initial", *TREATMENTS}
    assert frame["dense"].nunique() == 1
    assert (frame["zeros"] * 2 == frame["weights"]).all()
    for _, runs in frame.groupby("method"):
        start = runs[runs["treatment"] == "initial"].iloc[0]
        assert (runs["initial"] == start["perplexity"]).all()
        assert runs[runs["treatment"] == "published"]["setting"].nunique() == 6
        for run in runs.itertuples():
            expected = math.log(run.initial / run.perplexity) / math.log(run.initial / run.dense)
            assert run.gap_recovered == pytest.approx(expected, abs=1e-9)


def test_tables_agree_with_the_csv(done):
    _, frame, markdown = done
    values, shares, times, settings = tables(markdown)
    best = frame.loc[frame.groupby(["method", "treatment"])["perplexity"].idxmin()].set_index(["method", "treatment"])
    seconds = frame.groupby(["method", "treatment"])["cpu_seconds"]
    assert [row["initial mask"] for row in values] == ["wanda", "sparsegpt"]
    for value, share, time, setting in zip(values, shares, times, settings, strict=True):
        method = value["initial mask"]
        assert value["dense"] == f"{frame['dense'][0]:.3f}"
        assert value["initial"] == f"{best.loc[(method, 'initial'), 'perplexity']:.3f}"
        for name, title in zip(TREATMENTS, TITLES, strict=True):
            assert value[title] == f"{best.loc[(method, name), 'perplexity']:.3f}"
            assert share[title] == f"{best.loc[(method, name), 'gap_recovered']:.0%}"
            total = seconds.sum()[method, name]
            assert time[title] == f"{total:.1f} s ({total / seconds.mean()[method, 'published']:.1f}x)"
        assert setting["published, best of 6"] == best.loc[(method, "published"), "setting"]
    assert (
        f"4 sequences of 64 tokens of storyteller (calibration split), seeds 0 for {', '.join(TREATMENTS)}\n"
        in markdown
    )
    assert "4 windows of 64 tokens of storyteller (evaluation split)" in markdown


def test_sparsegpt_keeps_its_weights_under_the_refiners(done):
    """Settings that change no mask leave the perplexity unchanged, so the updated weights are kept."""
    _, frame, _ = done
    still = frame[(frame["method"] == "sparsegpt") & (frame["treatment"] == "published") & (frame["swaps"] == 0)]
    assert len(still)
    assert (still["perplexity"] == still["initial"]).all()


def test_runs_are_appended_to_the_csv_and_seeds_are_averaged(done, tmp_path):
    folder, before, _ = done
    csv = tmp_path / "runs.csv"
    csv.write_bytes((folder / "runs.csv").read_bytes())
    made = benchmark("--csv", str(csv), "--methods", "wanda", "--treatments", "one-swap", "--seeds", "0,1")
    assert made.returncode == 0, made.stderr
    assert len(made.stderr.split(", seed ")) - 1 == 2  # the runs of seed 0 exist
    after = pd.read_csv(csv)
    pd.testing.assert_frame_equal(after[: len(before)], before)
    runs = after[(after["method"] == "wanda") & (after["treatment"] == "one-swap")]["perplexity"]
    assert f"{runs.mean():.3f} ± {runs.std():.3f}" in made.stdout
    assert "0, 1 for one-swap" in made.stdout


@pytest.fixture(scope="module")
def tiny_inputs(tmp_path_factory) -> list[str]:
    """Flags of a random model of three layers, and of text for it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.llama(num_hidden_layers=3).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    lines = [json.dumps({"text": tiny.story(seed)}) for seed in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [f"--model={folder / 'model'}", f"--data={folder / 'text.jsonl'}", "--seqlen=32", "--sequences=8"]


def test_rounds_and_options_are_named_by_group(tiny_inputs, tmp_path):
    """One column each; allocations make their own masks, and are left out for n:m patterns."""
    csv = tmp_path / "runs.csv"
    arguments = ["--methods=sparsegpt", "--patterns=50%,2:4", "--treatments=rounds,options", f"--csv={csv}"]
    made = benchmark(*tiny_inputs, *arguments)
    assert made.returncode == 0, made.stderr
    frame = pd.read_csv(csv).set_index(["pattern", "treatment"])
    both = ["initial", "auto-1", "auto-2", "auto", "auto-8", "auto-dense-stream"]
    assert list(frame.loc["50%"].index) == [*both, "auto-owl", "auto-saliency"]
    assert list(frame.loc["2:4"].index) == both
    assert (frame["setting"] == frame.index.get_level_values("treatment")).all()
    half = frame.loc["50%"]
    assert half["zeros"].nunique() == half["initial"].nunique() == 1  # for every allocation
    assert half["perplexity"].nunique() == len(half)  # every setting has an effect
    values, shares, _ = tables(made.stdout)
    assert list(shares[0])[2:] == [
        "auto, 1 round",
        "auto, 2 rounds",
        "auto",
        "auto, 8 rounds",
        "auto, dense-stream",
        "auto, owl",
        "auto, saliency",
    ]
    assert values[0]["auto, owl"] == f"{half.loc['auto-owl', 'perplexity']:.3f}"
    assert [row["auto, owl"] == "-" for row in values] == [False, True]


def test_nothing_to_run_is_a_user_error():
    refused = benchmark("--treatments=auto-owl")
    assert refused.returncode == 2
    assert "give an unstructured pattern" in refused.stderr


def test_the_runs_in_docs_have_known_treatments(tmp_path):
    """Names and settings of treatments are those of the CSV in docs/, so no run of it is repeated."""
    kept = ROOT / "docs" / "quality" / "storyteller.csv"
    csv = tmp_path / kept.name
    csv.write_bytes(kept.read_bytes())
    sizes = ["--sequences=64", "--windows=64", "--seqlen=256"]
    made = benchmark(*sizes, "--treatments=published,auto,one-swap,dsnot", "--methods=wanda", "--csv", str(csv))
    assert made.returncode == 0, made.stderr
    assert ", seed " not in made.stderr
    assert csv.read_bytes() == kept.read_bytes()
    assert len(tables(made.stdout)) == 4


def test_runs_of_other_data_are_not_mixed_in(done):
    folder, before, _ = done
    refused = benchmark("--csv", str(folder / "runs.csv"), "--windows", "2")
    assert refused.returncode == 2
    assert "another model or other data" in refused.stderr
    assert len(pd.read_csv(folder / "runs.csv")) == len(before)


def test_an_impossible_pattern_is_refused_before_any_run():
    refused = benchmark("--patterns", "50%,3:7")
    assert refused.returncode == 2
    assert "does not fit" in refused.stderr
    assert "perplexity" not in refused.stderr


def test_a_file_for_calibration_and_evaluation_is_halved(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "Once upon a time there was a big red ball and a little dog."}\n' * 60, "utf-8")
    made = benchmark("--data", str(text), "--methods", "magnitude", "--treatments", "one-swap")
    assert made.returncode == 0, made.stderr
    assert "of text.jsonl (first half)" in made.stdout
    assert "of text.jsonl (second half)" in made.stdout
    _, _, times = tables(made.stdout)
    assert "x" not in times[0]["one-swap"]  # no fixed-threshold rebuild to compare with
