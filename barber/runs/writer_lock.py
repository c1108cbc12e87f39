"""A run directory has one writer: a lock that ends with its process."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from barber.atomic_files import write_json
from barber.errors import UserError

LOCK, WRITER = "run.lock", "writer.json"


@contextmanager
def one_writer(path: Path) -> Iterator[str]:
    """Lock a run directory for this process, and create the directory if it does not exist.

    Yields "", or a warning for the user where the file system does not support locks. Raises a UserError that names the
    other process that writes the run, or if the directory cannot be written.
    """
    lock = FileLock(path / LOCK, thread_local=False)  # another thread may close the stream
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
            warning = ""
        except (NotImplementedError, OSError) as error:
            if isinstance(error, Timeout | PermissionError):
                raise
            warning = (
                f"The file system of {path} has no locks ({error}): make sure that no other process writes this run."
            )
        write_json(path / WRITER, {"process": os.getpid(), "machine": platform.node()})
    except Timeout:
        raise UserError(
            f"The run in {path} is being written by {_other(path)}: wait until it has ended, or end it."
        ) from None
    except OSError as error:
        lock.release()
        raise UserError(
            f"Run directory {path} cannot be written ({error.strerror}): give a folder you may write."
        ) from None
    try:
        yield warning
    finally:
        lock.release()


def _other(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        writer = json.loads((path / WRITER).read_text("utf-8"))
        return f"process {writer['process']} on {writer['machine']}"
    return "another process"
