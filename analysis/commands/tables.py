"""The tables of a run as files: python main.py tables RUN_DIR [--output FILE.zip]."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from analysis.tables import as_csv, as_json, tables
from barber.atomic_files import new_file
from barber.console import path
from barber.errors import UserError
from barber.parsing import Parser
from barber.runs.directory import RunDirectory

WRITERS = {".zip": as_csv, ".json": as_json}


def main(words: Sequence[str]) -> int:
    """Run the command; return its exit code. Raises UserError."""
    return _parser().obey(words, run)


def _parser() -> Parser:
    parser = Parser.of("tables", "Write every table of a run, as CSV or as JSON.")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=path, help="the folder of a recorded run")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=path,
        help="the new file: .zip for CSV files, or .json (default: the name of the folder with -tables.zip)",
    )
    return parser


def run(given: Namespace) -> str:
    """Write the file; return what was written. Raises UserError."""
    output = getattr(given, "output", None) or Path(f"{given.run_dir.resolve().name}-tables.zip")
    if output.suffix not in WRITERS:
        raise UserError(f"--output {output} ends neither in .zip nor in .json: give a name that does.")
    found = tables(RunDirectory(given.run_dir))
    with new_file(output) as draft:
        draft.write_bytes(WRITERS[output.suffix](found))
    return f"Wrote {len(found)} tables to {output}.\n"
