"""Write files so that a reader sees the old content or the new one, also after a kill or a power loss."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from barber.errors import UserError


def draft_of(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".part")


def draft_json(path: Path, data: Any) -> None:
    """Write the draft of a JSON file."""
    draft_of(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def commit_draft(path: Path) -> None:
    """Put the draft of a file in its place: whoever reads sees the old file or the new one, also after a power loss."""
    with draft_of(path).open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(draft_of(path), path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last, where the platform can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems sync none
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    draft_json(path, data)
    commit_draft(path)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines as `write_json` does."""
    draft_of(path).write_bytes(b"".join(lines))
    commit_draft(path)


def append(path: Path, line: bytes) -> None:
    """Add a line to a file and wait until it is on the disk."""
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def check_room(path: Path, needed: int) -> None:
    """UserError unless the disk that `path` is or will be on has room for `needed` bytes."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{path} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left: make room or give a "
            "folder on another disk."
        )
