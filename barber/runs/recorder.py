"""Writing a run directory as the run goes (see runs.py for its layout), so that it can be resumed after any death.

For each event, its digests come first, then the files of its layer, then what readers want beside them, and its line
in events.jsonl last: an event that is there has everything that belongs to it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from barber.atomic_files import append, draft_json, sync_folder, write_json
from barber.errors import UserError, first_line
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
from barber.runs.checksums import EVENTS, JOB, commit, hasher
from barber.runs.states import drafted_layer

if TYPE_CHECKING:
    from barber.job_spec import JobSpec


def create(path: Path, spec: JobSpec | None = None) -> Path:
    """Make a new run directory; UserError if it cannot be written or holds something already.

    spec: the job, kept so that the run can be resumed without being told again what it was.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UserError(f"Run directory {path} is not empty: give a new or empty folder.")
        sync_folder(path.parent)
        if spec:
            draft_json(path / JOB, spec.to_dict())
            commit(path, [JOB])
        for part in ("masks", "saliency"):
            (path / part).mkdir()
    except OSError as error:
        raise UserError(
            f"Run directory {path} cannot be written ({error.strerror}): give a folder you may write."
        ) from None
    return path


def record(path: Path, events: Generator[Event], skip: int = 0) -> Iterator[Event]:
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
                    raise UserError(f"The run cannot be written to {path} ({first_line(error)}): make room.") from None
            yield event


def follow(path: Path, event: Event) -> None:
    """Write what can be told from the event alone: the copies of it that readers want in a place of their own."""
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
    known = json.loads(path.read_text("utf-8")) if path.exists() else []
    write_json(path, [*known, event.to_dict()])


def _draft(path: Path, event: Event) -> list[str]:
    """Write the drafts of the files that an event changes, which also hold what was in them before; their names."""
    match event:
        case LayerInitialised():
            return drafted_layer(path, event.layer, Stage.INITIAL, event.masks, event.weights)
        case SubBlockRebuilt():
            name = f"saliency/layer_{event.layer:03}.json"
            known = json.loads((path / name).read_text("utf-8")) if (path / name).exists() else {}
            draft_json(path / name, known | {key: module.histogram.to_dict() for key, module in event.modules.items()})
            return [*drafted_layer(path, event.layer, Stage.REBUILT, event.masks, event.weights), name]
    return []
