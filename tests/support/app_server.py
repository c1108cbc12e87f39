"""The real app as a process, for tests of its page and API."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_SECONDS = 180
SMALL = {"nsamples": 6, "seqlen": 64, "eval_windows": 6}  # settings of a run of about two seconds


@dataclass(frozen=True)
class Server:
    """A running app.

    Attributes:
        url: of the page.
        runs: the folder of its run directories.
        log: the file of its output.
    """

    url: str
    runs: Path
    log: Path


@contextmanager
def serving(folder: Path, *flags: str, **environment: str) -> Iterator[Server]:
    """Start `python app.py` with more flags on a free port; at the end, stop it. It must print no traceback.

    Runs are recorded in `folder`, unless the flags name another one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}/", folder / "runs", folder / "log.txt")
    command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port), "--runs", str(server.runs), *flags]
    with server.log.open("w") as log:
        # One thread: those of several apps on few cores wait for each other, and small models need no more.
        own = {"OMP_NUM_THREADS": "1"} | environment
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log)
        try:
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(20)
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


def _wait(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the app ended: {server.log.read_text()}"
        try:
            with urllib.request.urlopen(server.url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError(f"the app did not answer within {START_SECONDS} s: {server.log.read_text()}")
