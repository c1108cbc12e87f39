"""Kill a run at random moments, resume it, and compare its masks with those of an uninterrupted run, bit by bit.

python benchmarks/resume.py [--model MODEL] [--data SPEC] [--order paper|one-pass] [--times 20]
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from barber.events import Stage
from barber.runs.directory import RunDirectory

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *arguments]


def finish(*arguments: str) -> float:
    """Run to the end; wall seconds. Raises CalledProcessError with the messages if it fails."""
    started = time.monotonic()
    subprocess.run(command(*arguments), cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.monotonic() - started


def kill(seconds: float, path: Path, *arguments: str) -> int:
    """Run for some seconds and kill it; the number of recorded events, -1 if there is nothing to resume."""
    process = subprocess.Popen(
        command(*arguments, "--run_dir", str(path)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    process.kill()
    process.wait()
    if not (path / "job.json").exists():
        return -1
    return (path / "events.jsonl").read_bytes().count(b"\n") if (path / "events.jsonl").exists() else 0


def tensors(path: Path) -> dict[tuple, torch.Tensor]:
    """All masks and values of a run."""
    run = RunDirectory(path)
    return {
        (layer, stage, part, name): tensor
        for layer in run.layers()
        for stage in (Stage.INITIAL, Stage.REBUILT)
        for part, held in zip(("mask", "value"), run.recorded(layer, stage), strict=True)
        for name, tensor in held.items()
    }


def same(one: dict[tuple, torch.Tensor], other: dict[tuple, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="storyteller")
    parser.add_argument("--data", default="storyteller", help="for calibration and perplexity")
    parser.add_argument("--order", default="paper", choices=["paper", "one-pass"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--nsamples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    given = parser.parse_args()
    job = [
        "--model", given.model, "--calibration", given.data, "--eval_data", given.data, "--eval_windows", "8",
        "--nsamples", str(given.nsamples), "--seqlen", str(given.seqlen), "--order", given.order, "--prune_method",
        "sparsegpt", "--sparsity_ratio", "0.5", "--prune_barber", "--retain_reconstruction", "--prune_granularity",
        "block", "--threshold", "0.1",
    ]  # fmt: skip
    rng, equal, killed = random.Random(given.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        seconds = finish(*job, "--run_dir", str(whole))
        wanted, total = tensors(whole), len(RunDirectory(whole).events())
        while killed < given.times:
            path = Path(folder) / f"run{time.monotonic_ns()}"
            left = kill(rng.uniform(0, seconds), path, *job)
            if left < 0 or left == total:  # had not begun, or had ended
                continue
            killed += 1
            finish("--resume", str(path))
            good = same(tensors(path), wanted)
            equal += good
            print(f"killed after {left} of {total} events: {'the same bits' if good else 'OTHER BITS'}", flush=True)
    print(f"{equal} of {killed} bit-identical")


if __name__ == "__main__":
    main()
