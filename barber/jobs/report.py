"""The plain-text summary of a job, folded from its events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from barber.atomic_files import json_bytes, reason_and_remedy, write_file
from barber.errors import UserError
from barber.events import (
    Estimated,
    Event,
    Notice,
    PerplexityMeasured,
    RunFinished,
    Saved,
    SubBlockRebuilt,
    TextGenerated,
    ZeroShotMeasured,
    ZeroShotSkipped,
)
from barber.registry import BARBER

if TYPE_CHECKING:
    from barber.job_spec import JobSpec


def gap_recovered(dense: float, initial: float, rebuilt: float) -> float | None:
    """Share of the log-perplexity gap between dense and initial that the rebuild closed; None where there is no gap."""
    gap = math.log(initial) - math.log(dense)
    return (math.log(initial) - math.log(rebuilt)) / gap if gap > 0 else None


def format_estimate(event: Estimated) -> str:
    """One line for the user: the expected time and memory of a run."""
    sizes = {"on the device": event.device_bytes, "in the host's memory": event.host_bytes, "on disk": event.disk_bytes}
    places = [f"{format_bytes(size)} {where}" for where, size in sizes.items() if size]
    how = ", the model layer by layer" if event.streamed else ""
    time = format_duration(max(event.seconds, 1))
    return f"Expected on {event.device}: about {time} in all, {', '.join(places)}{how}."


def format_bytes(size: float) -> str:
    """A size in GiB, MiB or KiB with at most three digits, like "12.6 GiB" or "55 MiB"."""
    unit, name = next(
        ((2**power, name) for power, name in ((30, "GiB"), (20, "MiB")) if size >= 2**power), (2**10, "KiB")
    )
    value = max(size / unit, 1)
    return f"{value:.{0 if value >= 100 or name != 'GiB' else 1}f} {name}"


def format_duration(seconds: float) -> str:
    """Seconds as text, in seconds, minutes or hours, like "12 min"."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


