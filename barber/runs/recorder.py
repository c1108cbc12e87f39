"""Write a run directory during the run (layout: directory.py), so that it can be resumed after the process was killed.

For each event, the recorder writes the digests first, then the files of the layer, then the copies for readers, and the
line in events.jsonl last: all files of a recorded event are complete.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from barber.atomic_files import append, draft_json, hasher, make_folder, reason_and_remedy, sync_folder, write_json
from barber.errors import UserError
from barber.events import (
    Event,
    LayerInitialised,
    PerplexityMeasured,
    Progress,
    RunStarted,
    Stage,
    SubBlockRebuilt,
    TextGenerated,
    ZeroShotMeasured,
    ZeroShotSkipped,
)
from barber.runs.checksums import CHECKSUMS, ENVIRONMENT, EVENTS, JOB, commit
from barber.runs.states import drafted_layer
from barber.runs.writer_lock import LOCK, WRITER

if TYPE_CHECKING:
    from barber.job_spec import JobSpec


BEFORE_JOB = {
    "masks",
    "saliency",
    LOCK,
    WRITER,
    CHECKSUMS,
    ENVIRONMENT,
    *(f"{name}.part" for name in (WRITER, ENVIRONMENT, JOB)),
}


def is_new(path: Path) -> bool:
    """Whether a folder can become a run directory: it is empty, or has only files written before the job."""
    return path.is_dir() and all(
        place.name in BEFORE_JOB and not (place.is_dir() and any(place.iterdir())) for place in path.iterdir()
    )


def create(path: Path, spec: JobSpec | None = None, environment: dict | None = None) -> Path:
    """Make a new run directory; UserError if it cannot be written or holds something already.

    spec: the job, from which the run can be resumed. environment: see environment.py.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not is_new(path):
            raise UserError(f"Run directory {path} is not empty: give a new or empty folder.")
        sync_folder(path.parent)
        for part in ("masks", "saliency"):
            (path / part).mkdir(exist_ok=True)
        for name, data in ((ENVIRONMENT, environment), (JOB, spec and spec.to_dict())):
            if data:
                draft_json(path / name, data)
                commit(path, [name])
    except OSError as error:
        raise UserError(
            f"Run directory {path} cannot be written ({error.strerror}): give a folder you may write."
        ) from None
    return path


def record(path: Path, events: Generator[Event, None, None], skip: int = 0) -> Generator[Event, None, None]:
    """Pass a run's events on, writing each into the run directory before the consumer sees it.

    skip: how many events the directory holds already (see resume.Finished.event_count); `events` begins with them, and
    they are passed on only.
    """
    with closing(events):
        lines, number = hasher((path / EVENTS).read_bytes() if skip else b""), 0
        for event in events:
            passing = isinstance(event, Progress) or (isinstance(event, TextGenerated) and not event.done)
            number += not passing
            if not passing and number > skip:
                try:
                    line = (json.dumps(event.to_dict()) + "\n").encode()
                    lines.update(line)
                    commit(path, _draft(path, event), number, lines.hexdigest())
                    follow(path, event)
                    append(path / EVENTS, line)
                except (OSError, SafetensorError) as error:
                    raise UserError(f"The run cannot be written to {path} {reason_and_remedy(error)}.") from None
            yield event


def follow(path: Path, event: Event) -> None:
    """Write the copies of an event that readers find in separate files."""
    match event:
        case RunStarted():
            write_json(path / "config.json", event.to_dict())
        case PerplexityMeasured():
            _extend(path / "perplexity.json", event)
        case ZeroShotMeasured() | ZeroShotSkipped():
            _extend(path / "zeroshot.json", event)
        case TextGenerated():
            append(path / "generations.jsonl", (json.dumps(event.to_dict()) + "\n").encode())


def _extend(path: Path, event: Event) -> None:
    earlier = json.loads(path.read_text("utf-8")) if path.exists() else []
    write_json(path, [*earlier, event.to_dict()])


def _draft(path: Path, event: Event) -> list[str]:
    """Write the drafts of the files that an event changes, which also hold what was in them before; their names."""
    match event:
        case LayerInitialised():
            return drafted_layer(path, event.layer, Stage.INITIAL, event.masks, event.weights)
        case SubBlockRebuilt():
            name = f"saliency/layer_{event.layer:03}.json"
            make_folder(path / name)
            earlier = json.loads((path / name).read_text("utf-8")) if (path / name).exists() else {}
            draft_json(
                path / name, earlier | {key: module.histogram.to_dict() for key, module in event.modules.items()}
            )
            return [*drafted_layer(path, event.layer, Stage.REBUILT, event.masks, event.weights), name]
    return []
