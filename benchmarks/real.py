"""A tournament on a real model: initial masks, rebuilds and refits, as a sweep whose rows are kept in a CSV.

python benchmarks/real.py --model NAME --runs FOLDER --csv FILE [--methods ... --rebuilds ... --patterns ...]

Every job is recorded in a run directory and is a line of the CSV, which is written as soon as the job ends. Jobs that
the CSV has are not run again, and an interrupted one is resumed. Jobs run seed by seed, first without and then with a
refit, then rebuild by rebuild and pattern by pattern, in the order given, so that the first ones make whole tables.
`python benchmarks/real_tables.py` writes the tables of docs/quality.md and README.md from the CSV.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch

from barber.errors import UserError
from barber.events import PerplexityMeasured, RunFinished, RunStarted, Stage, SweepJobEnded, SweepPlanned
from barber.jobs.grid import SweepJob, jobs_of
from barber.jobs.report import format_duration, gap_recovered
from barber.jobs.sweep import RUNS, run_sweep
from barber.jobs.sweep_table import measured
from barber.registry import INITIAL_MASKS
from barber.runs.directory import RunDirectory
from benchmarks.quality import listed

REBUILDS = {
    "block 0.1": {"rebuild": True, "granularity": "block", "threshold": 0.1},
    "output1 0.01": {"rebuild": True, "granularity": "output1", "threshold": 0.01},
    "one-swap": {"rebuild": True, "refiner": "one-swap"},
    "auto": {"rebuild": True, "threshold": "auto"},
    "dsnot": {"rebuild": True, "refiner": "dsnot"},
    "none": {"rebuild": False},
}
REFITS = {"none": False, "refit": True}
CASE = ["model", "pattern", "method", "rebuild", "refit", "seed"]  # a row of the CSV each


def cases(options: argparse.Namespace) -> dict[str, tuple[dict, SweepJob]]:
    """Name of the job -> its case and the job, in the order of the work."""
    found = {}
    order = product(options.seeds, options.refits, options.rebuilds, options.patterns, options.methods)
    for seed, refit, rebuild, pattern, method in order:
        (job,) = jobs_of(
            {
                "model": options.model,
                "calibration": options.calibration,
                "evaluation": options.evaluation,
                "nsamples": options.sequences,
                "seqlen": options.seqlen,
                "eval_windows": options.windows,
                "device": options.device,
                "dtype": options.dtype,
                "method": method,
                "sparsity": pattern,
                "seed": seed,
                "reconstruct": REFITS[refit],
                **REBUILDS[rebuild],
                **({"retain_reconstruction": True} if rebuild != "none" and updates(method) else {}),
            }
        )
        case = dict(zip(CASE, (model_name(options), pattern, method, rebuild, refit, seed), strict=True))
        found[job.name] = (case, job)
    return found


def model_name(options: argparse.Namespace) -> str:
    """The hub id, or the name of the folder."""
    return Path(options.model).name if Path(options.model).is_dir() else options.model


def check_same(options: argparse.Namespace, known: list[dict]) -> None:
    """UserError if the CSV has rows of the same model on other data, which cannot stand beside the new ones."""
    for one in known:
        if one["model"] == model_name(options):
            same = all(one[name] == getattr(options, name) for name in ("sequences", "windows", "seqlen"))
            if not (same and one["evaluation"].startswith(Path(options.evaluation).name)):
                raise UserError(f"{options.csv} holds runs of this model on other data: give another file.")


def updates(method: str) -> bool:
    """Whether a method gives the kept weights new values, which the rebuild then keeps."""
    return INITIAL_MASKS[method].kind == "update"


def row(case: dict, job: SweepJob, path: Path) -> dict:
    """The line of a job from its run directory."""
    events = RunDirectory(path).events()
    (started,) = (event for event in events if isinstance(event, RunStarted))
    (finished,) = (event for event in events if isinstance(event, RunFinished))
    stages = {event.stage: event for event in events if isinstance(event, PerplexityMeasured)}
    final = stages.get(Stage.REBUILT, stages[Stage.INITIAL])
    values = {stage: stages[stage].perplexity for stage in (Stage.DENSE, Stage.INITIAL)}
    result = {"dense": stages[Stage.DENSE], "initial": stages[Stage.INITIAL], "perplexity": final}
    intervals = {
        f"{name}{end}": value
        for name, event in result.items()
        for end, value in (("", event.perplexity), ("_low", event.low), ("_high", event.high))
    }
    found = measured(events)
    return case | intervals | {
        "gap_recovered": gap_recovered(*values.values(), final.perplexity),
        "zeros": finished.zeros,
        "weights": finished.weights,
        "swaps": finished.swaps,
        "seconds": found["seconds"],
        "peak_memory": found.get("peak_memory"),
        "dtype": started.dtype,
        "calibration": started.calibration.get("source", ""),
        "sequences": job.spec.nsamples,
        "evaluation": final.dataset,
        "windows": final.tokens // final.seqlen,
        "seqlen": final.seqlen,
        "window_start": final.window_start,
        "machine": machine(started.device),
        "date": date.today().isoformat(),
    }  # fmt: skip


def machine(device: str) -> str:
    """The machine and how much of it is used."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    used = torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {used} used, torch {torch.__version__}"


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each job that the CSV does not have, as soon as it ends."""
    known = pd.read_csv(options.csv).to_dict("records") if options.csv.exists() else []
    check_same(options, known)
    done = {tuple(str(one[name]) for name in CASE) for one in known}
    todo = {
        name: (case, job) for name, (case, job) in cases(options).items() if tuple(map(str, case.values())) not in done
    }
    if not todo:
        return
    with closing(run_sweep([job for _, job in todo.values()], options.runs)) as events:
        for event in events:
            if isinstance(event, SweepPlanned):
                expected = format_duration(sum(event.jobs.values()))
                print(f"{len(todo)} jobs, about {expected}", file=sys.stderr, flush=True)
            if isinstance(event, SweepJobEnded) and event.error:
                print(f"{event.name}: {event.error}", file=sys.stderr, flush=True)
            elif isinstance(event, SweepJobEnded):
                yield row(*todo[event.name], options.runs / RUNS / event.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--calibration", default="c4", help="text for calibration: a data set or a file")
    parser.add_argument("--evaluation", default="wikitext2", help="text for evaluation: a data set or a file")
    parser.add_argument("--methods", type=listed(*INITIAL_MASKS), default="magnitude,wanda,sparsegpt,alps")
    parser.add_argument("--rebuilds", type=listed(*REBUILDS), default="block 0.1,output1 0.01,one-swap,auto")
    parser.add_argument("--refits", type=listed(*REFITS), default="none,refit")
    parser.add_argument("--patterns", type=listed(), default="50%,2:4,60%")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default="0")
    parser.add_argument("--sequences", type=int, default=32, help="calibration sequences")
    parser.add_argument("--windows", type=int, default=64, help="evaluation windows")
    parser.add_argument("--seqlen", type=int, default=256, help="tokens of each sequence or window")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--csv", type=Path, required=True, help="a line per job; an existing file is continued")
    options = parser.parse_args()
    try:
        for one in rows(options):
            case = ", ".join(str(one[name]) for name in CASE)
            print(f"{case}: {one['initial']:.2f} -> {one['perplexity']:.2f}, {one['seconds']:.0f} s", flush=True)
            pd.DataFrame([one]).to_csv(options.csv, mode="a", header=not options.csv.exists(), index=False)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
