"""A run directory has one writer: a lock that dies with its process."""

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
    """Let this process alone write into a run directory, which is made if need be.

    Gives "", or a sentence for the user where the file system knows no locks. Raises UserError that names the process
    which writes there now, or if the directory cannot be written.
    """
    lock = FileLock(path / LOCK, thread_local=False)  # a stream may be closed by another thread than began it
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
            warning = ""
        except (NotImplementedError, OSError) as error:
            if isinstance(error, Timeout | PermissionError):
                raise
            warning = (
                f"The file system of {path} knows no locks ({error}): see that no other process writes into this run."
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
        told = json.loads((path / WRITER).read_text("utf-8"))
        return f"process {told['process']} on {told['machine']}"
    return "another process"
