"""How the files of a run are written, so that a killed process or a lost power supply never leaves one to be mistaken.

checksums.jsonl vouches for them. Each line is {"files": {name: digest}, "events": n}: with event n (from 1), the files
named have these contents; "events.jsonl" among them stands for its first n lines. A line without "events" vouches for
contents that hold for every event. A line is on the disk before the files that it names are, so that a file is always
either what it was or what a line says. Digests are blake2b of 16 bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from barber.atomic_files import append, commit_draft, digest, draft_of
from barber.errors import UserError

CHECKSUMS, EVENTS = "checksums.jsonl", "events.jsonl"

JOB, ENVIRONMENT, SAVED = LASTING = "job.json", "environment.json", "saved.json"  # hold for every event


def checksum_line(files: dict[str, str], event: int | None = None) -> bytes:
    """A line of checksums.jsonl: names and digests, and the number of the event that they belong to."""
    return (json.dumps({"files": files} | ({} if event is None else {"events": event})) + "\n").encode()


def read_checksums(run: Path) -> list[dict]:
    """The lines of checksums.jsonl; those that are torn or damaged vouch for nothing and are left out."""
    notes = []
    for line in (run / CHECKSUMS).read_bytes().split(b"\n") if (run / CHECKSUMS).is_file() else ():
        with contextlib.suppress(ValueError):
            data = json.loads(line)
            files, event = (data.get("files"), data.get("events", 1)) if isinstance(data, dict) else (None, None)
            if isinstance(files, dict) and isinstance(event, int):
                notes.append(data)
    return notes


def read_vouched(run: Path, name: str) -> dict | None:
    """A JSON object of a run that no event belongs to, None if the run has none.

    Raises UserError unless the checksums know it: it is damaged then.
    """
    known = {one["files"][name] for one in read_checksums(run) if name in one["files"]}
    if not known and not (run / name).is_file():
        return None
    if digest(run / name) not in known:
        raise UserError(f"The run in {run} is damaged ({name}): begin a new one.")
    return json.loads((run / name).read_text("utf-8"))


def commit(run: Path, names: Iterable[str], event: int | None = None, lines: str | None = None) -> None:
    """Put the drafts of files of a run in their places, after their digests are on the disk.

    names: relative to the run directory. event: number of the event that they belong to. lines: digest of events.jsonl
    with that event.
    """
    drafts = {name: digest(draft_of(run / name)) for name in names}
    append(run / CHECKSUMS, checksum_line(drafts | ({} if lines is None else {EVENTS: lines}), event))
    for name in drafts:
        commit_draft(run / name)
