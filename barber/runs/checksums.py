"""Checksums of the files of a run, which detect what a killed process or a power failure left incomplete.

Each line of checksums.jsonl is {"files": {name: digest}, "events": n}: after event n (counted from 1), the named files
have these digests; the digest of "events.jsonl" covers its first n lines. A line without "events" is valid for every
event. A line is flushed to disk before the files that it names, so a file has either its earlier content or the content
of a line. Digests are blake2b of 16 bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from barber.atomic_files import append, commit_draft, digest, draft_of
from barber.errors import UserError

CHECKSUMS, EVENTS = "checksums.jsonl", "events.jsonl"

JOB, ENVIRONMENT, SAVED = LASTING = "job.json", "environment.json", "saved.json"  # valid for every event


def checksum_line(files: dict[str, str], event: int | None = None) -> bytes:
    """A line of checksums.jsonl: names and digests, and the number of the event that they belong to."""
    return (json.dumps({"files": files} | ({} if event is None else {"events": event})) + "\n").encode()


def read_checksums(run: Path) -> list[dict]:
    """The valid lines of checksums.jsonl; incomplete and damaged lines are skipped."""
    lines = []
    for line in (run / CHECKSUMS).read_bytes().split(b"\n") if (run / CHECKSUMS).is_file() else ():
        with contextlib.suppress(ValueError):
            data = json.loads(line)
            files, event = (data.get("files"), data.get("events", 1)) if isinstance(data, dict) else (None, None)
            if isinstance(files, dict) and isinstance(event, int):
                lines.append(data)
    return lines


def read_verified(run: Path, name: str) -> dict | None:
    """Read a JSON object of a run that is valid for every event; None if the run does not have it.

    Raises UserError if no checksum matches: the file is damaged.
    """
    digests = {one["files"][name] for one in read_checksums(run) if name in one["files"]}
    if not digests and not (run / name).is_file():
        return None
    if digest(run / name) not in digests:
        raise UserError(f"The run in {run} is damaged ({name}): begin a new one.")
    return json.loads((run / name).read_text("utf-8"))


def commit(run: Path, names: Iterable[str], event: int | None = None, lines: str | None = None) -> None:
    """Record the digests of drafts of a run's files on disk, then rename the drafts to the files.

    names: relative to the run directory. event: number of the event that they belong to. lines: digest of events.jsonl
    with that event.
    """
    drafts = {name: digest(draft_of(run / name)) for name in names}
    append(run / CHECKSUMS, checksum_line(drafts | ({} if lines is None else {EVENTS: lines}), event))
    for name in drafts:
        commit_draft(run / name)
