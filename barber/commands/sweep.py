"""main.py sweep GRID.yaml --output DIR: run all jobs of a grid, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from barber.cli import progress_bar, show_progress
from barber.console import interruptible, path
from barber.events import Event, Notice, PerplexityMeasured, SweepJobEnded, SweepJobStarted, SweepPlanned
from barber.jobs.report import format_duration
from barber.parsing import Parser
from barber.progress import Eta


def main(argv: Sequence[str]) -> int:
    """Run a sweep. Returns the exit code: 0, or 2 if a job failed. Raises UserError."""
    options = _parser().read(argv)
    # Imported late, since torch and transformers take seconds, which --help does not need.
    from transformers.utils import logging as transformers_logging

    from barber.jobs.grid import read_grid
    from barber.jobs.sweep import run_sweep
    from barber.jobs.sweep_table import MARKDOWN, RESULTS

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    jobs = read_grid(options.grid)
    with interruptible(), progress_bar(True) as bar, closing(run_sweep(jobs, options.output)) as events:
        display = _Display(bar, len(jobs))
        for event in events:
            display.show(event)
    sys.stdout.write((options.output / MARKDOWN).read_text("utf-8"))
    sys.stdout.write(f"The tables are {options.output / RESULTS} and {MARKDOWN} beside it.\n")
    if display.failed:
        sys.stderr.write(f"error: {display.failed} of {len(jobs)} jobs failed: the table has their sentences.\n")
    return 2 if display.failed else 0


def _parser() -> Parser:
    parser = Parser.of(
        "sweep", "Run all jobs of a grid of settings, one after the other; the same command again goes on."
    )
    parser.add_argument("grid", type=path, metavar="GRID.yaml", help="settings: one value, or a list for an axis")
    parser.add_argument("--output", type=path, metavar="DIR", required=True, help="the folder of the runs and tables")
    return parser


class _Display:
    """Shows a sweep on stderr: a bar for the job that runs, and a line for each that has ended.

    Attributes:
        ended, failed: numbers of jobs.
    """

    def __init__(self, bar, jobs: int) -> None:
        self.bar, self.jobs = bar, jobs
        self.ended = self.failed = 0
        self.eta = Eta()
        self.measured: list[str] = []  # by the job that runs

    def show(self, event: Event) -> None:
        self.eta.update(event)
        match event:
            case SweepPlanned():
                done, left = sum(not one for one in event.jobs.values()), format_duration(sum(event.jobs.values()))
                self.write(f"{self.jobs} jobs{f', {done} of them finished before' if done else ''}, about {left}.")
            case SweepJobStarted():
                self.eta, self.measured = Eta(), []
            case PerplexityMeasured():
                self.measured.append(f"{event.dataset} {event.stage} {event.perplexity:.3f}")
            case Notice():
                self.write(event.message)
            case SweepJobEnded():
                self.ended += 1
                self.failed += bool(event.error)
                what = f"error: {event.error}" if event.error else ", ".join(self.measured) or "finished"
                self.write(f"{self.ended}/{self.jobs} {event.name}: {what}")
                self.measured = []
        show_progress(self.bar, self.eta, event, f"{self.ended + 1}/{self.jobs} ")

    def write(self, line: str) -> None:
        self.bar.write(line, file=sys.stderr)
