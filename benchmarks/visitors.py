"""Many visitors of the app and a hostile one: whether each gets the result of its own run, and how long each waits.

    python benchmarks/visitors.py [--visitors 20]

Starts the app as a server that others can reach. Visitors ask for runs of the bundled model with different seeds,
at the same time, while a hostile visitor asks for endless runs, files of the server, uploads, long prompts and markup.
Prints the waiting times with and without the hostile visitor, and whether each perplexity equals that of the same run
alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.support.app_server import SMALL, Server, serving

ASKED = {"method": "wanda", "sparsity": "50%", "granularity": "block", "threshold": 0.2} | SMALL
LONG = {"nsamples": 10_000, "seqlen": 128, "eval_windows": 10_000}
ENDLESS = ({"nsamples": 10**8}, {"eval_windows": 10**6}, {"rounds": 10**9}, {"nsamples": 10**300}, {"seed": 10**40})
FOREIGN = (
    {"model": "/etc"}, {"model": "../.."}, {"model": "~root/x"}, {"model": "n" * 900}, {"model": "a\0b"},
    {"calibration": "/etc/passwd"}, {"calibration": "/etc/nothing.txt"}, {"evaluation": "storyteller,/etc/hosts.txt"},
    {"model": "<a href='https://example.org'>x</a>"}, {"model": "x" * 100_000},
)  # fmt: skip


def visit(server: Server, seed: int) -> tuple[list[float], float]:
    """The perplexities of a visitor's run, and the seconds until it had them."""
    client = Client(server.url, verbose=False)
    started = time.monotonic()
    summary = client.predict(**ASKED | {"seed": seed}, api_name="/run")
    assert summary["config"]["method"] == "wanda"
    return [row["perplexity"] for row in summary["perplexity"]], time.monotonic() - started


class Hostile:
    """Sends requests until it is stopped.

    answers: the count of each kind of answer. slowest: seconds until an answer.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.answers: Counter[str] = Counter()
        self.slowest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Hostile:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        client = Client(self.server.url, verbose=False)
        while not self._over.is_set():
            for wrong in (*ENDLESS, *FOREIGN):
                self._timed("settings", self._asked(client, wrong))
            self._timed("upload", lambda: self._posted("upload", files={"files": b"x" * 10_000_000}))
            self._timed("large", lambda: self._posted("queue/join", content=b"[" * 5_000_000))
            self._timed("nested", lambda: self._posted("queue/join", content=b"[" * 100_000))
            self._timed("foreign host", lambda: self._posted("call/run", headers={"host": "evil.example"}))
            job = client.submit(**ASKED | LONG, api_name="/run")
            time.sleep(1)
            job.cancel()
            self.answers["long run, cancelled"] += 1

    def _asked(self, client: Client, wrong: dict) -> Callable[[], str]:
        def ask() -> str:
            try:
                client.predict(**ASKED | wrong, api_name="/run")
            except AppError:
                return "refused"
            except Exception as error:  # a request that is too large, or no JSON, is answered before it is read
                return f"refused ({type(error).__name__})"
            return f"ALLOWED {str(wrong)[:60]}"

        return ask

    def _posted(self, route: str, **what: object) -> str:
        if "content" in what:
            what["headers"] = {"content-type": "application/json"}
        return str(httpx.post(f"{self.server.url}gradio_api/{route}", timeout=60, **what).status_code)

    def _timed(self, what: str, ask: Callable[[], str]) -> None:
        started = time.monotonic()
        self.answers[f"{what}: {ask()}"] += 1
        self.slowest = max(self.slowest, time.monotonic() - started)


def together(server: Server, seeds: range) -> tuple[dict[int, list[float]], list[float]]:
    """What visitors with these seeds got, all at once, and how long each waited, the longest last."""
    with ThreadPoolExecutor(len(seeds)) as pool:
        results = list(pool.map(lambda seed: visit(server, seed), seeds))
    return dict(zip(seeds, (found for found, _ in results), strict=True)), sorted(seconds for _, seconds in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    seeds = range(parser.parse_args().visitors)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), "--host", "0.0.0.0") as server:
        alone = {seed: visit(server, seed)[0] for seed in seeds}
        _, undisturbed = together(server, seeds)
        with Hostile(server) as hostile:
            found, disturbed = together(server, seeds)
    right = sum(found[seed] == alone[seed] for seed in seeds)
    print(f"{right} of {len(seeds)} visitors got the figures of their own run.")
    for name, seconds in (("without", undisturbed), ("with", disturbed)):
        print(f"{name} the hostile one: median {seconds[len(seconds) // 2]:.1f} s, longest {seconds[-1]:.1f} s")
    print(f"The hostile one was answered: {dict(sorted(hostile.answers.items()))}; at the latest after")
    print(f"{hostile.slowest:.1f} s.")
    return 0 if right == len(seeds) and not any("ALLOWED" in answer for answer in hostile.answers) else 1


if __name__ == "__main__":
    sys.exit(main())
