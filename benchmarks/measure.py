"""The description of a benchmark (command, machine, tables), and processes measured from outside."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Used:
    """The time and memory of a process.

    code: of its exit. seconds: wall time; processor: seconds of the processor, in the program and the kernel. peak:
    bytes of resident memory at most; address: bytes of its address space at most, 0 where the system does not report
    it. output, errors: the end of its output.
    """

    code: int
    seconds: float
    processor: float
    peak: int
    address: int
    output: str
    errors: str

    @property
    def last(self) -> str:
        """The last line of what it wrote to stderr."""
        return (self.errors.replace("\r", "\n").strip().splitlines() or [""])[-1]


def measured(command: Sequence[str], limit: int | None = None) -> Used:
    """Run a command to its end in the project's root, in a process of its own.

    limit: bytes of its address space. If the command starts processes, times are sums over all of them, and the peak is
    that of the largest.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        launch = [sys.executable, "-I", "-S", ROOT / "benchmarks" / "launch.py", report, str(limit or 0), *command]
        done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, check=True)
        return Used(**json.loads(report.read_text("utf-8")), output=done.stdout, errors=done.stderr)


def this_command(script: str) -> str:
    """The command line of this process, as an item of a Markdown list."""
    return f"- command: `{shlex.join(['python', f'benchmarks/{script}', *sys.argv[1:]])}`"


def machine(device: torch.device | None = None) -> str:
    """The machine and the date, as an item of a Markdown list."""
    gpu = f"{torch.cuda.get_device_name(device)}, " if device is not None and device.type == "cuda" else ""
    return (
        f"- machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"used, {gpu}torch {torch.__version__}; {date.today().isoformat()}"
    )


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size else "-"


def write(text: str, path: Path | None) -> None:
    """Write a text to a file, or to stdout."""
    if path:
        path.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
