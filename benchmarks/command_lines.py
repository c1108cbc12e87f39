"""Run hundreds of bad command lines; none may end with a traceback, by a signal, or not at all.

    python benchmarks/command_lines.py            # every line in a process forked from one that has imported all
    python benchmarks/command_lines.py --fresh    # every line in an interpreter of its own, as a user starts it
    python benchmarks/command_lines.py --every 9  # every ninth line; --only TEXT those with this text in them

Prints each line that ended otherwise than with 0, 2 or 130, and the count of each kind of end. The exit code is the
number of bad ends, 100 at most.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SECONDS = 120  # many times the time of a small run
MOST_MEMORY = 12 * 2**30  # address space of a process
SMALL = {"nsamples": "4", "seqlen": "32", "eval_windows": "2", "prune_method": "magnitude", "sparsity_ratio": "0.5"}
WHOLE = ("nsamples", "seqlen", "seed", "eval_windows", "rounds", "limit")
SHARES = ("sparsity_ratio", "threshold")
CHOICES = (
    "prune_method", "prune_metric", "prune_granularity", "refiner", "target", "allocation", "order", "compute", "dtype",
    "device", "zeroshot_tasks",
)  # fmt: skip
INPUTS = ("model", "calibration", "eval_data", "initial_masks", "resume")
OUTPUTS = ("save_data", "save_model", "save_ppl", "save_zeroshot", "run_dir")
BAD_NUMBERS = (
    "", " ", "-1", "nan", "sNaN", "-sNaN1", "inf", "-inf", "1e999", "-1e999", "9" * 400, "9" * 5000, "0x10", "1,5",
    "half", "\udcff", "\N{DEVANAGARI DIGIT ONE}", "\N{VULGAR FRACTION ONE HALF}", "1" + "0" * 30, "9223372036854775808",
)  # fmt: skip
BAD_PATTERNS = ("", ":", "2:", ":4", "0:4", "4:4", "2:0", "4:2", "99999:4", "2:4:8", "-1:4", "sNaN:4", "2:4%", "sNaN")
BAD_NAMES = ("", " ", "nothing", "\N{GREEK CAPITAL LETTER OMEGA}", "--", "wanda\n", "\udcff\udcfe", "n" * 5000)
BAD_SIZES = ("", "0", "-1GB", "1XB", "nanGB", "sNaN", "infGiB", "1e400GB", "9" * 400 + "GB", "GiB", "0.0001KB")
BAD_PATHS = (
    "", "~no-such-user/x", "n" * 300, "a/" * 3000, "/dev/null", "/dev/full", "/proc/1/nothing", "{workspace}/loop",
    "{workspace}/loop/x", "{workspace}/file/x", "{workspace}/closed/x", "{workspace}/empty", "\udcff", "/", ".", "..",
    "x\N{RIGHT-TO-LEFT OVERRIDE}y",
)  # fmt: skip
ENVIRONMENTS = (
    {"WORLD_SIZE": "2"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "zwei"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "0"},
    {"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    {"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "port"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"},
    {"RANK": "1"}, {"LOCAL_RANK": "7"}, {"MASTER_PORT": "x"},
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A command line: its arguments, and what the environment has besides."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.environment.items()] + [*self.arguments]
        return " ".join(word if len(word) < 60 else f"{word[:40]}...({len(word)})" for word in map(ascii, words))


def make_workspace(folder: Path) -> None:
    """What the lines name: a file, an empty folder, one that may not be entered, links that lead to each other."""
    (folder / "file").write_text("some text")
    (folder / "empty").mkdir()
    (folder / "closed").mkdir(mode=0)
    (folder / "loop").symlink_to(folder / "pool")
    (folder / "pool").symlink_to(folder / "loop")


def lines(workspace: Path) -> Iterator[Line]:
    """All bad command lines: one bad value each, in an otherwise small run of the bundled model."""
    for names, values in (
        (WHOLE, BAD_NUMBERS),
        (SHARES, BAD_NUMBERS),
        (("sparsity_type",), BAD_PATTERNS),
        (CHOICES, BAD_NAMES),
        (("max_memory",), BAD_SIZES),
        ((*INPUTS, *OUTPUTS), [path.replace("{workspace}", str(workspace)) for path in BAD_PATHS]),
    ):
        for name in names:
            for value in values:
                yield _line(name, value)
    for name in (*INPUTS, *OUTPUTS):
        for suffix in (".npy", ".txt", ".jsonl"):
            for path in ("~no-such-user/x", "n" * 252, f"{workspace}/loop", "\udcff"):
                yield _line(name, path + suffix)
    for name in (*WHOLE, *SHARES, *CHOICES, *INPUTS, *OUTPUTS):
        yield Line((*_flags(SMALL), f"--{name}"))
    for extra in (["--"], ["-"], ["model"], ["--nsamples=4=5"], ["--prune"], ["--no-such-flag", "1"], ["--delete"]):
        yield Line((*_flags(SMALL), *extra))
    for prompt in ("\udcff", "", "a" * 120_000, "\N{ZERO WIDTH JOINER}" * 500, "~no-such-user is a prompt"):
        yield Line((*_flags(SMALL), "--prompt", prompt))
    for environment in ENVIRONMENTS:
        yield Line(_flags(SMALL), environment)


def _line(name: str, value: str) -> Line:
    task = ["--zeroshot_tasks", "story_ending"]
    more = {"threshold": ["--prune_barber"], "limit": task, "save_zeroshot": [*task, "--limit", "2"]}
    barber = ("prune_metric", "prune_granularity", "refiner", "rounds", "target", "order")
    extra = more.get(name, ["--prune_barber"] if name in barber else [])
    return Line((*_flags({k: v for k, v in SMALL.items() if k != name}), *extra, f"--{name}={value}"))


def _flags(values: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in values.items())


def run(line: Line, folder: Path, fresh: bool) -> tuple[str, str]:
    """How a line ended and what it wrote to stderr: "0", "2", "130", "traceback", "signal ..." or "no end"."""
    log = folder / "stderr.txt"
    code = _fresh(line, log, folder) if fresh else _forked(line, log, folder)
    output = log.read_text("utf-8", "replace")
    if "Traceback" in output or "Exception ignored" in output:
        return "traceback", output
    if code is None:
        return "no end", output
    return (f"signal {-code}" if code < 0 else str(code)), output


def _fresh(line: Line, log: Path, folder: Path) -> int | None:
    command = [sys.executable, str(ROOT / "main.py"), *map(os.fsencode, line.arguments)]
    environment = os.environ | line.environment | {"PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        try:
            return subprocess.run(
                command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=file, timeout=SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def _forked(line: Line, log: Path, folder: Path) -> int | None:
    """As `_fresh`, without the seconds that the imports take."""
    child = os.fork()
    if not child:
        _be(line, log, folder)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be(line: Line, log: Path, folder: Path) -> None:
    """Become the process of a command line."""
    from barber.console import start

    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        os.chdir(folder)
        os.environ.update(line.environment)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.argv = ["main.py", *line.arguments]
        code = start("barber.cli:main")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def count(every: int = 1, fresh: bool = False, only: str = "") -> tuple[Counter[str], list[str]]:
    """The count of each kind of end, and the lines that ended badly with the end of their messages."""
    if not fresh:
        import datasets  # noqa: F401

        import barber.cli
        import barber.evaluation.zero_shot
        import barber.jobs.job  # noqa: F401
    ends: Counter[str] = Counter()
    bad = []
    with tempfile.TemporaryDirectory() as place:
        workspace = Path(place) / "workspace"
        workspace.mkdir()
        make_workspace(workspace)
        for line in [line for line in lines(workspace) if only in str(line)][::every]:
            with tempfile.TemporaryDirectory(dir=place) as folder:
                end, output = run(line, Path(folder), fresh)
            ends[end] += 1
            mistake = output.rstrip().rsplit("\r", 1)[-1].splitlines()[-1:]
            if end not in ("0", "2", "130") or (end == "2" and not (mistake and "error: " in mistake[0])):
                bad.append(f"{end}: {line}\n    {' | '.join(output.strip().splitlines()[-2:])[-300:]}")
                print(bad[-1], flush=True)
    return ends, bad


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="run only every N-th line")
    parser.add_argument("--only", default="", help="run only lines with this text in them")
    parser.add_argument("--fresh", action="store_true", help="start a new interpreter for every line")
    arguments = parser.parse_args(argv)
    ends, bad = count(arguments.every, arguments.fresh, arguments.only)
    print(f"{ends.total()} lines: {', '.join(f'{number} ended with {end}' for end, number in sorted(ends.items()))}.")
    return min(len(bad), 100)


if __name__ == "__main__":
    sys.exit(main())
