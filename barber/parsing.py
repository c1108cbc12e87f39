"""Parsers of command lines: flags made from settings, errors in one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from barber.console import interruptible, path
from barber.errors import UserError
from barber.fields import Setting


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one sentence, like all UserErrors.

    Absent flags are left out of the namespace, so that defaults can depend on other flags.
    """

    def __init__(self, **options: Any) -> None:
        usual: dict[str, Any] = {"argument_default": argparse.SUPPRESS, "allow_abbrev": False}
        super().__init__(**usual | options)

    @classmethod
    def of(cls, command: str, does: str) -> Parser:
        """The parser of one of the commands: main.py COMMAND. does: a sentence."""
        return cls(prog=f"{Path(sys.argv[0]).name} {command}", description=does)

    def read(self, words: Sequence[str] | None) -> argparse.Namespace:
        """The arguments of a command line. Raises UserError for values that argparse accepts and Barber does not."""
        given = self.parse_args(words)
        _check_values(vars(given))
        return given

    def obey(self, words: Sequence[str], run: Callable[[argparse.Namespace], str]) -> int:
        """Read the arguments of a command, run it, and print the sentence that it returns; its exit code."""
        given = self.read(words)
        with interruptible():
            sys.stdout.write(run(given))
        return 0

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help.\n")

    def add_flag(self, flag: Setting) -> None:
        """Add the flag of a setting, with its help and default."""
        text = f"{flag.described}{flag.usual and f' (default {flag.usual})'}".replace("%", "%%")
        self.add_argument(f"--{flag.flag}", help=text, **_options(flag))


def _options(flag: Setting) -> dict[str, Any]:
    """Arguments of `add_argument` for a flag; the configuration checks bounds and the rest."""
    if flag.kind is bool:
        return {"action": "store_true"}
    if flag.closed:
        return {"choices": list(flag.choices)}
    kind = path if flag.kind is Path else flag.kind if flag.kind in (int, float) and not flag.words else str
    return {"type": kind, "metavar": flag.metavar or None}


def _check_values(given: dict[str, Any]) -> None:
    """UserError for values that argparse accepts: "--flag=--" as an empty list, and numbers beyond 64 bits."""
    for flag, value in given.items():
        if isinstance(value, list):
            raise UserError(f"--{flag} has no value: give one, see --help.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"The number given for --{flag} is not allowed: it must be below 2**63 in size.")
