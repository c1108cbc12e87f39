"""The estimate of a run: its time beside that of real runs, and the cost of large models from given rates.

python benchmarks/estimates.py --models FOLDER[,FOLDER] [--settings wanda,alps] [--csv FILE] [--markdown FILE]

Runs jobs on real models with the bundled stories, and compares the time that each expects beforehand with the time
that it takes, as a whole and by phase; see docs/performance.md. The second part, for models that are too large to run
here, is called by scaling.py --estimate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd

from barber.config import AUTO, Granularity, Order, PruneConfig, Sparsity
from barber.events import Estimated, JobPlanned, Progress
from barber.job_spec import JobSpec
from barber.jobs.costs import passes
from barber.jobs.estimate import Model, estimate
from barber.jobs.job import run_job
from barber.pruning.context import CALIBRATION_BATCH_TOKENS
from benchmarks import synthetic
from benchmarks.measure import GIB, machine, table, this_command, write

BLOCK = {"granularity": Granularity.BLOCK, "threshold": 0.1}
SETTINGS = {
    "wanda": {"method": "wanda", "barber": False},
    "barber": {"method": "wanda", **BLOCK},
    "auto": {"method": "wanda", "threshold": AUTO},
    "one-swap": {"method": "wanda", "refiner": "one-swap"},
    "dsnot": {"method": "wanda", "refiner": "dsnot"},
    "sparsegpt": {"method": "sparsegpt", "barber": False},
    "alps": {"method": "alps", "barber": False},
    "refit": {"method": "wanda", "barber": False, "reconstruct": True},
}

SAMPLES, SEQLEN, ELEMENT = 128, 2048, 2  # Wanda's published calibration; bf16
READS = {Order.ONE_PASS: 1, Order.PAPER: 2}  # of every layer: one in each pass over the layers
BESIDE = 4  # further ones: for the hash of the model, and one perplexity of each stage
TITLES = [
    "model", "ranks", "order", "weights", "whole in memory", "streamed, a rank", "activations, a rank",
    "masks on disk", "passes", "arithmetic", "reading",
]  # fmt: skip


def model(shape: str) -> Model:
    """The sizes of a shape, as barber.jobs.setup.sizes gives them for a loaded model."""
    if shape not in synthetic.SHAPES:
        synthetic.config(shape)  # raises UserError
    sizes = synthetic.SHAPES[shape]
    hidden, middle = sizes.hidden, sizes.intermediate
    keys = hidden * sizes.groups // sizes.heads
    attention, mlp = 2 * hidden * (hidden + keys), 3 * hidden * middle
    norms = (2 * sizes.layers + 1) * hidden
    return Model(
        layers=sizes.layers,
        hidden=hidden,
        layer_parameters=attention + mlp,
        block_parameters=max(attention, mlp),
        width=max(hidden, middle),
        blocks=(
            ((hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)),
            ((middle, hidden), (middle, hidden), (hidden, middle)),
        )
        * sizes.layers,
        spread=max(2 * (hidden + hidden) + 2 * (hidden + keys), 3 * (hidden + middle)),
        other_bytes=ELEMENT * (2 * sizes.vocabulary * hidden + norms),
        element=ELEMENT,
    )


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each model, number of ranks and order."""
    shapes, devices = options.estimate.split(","), [int(ranks) for ranks in options.devices.split(",")]
    for shape, ranks, order in product(shapes, devices, (Order.ONE_PASS, Order.PAPER)):
        sizes, config = model(shape), PruneConfig(Sparsity(0.5), "wanda", order=order)
        prunable, batch = sizes.layers * sizes.layer_parameters, max(1, CALIBRATION_BATCH_TOKENS // SEQLEN)
        whole, streamed = (estimate(sizes, config, SAMPLES, SEQLEN, batch, w, ranks) for w in (True, False))
        model_bytes = prunable * ELEMENT
        yield {
            "shape": shape,
            "ranks": ranks,
            "order": str(order),
            "weights_bytes": model_bytes + sizes.other_bytes,
            "whole_bytes": whole.least,
            "streamed_bytes": streamed.least,
            "activations_bytes": streamed.activations,
            "masks_bytes": 2 * prunable / 8,
            "passes": passes(config, SAMPLES),
            "arithmetic_seconds": arithmetic(sizes, config, ranks) / (options.tflops * 1e12),
            "reading_seconds": (READS[order] + BESIDE) * model_bytes / (options.disk * 1e9),
        }


def arithmetic(sizes: Model, config: PruneConfig, ranks: int) -> float:
    """Floating-point operations of each rank in the passes of a run; attention reads half of the positions."""
    each = 2 * sizes.layer_parameters + 4 * SEQLEN * sizes.hidden  # of a token in a layer
    return passes(config, SAMPLES) * sizes.layers * SAMPLES * SEQLEN / ranks * each


def measured(model: str, setting: str, options: argparse.Namespace) -> Iterator[dict]:
    """A row for each phase of a run, and one for all of it, with the expected and the real seconds."""
    spec = JobSpec(
        model=model,
        prune=PruneConfig(Sparsity(0.5), **SETTINGS[setting]),
        calibration="storyteller",
        evaluation=("storyteller",),
        nsamples=options.samples,
        seqlen=options.seqlen,
        eval_windows=options.windows,
        device=options.device,
        dtype=options.dtype,
    )
    started = latest = perf_counter()
    expected, real, whole, phase = {}, {}, 0.0, "load"
    for event in run_job(spec):
        now = perf_counter()
        if isinstance(event, Estimated):
            whole = event.seconds
        if isinstance(event, JobPlanned):
            expected = event.phases
        phase = event.phase if isinstance(event, Progress) else phase
        real[phase] = real.get(phase, 0.0) + now - latest  # also the masks between two steps of progress
        latest = now
    parts = [(phase, seconds, real[phase]) for phase, seconds in expected.items()]
    for phase, one, other in [*parts, ("whole job", whole, latest - started)]:
        where = {"model": Path(model).name, "setting": setting, "phase": phase}
        yield {**where, "expected": one, "real": other, "ratio": one / other}


def report(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    """The table of the real runs."""
    size = f"- {options.samples} sequences of {options.seqlen} tokens, {options.windows} windows, {options.dtype}"
    lines = [
        [row.model, row.setting, row.phase, f"{row.expected:.1f} s", f"{row.real:.1f} s", f"{row.ratio:.2f}"]
        for row in frame.itertuples()
    ]
    titles = ["model", "setting", "phase", "expected", "real", "expected / real"]
    return "\n".join([this_command("estimates.py"), size, machine(), "", table(titles, lines)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, help="Hugging Face folders, separated by commas")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8, help="of the evaluation")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--markdown", type=Path, help="where to write the table, instead of stdout")
    options = parser.parse_args()
    made: list[dict] = []
    for model, setting in product(options.models.split(","), options.settings.split(",")):
        for row in measured(model, setting, options):
            print(row, file=sys.stderr, flush=True)
            made.append(row)
    frame = pd.DataFrame(made)
    if options.csv:
        frame.to_csv(options.csv, index=False)
    write(report(frame, options), options.markdown)


def markdown(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    lines = [
        this_command("scaling.py"),
        f"- estimated, not measured: {options.tflops:g} x 10^12 operations a second on each device, {options.disk:g} x "
        f"10^9 bytes a second from disk; Wanda and one round of the rebuild at 50 %, {SAMPLES} sequences of {SEQLEN} "
        "tokens, bfloat16",
    ]
    cells = [
        [
            *(row["shape"], f"{row['ranks']}", row["order"]),
            *(size(row[name]) for name in ("weights_bytes", "whole_bytes", "streamed_bytes", "activations_bytes")),
            *(size(row["masks_bytes"]), f"{row['passes']:.2f}"),
            *(time(row[name]) for name in ("arithmetic_seconds", "reading_seconds")),
        ]
        for row in frame.to_dict("records")
    ]
    return "\n".join([*lines, "", table(TITLES, cells)]) + "\n"


def size(number: float) -> str:
    return f"{number / GIB:.1f} GiB"


def time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
