"""The benchmarks of cost and memory as processes, on the smallest settings."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from barber.job_spec import JobSpec
from barber.jobs.setup import set_up_job, sizes
from barber.pruning.distributed import Ranks
from benchmarks import estimates, synthetic
from benchmarks.measure import measured

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
# With its dynamic threshold, glibc does not return the memory of freed layers to the system.
STEADY = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def benchmark(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **STEADY})


def table(text: str, number: int = 0) -> list[dict[str, str]]:
    """The rows of a Markdown table; each has as many cells as the header."""
    lines = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")][number]
    titles, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    assert all(len(row) == len(titles) for row in rows)
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_each_series_varies_one_number(tmp_path):
    csv = tmp_path / "points.csv"
    made = benchmark("scaling.py", "--series", "layers,ranks", "--layers", "1,2", "--ranks", "1,2", "--csv", str(csv))
    assert made.returncode == 0, made.stderr
    frame, rows = pd.read_csv(csv), table(made.stdout)
    assert list(zip(frame["varied"], frame["value"], strict=True)) == [
        *(("layers", 1), ("layers", 2), ("ranks", 1), ("ranks", 2))
    ]
    assert [(row["varied"], int(row["value"])) for row in rows] == list(
        zip(frame["varied"], frame["value"], strict=True)
    )
    assert list(frame["layers"]) == [1, 2, 4, 4]
    assert list(frame["ranks"]) == [1, 1, 1, 2]
    assert list(frame["processor_seconds_ratio"][[0, 2]]) == [1, 1]
    assert frame["processor_seconds_ratio"][1] > 1.2  # twice the layers
    two = frame.iloc[3]  # each rank has half of the sequences
    assert two["F"] < frame["F"][2]
    assert two["all_processor_seconds"] > two["processor_seconds"]
    assert frame["peak_bytes"].between(2**27, 2**32).all()


def test_large_models_are_estimated_and_not_run(tmp_path):
    csv = tmp_path / "estimates.csv"
    made = benchmark("scaling.py", "--estimate", "7b,70b,405b", "--tflops", "400", "--csv", str(csv))
    assert made.returncode == 0, made.stderr
    frame, rows = pd.read_csv(csv).set_index(["shape", "ranks", "order"]), table(made.stdout)
    assert len(frame) == len(rows) == 12
    assert [row["model"] for row in rows[::4]] == ["7b", "70b", "405b"]
    assert "estimated, not measured: 400 x 10^12" in made.stdout
    one, eight = frame.loc["405b", 1, "one-pass"], frame.loc["405b", 8, "one-pass"]
    assert one["weights_bytes"] == pytest.approx(2 * 405.85e9, rel=0.001)
    assert one["masks_bytes"] == pytest.approx(2 * 401.64e9 / 8, rel=0.001)
    assert one["arithmetic_seconds"] == pytest.approx(8 * eight["arithmetic_seconds"])
    assert one["activations_bytes"] == 8 * eight["activations_bytes"]
    assert one["passes"] < frame.loc["405b", 1, "paper"]["passes"]


def test_a_shape_has_the_sizes_of_the_model_that_is_made_of_it(tmp_path):
    folder = tmp_path / "model"
    config = synthetic.config("6m")
    config.dtype = "float32"
    synthetic.write_checkpoint(folder, config)
    with ExitStack() as stack:
        means = set_up_job(JobSpec(str(folder), dtype="bfloat16"), None, Ranks(), stack, False)
        assert sizes(means) == estimates.model("6m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--series", "width"], "Series width is unknown: choose of layers, samples, seqlen, ranks."),
        (["--estimate", "9b", "--tflops", "1"], "Shape '9b' is unknown: choose one of 6m"),
        (["--estimate", "7b"], "give --tflops"),
        (["--series", "layers", "--layers", "1", "--order", "sideways"], "ended with exit code"),
    ],
)
def test_a_user_error_is_one_sentence(arguments, message):
    refused = benchmark("scaling.py", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr.splitlines()[-1]
    assert not refused.stdout


def test_the_memory_of_a_process_is_its_own():
    """The 300 MB of this process do not count, and those of the measured process do."""
    memory = bytearray(300_000_000)
    small = measured([sys.executable, "-S", "-c", "print('x')"])
    assert (small.code, small.output) == (0, "x\n")
    assert small.peak < 100_000_000 < len(memory)
    large = measured(
        [sys.executable, "-S", "-c", "x = bytearray(200_000_000); y = sum(x[::4096]); raise SystemExit(3)"]
    )
    assert large.code == 3
    assert 200_000_000 < large.peak < 300_000_000
    refused = measured([sys.executable, "-S", "-c", "bytearray(2**30)"], limit=2**29)
    assert (refused.code, refused.last) == (1, "MemoryError")


def test_a_streamed_run_takes_no_more_memory_with_four_times_the_layers(tmp_path):
    csv = tmp_path / "memory.csv"
    made = benchmark(
        *("memory.py", "--layers", "4,16", "--orders", "one-pass", "--hidden", "512", "--intermediate", "1376"),
        *("--samples", "4", "--csv", str(csv)),
    )
    assert made.returncode == 0, made.stderr
    frame = pd.read_csv(csv)
    peaks, limits = frame[frame["measure"] == "peak"], frame[frame["measure"] == "limit"].set_index("how")
    few, many = peaks.to_dict("records")
    assert many["model_bytes"] == 4 * few["model_bytes"]
    assert many["ratio"] == many["peak_bytes"] / few["peak_bytes"] < 1.1
    assert many["peak_bytes"] - few["peak_bytes"] < 2 * few["layer_bytes"]  # of 12 additional layers
    assert few["in_layers"] < 4  # with room for the allocator: the layers are small beside the rest of the process
    assert limits.loc["streamed", "limit_bytes"] < limits.loc["streamed", "libraries_bytes"] + many["model_bytes"]
    assert limits.loc["streamed", "code"] == 0
    assert limits.loc["whole", "code"] != 0
    assert [row["layers"] for row in table(made.stdout)] == ["4", "16"]
    assert [row["exit code"] for row in table(made.stdout, 1)] == [f"{code:.0f}" for code in limits["code"]]
