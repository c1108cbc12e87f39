"""Every table of a recorded run, by name, and its files: CSV in one zip archive, or one JSON file.

A run without a rebuild, without perplexities, or one that was stopped, has the same tables; those of what it lacks have
no rows.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import choices, frames
from barber.events import (
    Event,
    Fate,
    LayerInitialised,
    Notice,
    SubBlockRebuilt,
    ZeroShotMeasured,
    ZeroShotSkipped,
)
from barber.job_spec import JobSpec
from barber.jobs.command import without_outputs
from barber.runs.checksums import JOB
from barber.runs.directory import RunDirectory
from barber.runs.resume import read_job

EPOCH = (1980, 1, 1, 0, 0, 0)  # of the files in an archive, so that equal tables are equal archives


def tables(run: RunDirectory) -> dict[str, pd.DataFrame]:
    """Name -> table, in the order of a report. Raises UserError if the run is damaged."""
    events = run.events()
    return {
        "settings": settings(run),
        "environment": _pairs(run.environment, "fact"),
        "notices": notices(events),
        "perplexity": frames.perplexities(events),
        "zero_shot": zero_shot(events),
        "zero_shot_skipped": zero_shot_skipped(events),
        "texts": frames.texts(events),
        "weights": frames.modules(events),
        "initial_masks": initial_masks(events),
        "mask_flips": frames.flips(events),
        "sub_blocks": frames.sub_blocks(events),
        "choices": choices.choices(events),
        "candidates": choices.candidates(events),
        "refits": frames.refits(events),
        "gains": gains(events),
        "saliency": histograms(events),
        "saliency_zero": without_saliency(events),
    }


def job_of(run: RunDirectory) -> JobSpec | None:
    """The job of a run, without the folders that it writes into; None for a run that has no job.json."""
    return without_outputs(read_job(run.path)) if (run.path / JOB).is_file() else None


def settings(run: RunDirectory) -> pd.DataFrame:
    """One row per setting of the pruning and of the job, without the folders that the job writes into."""
    started, job = run.config, job_of(run)
    values = {"model": started["model"], "device": started["device"], "dtype": started["dtype"]} | started["config"]
    left_out = {"prune", "run_dir", "save_model", "save_data", "cache_dir", "datasets_cache_dir"}
    further = job.to_dict() if job else {}
    values |= {name: value for name, value in further.items() if name not in left_out | values.keys()}
    return _pairs(values | {"calibration": started["calibration"] or None}, "setting")


def notices(events: Sequence[Event]) -> pd.DataFrame:
    """The notices of the run."""
    return pd.DataFrame({"notice": [event.message for event in events if isinstance(event, Notice)]}, dtype=object)


def zero_shot(events: Sequence[Event]) -> pd.DataFrame:
    """One row per task, stage and metric. stderr: NaN where lm-eval has none."""
    rows = [
        {
            "task": event.task,
            "stage": str(event.stage),
            "metric": metric,
            "value": value,
            "stderr": event.stderr.get(metric),
            "items": event.samples,
        }
        for event in events
        if isinstance(event, ZeroShotMeasured)
        for metric, value in event.metrics.items()
    ]
    return pd.DataFrame(rows, columns=["task", "stage", "metric", "value", "stderr", "items"]).astype({"stderr": float})


def zero_shot_skipped(events: Sequence[Event]) -> pd.DataFrame:
    """The tasks that were skipped, and why."""
    reasons = {event.task: event.reason for event in events if isinstance(event, ZeroShotSkipped)}
    return pd.DataFrame(list(reasons.items()), columns=["task", "reason"])


def initial_masks(events: Sequence[Event]) -> pd.DataFrame:
    """One row per weight matrix: weights and zeros of its initial mask.

    starved: whether it is an expert that too few calibration tokens reached. seconds: of its layer.
    """
    rows = [
        {
            "layer": event.layer,
            "name": name,
            "weights": counts.weights,
            "zeros": counts.zeros,
            "starved": name in event.starved,
            "seconds": event.seconds,
        }
        for event in events
        if isinstance(event, LayerInitialised)
        for name, counts in event.modules.items()
    ]
    return pd.DataFrame(rows, columns=["layer", "name", "weights", "zeros", "starved", "seconds"])


def gains(events: Sequence[Event]) -> pd.DataFrame:
    """The gains of the gaining pairs of each sub-block over their rank, see events.GainCurve."""
    rows = [
        {"layer": event.layer, "sub_block": event.sub_block, "rank": rank, "gain": gain}
        for event in _rebuilt(events)
        if event.curve
        for rank, gain in zip(event.curve.ranks, event.curve.gains, strict=True)
    ]
    return pd.DataFrame(rows, columns=["layer", "sub_block", "rank", "gain"])


def histograms(events: Sequence[Event]) -> pd.DataFrame:
    """The histograms of log10 saliency of all weight matrices: one row per bin, as in frames.saliency."""
    rows = [
        {"layer": event.layer, "name": name, "left": left, "right": right}
        | dict(zip(map(str, Fate), counts, strict=True))
        for event in _rebuilt(events)
        for name, module in event.modules.items()
        for left, right, *counts in zip(
            module.histogram.edges[:-1],
            module.histogram.edges[1:],
            *(module.histogram.of(fate) for fate in Fate),
            strict=True,
        )
    ]
    return pd.DataFrame(rows, columns=["layer", "name", "left", "right", *map(str, Fate)])


def without_saliency(events: Sequence[Event]) -> pd.DataFrame:
    """The weights of saliency zero, which are in no bin: one row per weight matrix and fate that has some."""
    rows = [
        {"layer": event.layer, "name": name, "fate": fate or "any", "weights": count}
        for event in _rebuilt(events)
        for name, module in event.modules.items()
        for fate, count in module.histogram.zeros.items()
        if count
    ]
    return pd.DataFrame(rows, columns=["layer", "name", "fate", "weights"])


def as_csv(found: Mapping[str, pd.DataFrame]) -> bytes:
    """A zip archive with a CSV file of each table, in UTF-8."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, frame in found.items():
            file = zipfile.ZipInfo(f"{name}.csv", EPOCH)
            file.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(file, frame.to_csv(index=False, lineterminator="\n"))
    return data.getvalue()


def as_json(found: Mapping[str, pd.DataFrame]) -> bytes:
    """A JSON object: name of a table -> its rows as objects. Numbers that are not finite are null."""
    rows = {name: [_plain(row) for row in frame.astype(object).to_dict("records")] for name, frame in found.items()}
    return (json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def _plain(row: dict) -> dict:
    return {
        key: None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
        for key, value in row.items()
    }


def _rebuilt(events: Sequence[Event]) -> Iterator[SubBlockRebuilt]:
    return (event for event in events if isinstance(event, SubBlockRebuilt))


def _pairs(values: Mapping[str, Any], title: str) -> pd.DataFrame:
    """One row per value, of which nested ones have names with dots; what is not given is left out."""
    rows = [row for row in _flat(values) if row[1] is not None]
    return pd.DataFrame(rows, columns=[title, "value"], dtype=object)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "; ".join(map(str, value)) if isinstance(value, list | tuple) else value
