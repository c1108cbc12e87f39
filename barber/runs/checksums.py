"""How the files of a run are written, so that a killed process or a lost power supply never leaves one to be mistaken.

checksums.jsonl vouches for them. Each line is {"files": {name: digest}, "events": n}: with event n (from 1), the files
named have these contents; "events.jsonl" among them stands for its first n lines. A line without "events" vouches for
contents that hold for every event. A line is on the disk before the files that it names are, so that a file is always
either what it was or what a line says. Digests are blake2b of 16 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from barber.atomic_files import append, commit_draft, draft_of

CHECKSUMS, EVENTS, JOB = "checksums.jsonl", "events.jsonl", "job.json"

hasher = partial(hashlib.blake2b, digest_size=16)


def digest(path: Path) -> str:
    """The digest of a file, "" if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, hasher).hexdigest()


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


def commit(run: Path, names: Iterable[str], event: int | None = None, lines: str | None = None) -> None:
    """Put the drafts of files of a run in their places, after their digests are on the disk.

    names: relative to the run directory. event: number of the event that they belong to. lines: digest of events.jsonl
    with that event.
    """
    drafts = {name: digest(draft_of(run / name)) for name in names}
    append(run / CHECKSUMS, checksum_line(drafts | ({} if lines is None else {EVENTS: lines}), event))
    for name in drafts:
        commit_draft(run / name)
