"""Cost against layers, sequences, their length, and the processes that share a run; and estimates for large models.

python benchmarks/scaling.py [--series layers,samples,seqlen,ranks] [--csv FILE] [--markdown FILE]
python benchmarks/scaling.py --estimate 7b,70b,405b --tflops 400

Each series varies one number; each point runs in a process of its own (with torchrun for several ranks), so that its
peak memory is its own. Ratios are to the first point of the series. F is a forward pass of
the rank's sequences, in processor seconds, which other programs on the machine change less than wall seconds. The
model is a Llama of random weights. Estimates are made by `barber.jobs.estimate` from given rates, without a run.
See docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch

from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.models.loading import DTYPES
from barber.pruning.distributed import join, leave
from benchmarks import estimates, speed, synthetic
from benchmarks.measure import gib, machine, measured, table, this_command, write

SERIES = {"layers": (4, 8, 16), "samples": (8, 16, 32), "seqlen": (128, 256, 512), "ranks": (1, 2)}
BASE = {"layers": 4, "samples": 8, "seqlen": 128, "ranks": 1}  # of the series that vary another number
TITLES = [
    "varied", "value", "run", "processor, a rank", "processor, all ranks", "run in F", "peak host, a rank",
    "processor to the first", "F to the first", "peak to the first",
]  # fmt: skip


def config(options: argparse.Namespace) -> PruneConfig:
    return PruneConfig(Sparsity(0.5), options.method, granularity="block", threshold=0.1, order=options.order)


def point(options: argparse.Namespace, where: dict) -> None:
    """Measure one point in this process, as one of the ranks of the run; the first one writes the report."""
    ranks = join()
    given = {"device": "cpu", "host": False, "layerwise": False, "batch": None}
    settings = argparse.Namespace(**{**vars(options), **given, **where})
    try:
        context = replace(speed.build(settings), ranks=ranks)
        calibration = speed.sequences(settings, context.view.model.config.vocab_size)
        forward = min(processor(speed.forward_seconds, context, calibration, config(options))[0] for _ in range(3))
        own, result = processor(speed.run, context, calibration, config(options))
        every = torch.tensor([own], dtype=torch.float64)
        ranks.sum([every])
    finally:
        leave()
    if ranks.writes:
        row = {
            "seconds": result["seconds"],
            "processor_seconds": own,
            "all_processor_seconds": every.item(),
            "F": forward,
        }
        options.report.write_text(json.dumps(row), encoding="utf-8")


def processor(work: Callable, *arguments: object) -> tuple[float, Any]:
    """Processor seconds of a call, and what it returned."""
    started = time.process_time()
    result = work(*arguments)
    return time.process_time() - started, result


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each point of each series."""
    for varied in options.series:
        first: dict = {}
        for value in options.points[varied]:
            where = BASE | {varied: value}
            with tempfile.TemporaryDirectory() as folder:
                report = Path(folder) / "point.json"
                torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={where['ranks']}"]
                command = [sys.executable, *(torchrun if where["ranks"] > 1 else ()), "benchmarks/scaling.py"]
                command += ["--shape", options.shape, "--method", options.method, "--order", options.order]
                command += ["--dtype", options.dtype, "--point", json.dumps(where), "--report", str(report)]
                used = measured(command)
                if used.code:
                    raise UserError(f"The point {where} ended with exit code {used.code}: {used.last}")
                row = json.loads(report.read_text("utf-8"))
            row |= {"peak_bytes": used.peak, "run_in_F": row["processor_seconds"] / row["F"]}
            first = first or row
            ratios = {f"{name}_ratio": row[name] / first[name] for name in ("processor_seconds", "F", "peak_bytes")}
            yield {"varied": varied, "value": value, **where, **row, **ratios}


def markdown(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    base = ", ".join(f"{value} {name}" for name, value in BASE.items())
    lines = [
        this_command("scaling.py"),
        f"- model: Llama {options.shape}, random weights, {options.dtype}; {options.method}, then the rebuild in the "
        f"order {options.order}; {base}, except for the varied one",
        machine(),
    ]
    cells = [
        [
            *(row["varied"], f"{row['value']}", f"{row['seconds']:.2f} s", f"{row['processor_seconds']:.2f} s"),
            *(f"{row['all_processor_seconds']:.2f} s", f"{row['run_in_F']:.2f}", gib(row["peak_bytes"])),
            *(f"{row[f'{name}_ratio']:.2f}" for name in ("processor_seconds", "F", "peak_bytes")),
        ]
        for row in frame.to_dict("records")
    ]
    return "\n".join([*lines, "", table(TITLES, cells)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", default=",".join(SERIES))
    for name, points in SERIES.items():
        parser.add_argument(f"--{name}", default=",".join(map(str, points)), help=f"points of the series {name}")
    parser.add_argument("--shape", default="6m", help=f"one of {', '.join(synthetic.SHAPES)}")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--order", default="one-pass")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--csv", type=Path, help="a line per point")
    parser.add_argument("--markdown", type=Path, help="where to write the table, instead of stdout")
    parser.add_argument("--estimate", metavar="SHAPES", help="estimate these shapes instead of measuring")
    parser.add_argument("--tflops", type=float, help="rate of matrix products on one device, 10^12 operations a second")
    parser.add_argument("--disk", type=float, default=2.0, help="rate of reading from disk, 10^9 bytes a second")
    parser.add_argument("--devices", default="1,8", help="numbers of ranks to estimate")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        return point(options, options.point)
    try:
        if unknown := set(options.series.split(",")) - set(SERIES):
            raise UserError(f"Series {', '.join(sorted(unknown))} is unknown: choose of {', '.join(SERIES)}.")
        options.series = options.series.split(",")
        options.points = {name: [int(value) for value in getattr(options, name).split(",")] for name in SERIES}
        if options.estimate and not options.tflops:
            raise UserError("An estimate needs the device's rate of matrix products: give --tflops.")
        made = []
        for row in estimates.rows(options) if options.estimate else rows(options):
            made.append(row)
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, file=sys.stderr)
    except UserError as error:
        parser.error(str(error))
    frame = pd.DataFrame(made)
    if options.csv:
        frame.to_csv(options.csv, index=False)
    write((estimates.markdown if options.estimate else markdown)(frame, options), options.markdown)
    return None


if __name__ == "__main__":
    main()
