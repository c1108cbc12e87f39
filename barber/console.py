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
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)  # as the shell shows a program that the closed pipe ended


def start(program: str) -> int:
    """Import `program` ("module:function" without arguments) and call it as the whole work of this process.

    Returns its exit code; BROKEN_PIPE, silently, where the reader of stdout is gone, and 2 where stdout takes no more.
    Until `interruptible`, an interrupt ends the process at once: nothing has begun that would have to be put back.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell says to ignore it
        signal.signal(signal.SIGINT, _end_at_once)
    _open_streams()
    with redirect_stderr(_Aside(sys.stderr)):
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
    """Within it the first interrupt raises KeyboardInterrupt, and SIGTERM SystemExit, so that clean-up runs.

    A second interrupt does not break the clean-up off; a third ends the process at once.
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
    """UserError for an argument that is no text, which no file name, model or prompt of a run can be."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"Argument {argument!r} is no text in this locale ({sys.getfilesystemencoding()}): give UTF-8, and "
                "set PYTHONUTF8=1 where the locale is another."
            ) from None


def path(text: str) -> Path:
    """A path as it was typed; UserError where it begins with the home of a user who does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"Path {text!r} begins with the home of an unknown user: give the whole path.") from None


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
    """Give closed standard streams a place to go, and let all text be written whatever the locale's encoding."""
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
    """Let what is written to a standard stream go nowhere, also what is in its buffer when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


class _Aside:
    """stderr, which a run does not end for: once it takes no more, what is written to it goes nowhere."""

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
