"""Write files atomically: a reader sees the old or the new content, also after a kill or a power loss.

All files get the mode of the umask, independent of the library that writes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from barber.errors import UserError, first_line

hasher = partial(hashlib.blake2b, digest_size=16)


def digest(path: Path) -> str:
    """The digest of a file's content; "" if the file does not exist."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, hasher).hexdigest()


def draft_of(path: Path) -> Path:
    """Path of the draft of a file, which is written first and then renamed."""
    return path.with_name(path.name + ".part")


def draft_json(path: Path, data: Any) -> None:
    """Write the draft of a JSON file."""
    draft_of(path).write_bytes(json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """Data as the text of a JSON file."""
    return (json.dumps(data, indent=1) + "\n").encode()


def commit_draft(path: Path) -> None:
    """Rename the draft of a file to the file: a reader sees the old or the new one, also after a power loss."""
    sync_file(draft_of(path))
    os.replace(draft_of(path), path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, on platforms that can."""
    with contextlib.suppress(OSError):  # Windows cannot open folders, and some file systems cannot sync them
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_folder(file: Path) -> None:
    """Create the folder of a file unless it exists; the parent folder must exist."""
    if not file.parent.exists():
        file.parent.mkdir()
        sync_folder(file.parent.parent)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    draft_json(path, data)
    commit_draft(path)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines to a file atomically."""
    draft_of(path).write_bytes(b"".join(lines))
    commit_draft(path)


def write_file(path: Path, data: bytes) -> None:
    """Write a file into a folder of the user atomically; the draft gets an unused name."""
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


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A draft to write into, which becomes the new file `path` at the end, or is deleted after any error.

    Raises UserError if there is something at `path` already, or if it cannot be written.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} is there already: give a new name with --output, since nothing is overwritten.")
        draft.touch(exist_ok=False)
        yield draft
        sync_file(draft)
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written {reason_and_remedy(error)}.") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def probe(folder: Path) -> int:
    """Write and remove a small file in a folder, and return its mode. Raises OSError, for example on a full disk."""
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
    """Append a line to a file and flush it to the disk."""
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def check_room(path: Path, needed: int) -> None:
    """UserError unless the disk of `path`, which need not exist, has `needed` bytes free."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{path} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left: make room or give a "
            "folder on another disk."
        )


def reason_and_remedy(error: Exception) -> str:
    """ "(reason): remedy" for a failed write, to end a sentence with."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    remedy = "make room there" if full else "see that the folder is there and may be written"
    return f"({getattr(error, 'strerror', None) or first_line(error)}): {remedy}"
