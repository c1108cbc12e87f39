"""A run as one HTML page: python main.py report RUN_DIR [--output FILE.html]."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from analysis.report import report
from barber.atomic_files import new_file
from barber.console import path
from barber.errors import UserError
from barber.parsing import Parser
from barber.runs.directory import RunDirectory


def main(words: Sequence[str]) -> int:
    """Run the command; return its exit code. Raises UserError."""
    return _parser().obey(words, run)


def _parser() -> Parser:
    parser = Parser.of("report", "Write a run as one HTML page, which needs no network.")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=path, help="the folder of a recorded run")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=path,
        help="the new file, which ends in .html (default: the name of the folder with -report.html)",
    )
    return parser


def run(given: Namespace) -> str:
    """Write the page; return what was written. Raises UserError."""
    output = getattr(given, "output", None) or Path(f"{given.run_dir.resolve().name}-report.html")
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {output} does not end in .html, as a page is: give such a name.")
    page = report(RunDirectory(given.run_dir))
    with new_file(output) as draft:
        draft.write_bytes(page)
    return f"Wrote the report of the run to {output} ({len(page) / 2**20:.1f} MiB).\n"