class Report:
    """Takes a job's events one by one; `text` is the report for a terminal."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.events: list[Event] = []
        self.model_path: Path | None = None

    def add(self, event: Event) -> None:
        kept = (Notice, PerplexityMeasured, ZeroShotMeasured, ZeroShotSkipped, RunFinished, Saved)
        if isinstance(event, SubBlockRebuilt):  # without histograms and curves: of hundreds of layers, many numbers
            self.events.append(replace(event, modules={}, rounds=[], curve=None).bare())
        elif isinstance(event, kept) or (isinstance(event, TextGenerated) and event.done):
            self.events.append(event.bare())
        if isinstance(event, Saved) and event.what == "model":
            self.model_path = Path(event.path)

    def of(self, kind: type[Event]) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def has_results(self) -> bool:
        """Whether anything was measured that would be lost without a report."""
        return any(isinstance(event, PerplexityMeasured | ZeroShotMeasured | SubBlockRebuilt) for event in self.events)

    def text(self) -> str:
        parts = (self.run(), self.sub_blocks(), self.perplexities(), self.texts(), self.zero_shot(), self.saved())
        return "\n".join(part for part in parts if part)

    def run(self) -> str:
        """What was done to which model, and the exact count of zeros."""
        config = self.spec.prune
        lines = [f"{self.spec.model}: {config or 'dense, nothing pruned'}"]
        for event in self.of(RunFinished):
            lines.append(
                f"{event.zeros} of {event.weights} prunable weights are pruned ({event.zeros / event.weights:.4%}), "
                f"{event.swaps} pairs were swapped, {event.seconds:.1f} s"
            )
            if event.zero_valued is not None and event.zero_valued > event.zeros:
                kept = event.zero_valued - event.zeros
                lines.append(f"{kept} kept weights are zero, too, so {event.zero_valued} weights are zero in all")
        return "\n".join([*lines, *(f"Note: {event.message}" for event in self.of(Notice))]) + "\n"

    def sub_blocks(self) -> str:
        rows = [
            [
                f"{event.layer}", event.sub_block, f"{event.error_before:.3e}", f"{event.error_after:.3e}",
                f"{event.candidates}", f"{event.swaps}", f"{event.seconds:.1f}", f"{event.peak_memory / 2**20:.0f}",
            ]
            for event in self.of(SubBlockRebuilt)
        ]  # fmt: skip
        head = ["layer", "sub-block", "error before", "after", "candidates", "swaps", "seconds", "peak MiB"]
        return table(head, rows)

    def perplexities(self) -> str:
        rows: dict[str, dict[str, PerplexityMeasured]] = {}
        for event in self.of(PerplexityMeasured):
            rows.setdefault(event.dataset, {})[event.stage] = event
        return table(
            ["perplexity", "seqlen", "tokens", "window start", "dense", "initial", "rebuilt", "gap recovered"],
            [self._perplexity_row(dataset, stages) for dataset, stages in rows.items()],
        )

    @staticmethod
    def _perplexity_row(dataset: str, stages: dict[str, PerplexityMeasured]) -> list[str]:
        value = {stage: event.perplexity for stage, event in stages.items()}
        share = gap_recovered(**value) if len(value) == 3 and all(map(math.isfinite, value.values())) else None
        first = next(iter(stages.values()))
        shown = [_with_interval(stages[stage]) if stage in value else "-" for stage in ("dense", "initial", "rebuilt")]
        begins = next((event.window_start for event in stages.values() if event.window_start), "-")
        sizes = [f"{first.seqlen}", f"{first.tokens}", begins]
        return [dataset, *sizes, *shown, "-" if share is None else f"{share:.1%}"]

    def texts(self) -> str:
        lines: dict[str, list[str]] = {}
        for event in self.of(TextGenerated):
            lines.setdefault(event.prompt, []).append(f"  {event.stage + ':':9}{event.text.strip()}")
        return "\n".join("\n".join([f"Prompt: {prompt}", *texts, ""]) for prompt, texts in lines.items())

    def zero_shot(self) -> str:
        rows = [
            [
                e.task,
                e.stage,
                metric,
                f"{value:.4f}",
                f"{e.stderr[metric]:.4f}" if e.stderr.get(metric) is not None else "-",
                f"{e.samples}",
            ]
            for e in self.of(ZeroShotMeasured)
            for metric, value in e.metrics.items()
        ]
        reasons = {event.task: event.reason for event in self.of(ZeroShotSkipped)}
        skipped = "".join(f"{task}: skipped. {reason}\n" for task, reason in reasons.items())
        return table(["task", "model", "metric", "value", "stderr", "items"], rows) + skipped

    def saved(self) -> str:
        return "".join(f"Saved the {event.what} to {event.path}.\n" for event in self.of(Saved))


def _with_interval(event: PerplexityMeasured) -> str:
    """A perplexity, and in brackets its 95 % interval where there is one."""
    if event.low is None or event.high is None:
        return f"{event.perplexity:.3f}"
    return f"{event.perplexity:.3f} ({event.low:.2f}-{event.high:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, numbers to the right; empty without rows."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 or not _numeric(row[i]) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line, row in [(head, rows[0]), *((row, row) for row in rows)]
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] == "-"


def write_results(summary: Report, ppl: Path | None, zeroshot: Path | None) -> None:
    """Write perplexities and zero-shot results: a table under the published name, and JSON.

    Raises UserError where they cannot be written.
    """
    config = summary.spec.prune
    after = config and (config.threshold if config.refiner == BARBER else config.refiner)
    name = f"log_{config.method}_{after}.txt" if config else "log_dense.txt"
    for folder, text, kinds, json_name in (
        (ppl, summary.perplexities(), (PerplexityMeasured,), "perplexity.json"),
        (zeroshot, summary.zero_shot(), (ZeroShotMeasured, ZeroShotSkipped), "zeroshot.json"),
    ):
        if folder is None:
            continue
        rows = [event.to_dict() for kind in kinds for event in summary.of(kind)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / name, (summary.run() + "\n" + text).encode())
            write_file(folder / json_name, json_bytes(rows))
        except OSError as error:
            raise UserError(f"The results cannot be written to {folder} {reason_and_remedy(error)}.") from None
