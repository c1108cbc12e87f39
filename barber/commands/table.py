"""The table of commands, and how one of them runs: python main.py COMMAND ..."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from barber.console import interruptible
from barber.errors import UserError
from barber.parsing import Parser, check_values

OF_THE_APP = {"analysis", "jinja2", "pandas", "plotly"}  # which an installed engine lacks


class Command(NamedTuple):
    """A command: what it does, and the module that does it, which is imported when the command runs."""

    does: str
    module: str


class Module(Protocol):
    """What the module of a command has."""

    def add_arguments(self, parser: Parser) -> None:
        """Declare the arguments of the command."""

    def run(self, given: Namespace) -> str:
        """Carry the command out; return what it says at the end. Raises UserError."""


COMMANDS = {
    "apply": Command("apply the masks of a run to a model, and save the pruned model", "barber.commands.apply"),
    "masks": Command("write the masks of a run into one file, bit-packed", "barber.commands.masks"),
    "report": Command("write a run as one HTML page, which needs no network", "analysis.commands.report"),
    "tables": Command("write every table of a run, as CSV or as JSON", "analysis.commands.tables"),
}


def run_command(name: str, words: Sequence[str]) -> str:
    """Run a command of the table with its arguments; return what it says at the end. Raises UserError."""
    command = COMMANDS[name]
    try:
        module = cast(Module, import_module(command.module))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OF_THE_APP:
            raise
        raise UserError(
            f"The command {name} is not part of the installed engine, since it needs {error.name}: run `python main.py "
            f"{name}` in the checkout, with the packages of its requirements.txt."
        ) from None
    parser = Parser(
        prog=f"{Path(sys.argv[0]).name} {name}", description=f"{command.does[0].upper()}{command.does[1:]}."
    )
    module.add_arguments(parser)
    given = parser.parse_args(words)
    check_values(vars(given))
    with interruptible():
        return module.run(given)
