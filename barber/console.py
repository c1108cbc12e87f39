"""The command line as a process: standard streams that may be closed, full or narrow, and interrupts at any moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

from barber.errors import UserError

TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)  # exit code of a process that SIGPIPE ended


def start(program: str) -> int:
    """Import `program` ("module:function" without arguments) and call it as the main function of this process.

    Returns its exit code; BROKEN_PIPE, silently, if the reader of stdout has ended, and 2 if stdout cannot be written.
    Until `interruptible`, an interrupt ends the process at once, since there is nothing to clean up.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless the parent process ignores it
        signal.signal(signal.SIGINT, _end_at_once)
    _open_streams()
    with redirect_stderr(_LossyStderr(sys.stderr)):
        try:
            try:
                return resolve_name(program)()
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _drop(1)
            return BROKEN_PIPE
        except OSError as error:
            _drop(1)
            sys.stderr.write(f"error: The output cannot be written ({error.strerror}): make room or redirect it.\n")
            return 2


@contextmanager
def interruptible() -> Iterator[None]:
    """In this context, the first interrupt raises KeyboardInterrupt, and SIGTERM SystemExit, so that clean-up runs.

    A second interrupt does not stop the clean-up; a third ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] in (signal.default_int_handler, _end_at_once):
        signal.signal(signal.SIGINT, _Interrupts())
    if before[signal.SIGTERM] is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end_in_order)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_arguments(arguments: Sequence[str]) -> None:
    """UserError for an argument that cannot be decoded as text."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"Argument {argument!r} is not text in this locale ({sys.getfilesystemencoding()}): give UTF-8, and "
                "set PYTHONUTF8=1 if the locale is not UTF-8."
            ) from None


def path(text: str) -> Path:
    """A path, with "~" expanded; UserError for the home folder of an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"Path {text!r} begins with the home folder of an unknown user: give the whole path.") from None


class _Interrupts:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, frame: object) -> None:
        self.count += 1
        if self.count == 1:
            raise KeyboardInterrupt
        if self.count > 2:
            _end_at_once(number, frame)


def _end_at_once(number: int, frame: object) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"Stopped.\n")
    os._exit(128 + number)


def _end_in_order(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def _open_streams() -> None:
    """Open closed standard streams on the null device, and escape text that the locale cannot encode."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 (open as long as the process)
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _drop(number: int) -> None:
    """Redirect a standard stream to the null device, including its buffer when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


class _LossyStderr:
    """stderr that discards output once it cannot be written, so that the run continues."""

    def __init__(self, stream) -> None:
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            _drop(2)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _drop(2)
