"""main.py sweep GRID.yaml --output DIR: run all jobs of a grid, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from barber.cli import Parser, progress_bar, show_progress
from barber.console import interruptible, path

if TYPE_CHECKING:
    from barber.events import PerplexityMeasured


def main(argv: Sequence[str]) -> int:
    """Run a sweep. Returns the exit code: 0, or 2 if a job failed. Raises UserError."""
    options = _parser().parse_args(argv)

    # Imported late, since torch and transformers take seconds, which --help does not need.
    from transformers.utils import logging as transformers_logging

    from barber.events import Event, Notice, PerplexityMeasured, SweepJobEnded, SweepJobStarted, SweepPlanned
    from barber.jobs.grid import read_grid
    from barber.jobs.report import format_duration
    from barber.jobs.sweep import run_sweep
    from barber.jobs.sweep_table import MARKDOWN, RESULTS
    from barber.progress import Eta

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    jobs = read_grid(options.grid)
    eta, place, number, failed = Eta(), "", 0, 0
    measured: list[PerplexityMeasured] = []
    with interruptible(), progress_bar(True) as bar, closing(run_sweep(jobs, options.output)) as events:

        def say(event: Event) -> None:
            nonlocal eta, place, number, failed
            eta.update(event)
            match event:
                case SweepPlanned():
                    done, seconds = sum(not one for one in event.jobs.values()), sum(event.jobs.values())
                    before = f", {done} of them finished before" if done else ""
                    bar.write(f"{len(event.jobs)} jobs{before}, about {format_duration(seconds)}.", file=sys.stderr)
                case SweepJobStarted():
                    eta, place = Eta(), f"{number + 1}/{len(jobs)} "
                    measured.clear()
                case PerplexityMeasured():
                    measured.append(event)
                case Notice():
                    bar.write(event.message, file=sys.stderr)
                case SweepJobEnded():
                    number += 1
                    failed += bool(event.error)
                    what = f"error: {event.error}" if event.error else _results(measured) or "finished before"
                    bar.write(f"{number}/{len(jobs)} {event.name}: {what}", file=sys.stderr)
                    measured.clear()
            show_progress(bar, eta, event, place)

        for event in events:
            say(event)
    sys.stdout.write((options.output / MARKDOWN).read_text("utf-8"))
    sys.stdout.write(f"The tables are {options.output / RESULTS} and {MARKDOWN} beside it.\n")
    if failed:
        sys.stderr.write(f"error: {failed} of {len(jobs)} jobs failed: the table has their sentences.\n")
    return 2 if failed else 0


def _parser() -> Parser:
    parser = Parser(
        prog="main.py sweep",
        description="Run all jobs of a grid of settings, one after the other; the same command again goes on.",
        allow_abbrev=False,
    )
    parser.add_argument("grid", type=path, metavar="GRID.yaml", help="settings: one value, or a list for an axis")
    parser.add_argument("--output", type=path, metavar="DIR", required=True, help="the folder of the runs and tables")
    return parser


def _results(measured: Sequence[PerplexityMeasured]) -> str:
    """Perplexities in one line."""
    return ", ".join(f"{event.dataset} {event.stage} {event.perplexity:.3f}" for event in measured)
