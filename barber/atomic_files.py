"""Write files so that a reader sees the old content or the new one, also after a kill or a power loss.

All files get the mode that the umask gives, whatever a library writes them with.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from barber.errors import UserError, first_line

hasher = partial(hashlib.blake2b, digest_size=16)


def digest(path: Path) -> str:
    """The digest of a file's content, "" if there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, hasher).hexdigest()


def draft_of(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".part")


def draft_json(path: Path, data: Any) -> None:
    """Write the draft of a JSON file."""
    draft_of(path).write_bytes(json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """Data as the text of a JSON file."""
    return (json.dumps(data, indent=1) + "\n").encode()


def commit_draft(path: Path) -> None:
    """Put the draft of a file in its place: whoever reads sees the old file or the new one, also after a power loss."""
    sync_file(draft_of(path))
    os.replace(draft_of(path), path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder last, where the platform can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems sync none
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_folder(file: Path) -> None:
    """Make the folder of a file unless it is there; its own folder must be."""
    if not file.parent.exists():
        file.parent.mkdir()
        sync_folder(file.parent.parent)


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    draft_json(path, data)
    commit_draft(path)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines as `write_json` does."""
    draft_of(path).write_bytes(b"".join(lines))
    commit_draft(path)


def write_file(path: Path, data: bytes) -> None:
    """Write a file into a folder of the user's: as `write_json` does, by a draft whose name nothing else there has."""
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def probe(folder: Path) -> int:
    """Write and remove a small file in a folder; the mode that files get there. Raises OSError, as on a full disk."""
    file = folder / f".{secrets.token_hex(8)}.probe"
    try:
        with file.open("xb") as written:
            written.write(bytes(2**16))
            written.flush()
            os.fsync(written.fileno())
        return file.stat().st_mode & 0o777
    finally:
        file.unlink(missing_ok=True)


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


def reason_and_remedy(error: Exception) -> str:
    """Why something could not be written and what to do, to end a sentence with: "(reason): remedy"."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    remedy = "make room there" if full else "see that the folder is there and may be written"
    return f"({getattr(error, 'strerror', None) or first_line(error)}): {remedy}"
