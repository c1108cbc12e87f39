"""The table of a sweep: a row for each job, from its run directory, as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from barber.atomic_files import write_file
from barber.errors import UserError
from barber.events import (
    Event,
    LayerInitialised,
    PerplexityMeasured,
    RunFinished,
    RunStarted,
    SubBlockRebuilt,
    ZeroShotMeasured,
)
from barber.jobs.grid import NAMED, SweepJob, axes
from barber.jobs.report import format_bytes, format_duration
from barber.runs.directory import RunDirectory

RESULTS, MARKDOWN = "results.csv", "results.md"
ALWAYS = ("method", "sparsity", "seed")  # in every table, also where all jobs have the same
FINISHED, FAILED, WAITING = "finished", "failed", "waiting"
MEASURED = ("weights", "zeros", "seconds", "peak_memory", "error")


class Results:
    """The rows of a sweep's jobs, and the files in its folder that show them."""

    def __init__(self, folder: Path, jobs: Sequence[SweepJob]) -> None:
        different = axes(jobs)
        self.folder = folder
        self.settings = [name for name in NAMED if name in different or name in ALWAYS]
        self.rows: dict[str, dict[str, Any]] = {
            job.name: {"job": job.name, "status": WAITING} | {name: job.values.get(name) for name in self.settings}
            for job in jobs
        }

    def add(self, job: SweepJob, error: str = "") -> None:
        """Take the results of a job that has ended, and write the tables. error: the sentence of one that failed."""
        try:
            found = measured(RunDirectory(self.folder / "runs" / job.name).events())
        except UserError:  # it failed before its run began
            found = {}
        self.rows[job.name] |= found | {"status": FAILED if error else FINISHED, "error": error}
        self.write()

    def write(self) -> None:
        """Write both tables. Raises OSError."""
        rows = list(self.rows.values())
        write_file(self.folder / RESULTS, csv_text(rows).encode())
        write_file(self.folder / MARKDOWN, self.markdown().encode())

    def markdown(self) -> str:
        """A line for each job: its settings, perplexities with their intervals, zeros, time and memory."""
        rows = list(self.rows.values())
        datasets = perplexity_columns(rows)
        head = [*self.settings, *datasets, "zeros", "seconds", "peak memory", "status"]
        lines = [head, ["---"] * len(head)]
        for row in rows:
            shown = ["" if row[name] is None else f"{row[name]}" for name in self.settings] + [
                _with_interval(row, name) for name in datasets
            ]
            share = f"{row['zeros'] / row['weights']:.2%}" if row.get("weights") else ""
            time = format_duration(row["seconds"]) if "seconds" in row else ""
            memory = format_bytes(row["peak_memory"]) if row.get("peak_memory") else ""
            lines.append([*shown, share, time, memory, row.get("error") or row["status"]])
        return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def measured(events: Iterable[Event]) -> dict[str, Any]:
    """What the events of a run measured, as columns.

    "<data set> <stage>" is a perplexity, with its 95 % interval from "... low" to "... high", "<task> <metric> <stage>"
    a result of a zero-shot task. seconds: of the pruning, without evaluations. peak_memory: bytes, as SubBlockRebuilt
    has it; none without a rebuild.
    """
    found: dict[str, Any] = {}
    initial = rebuilt = 0.0
    one_pass = False
    for event in events:
        match event:
            case RunStarted():
                one_pass = event.config["order"] == "one-pass"
            case PerplexityMeasured():
                name = f"{event.dataset} {event.stage}"
                found |= {name: event.perplexity, f"{name} low": event.low, f"{name} high": event.high}
            case ZeroShotMeasured():
                found |= {f"{event.task} {metric} {event.stage}": value for metric, value in event.metrics.items()}
            case LayerInitialised():
                initial += event.seconds
            case SubBlockRebuilt():
                rebuilt += event.seconds
                found["peak_memory"] = max(event.peak_memory, found.get("peak_memory", 0))
            case RunFinished():
                found |= {"weights": event.weights, "zeros": event.zeros}
    found["seconds"] = rebuilt if one_pass else initial + rebuilt  # in one pass, that of a rebuild includes the masks
    return found


def perplexity_columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The names of the columns that have a perplexity, in order."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if f"{name} low" in names]


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows with the columns of all of them; what a row does not have is empty."""
    names = dict.fromkeys(name for row in rows for name in row if name not in MEASURED)
    columns = [*names, *(name for name in MEASURED if any(name in row for row in rows))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _with_interval(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    low, high = row[f"{name} low"], row[f"{name} high"]
    return f"{row[name]:.3f}" + ("" if low is None else f" ({low:.2f}-{high:.2f})")
