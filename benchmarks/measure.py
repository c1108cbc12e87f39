"""What a benchmark says about itself, and processes that are measured from outside."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
MIB, GIB = 2**20, 2**30
INTERVAL = 0.01  # seconds between two looks at the address space of a process


@dataclass(frozen=True)
class Used:
    """What a process took.

    code: of its exit. seconds: wall time; processor: seconds of the processor, in the program and the kernel. peak:
    bytes of memory that it held at most; address: bytes of its address space at most, 0 where the system does not say.
    output, errors: the end of what it wrote.
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


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None, limit: int | None = None) -> Used:
    """Run a command to its end in the project's root, in a process of its own, with those it starts.

    limit: bytes of address space that it may have. The peak is that of the largest of its processes, and never less
    than what this process holds, of which it starts as a copy.
    """
    options = {} if limit is None else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started, address = time.perf_counter(), 0
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=output, stderr=errors, **options
        )
        while True:
            address = max(address, _address_space(process.pid))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(INTERVAL)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0), errors.seek(0)
        unit = 1 if sys.platform == "darwin" else 1024
        return Used(
            process.returncode,
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * unit,
            address,
            output.read(),
            errors.read(),
        )


def _address_space(process: int) -> int:
    """Bytes of the largest address space that a living process has had, 0 where that is not to be known."""
    try:
        for line in Path(f"/proc/{process}/status").read_text("utf-8").splitlines():
            if line.startswith("VmPeak:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def told(script: str) -> str:
    """The command that this process is, as a line of a list."""
    return f"- command: `{shlex.join(['python', f'benchmarks/{script}', *sys.argv[1:]])}`"


def machine(device: torch.device | None = None) -> str:
    """Where and when this was measured, as a line of a list."""
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
