"""A public app: allowed settings and hosts, and protection of visitors from each other."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from barber.errors import UserError
from barber.evaluation.generation import check_prompt
from barber.events import Progress
from barber.models.loading import load
from benchmarks.visitors import ASKED, Hostile, together, visit
from tests.support.app_server import Server, serving
from tests.ui.test_hub import small
from ui import settings, visitors
from ui.guard import MOST_BYTES
from ui.hub import Hub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server that listens on all interfaces, with the allowed host name barber.example."""
    with serving(tmp_path_factory.mktemp("app"), "--host", "0.0.0.0", "--allow-host", "barber.example") as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server.url, verbose=False)


def refusal(client: Client, **wrong: object) -> str:
    with pytest.raises(AppError) as caught:
        client.predict(**ASKED | wrong, api_name="/run")
    return str(caught.value)


@pytest.mark.parametrize("setting", ["model", "calibration", "evaluation"])
def test_a_refusal_does_not_reveal_which_files_exist(client, setting, tmp_path):
    (tmp_path / "there.txt").write_text("secret")
    messages = [
        refusal(client, **{setting: str(path)}).replace(repr(str(path)), "")
        for path in (tmp_path / "there.txt", tmp_path / "gone.txt", tmp_path, Path("/"), Path("~root/x"))
    ]
    assert len(set(messages)) == 1
    assert "cannot be used here" in messages[0]


@pytest.mark.parametrize("folder", ["barber/kernels", "assets/storyteller"])
def test_a_folder_beside_the_app_is_taken_for_a_hub_id(client, folder):
    assert (ROOT / folder).is_dir()
    nowhere = "nobody/nothing"
    assert refusal(client, model=folder).replace(folder, "") == refusal(client, model=nowhere).replace(nowhere, "")


def test_the_owner_may_allow_paths(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("Once upon a time there was a dog. " * 200)
    with serving(tmp_path, "--host", "0.0.0.0", "--allow-paths") as server:
        summary = Client(server.url, verbose=False).predict(**ASKED | {"evaluation": str(text)}, api_name="/run")
    assert {row["dataset"] for row in summary["perplexity"]} == {"mine.txt"}


@pytest.mark.parametrize(
    ("host", "more", "paths"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("localhost", {}, True),
        ("0.0.0.0", {}, False),
        ("192.168.1.2", {}, False),
        ("127.0.0.1", {"allow_host": ["barber.example"]}, False),  # behind a proxy
        ("0.0.0.0", {"allow_paths": True}, True),
    ],
)
def test_only_local_apps_allow_paths_by_default(monkeypatch, tmp_path, host, more, paths):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(visitors.ALLOW_PATHS, "0")
    flags = {"host": host, "allow_host": [], "allow_paths": False, "minutes": None, "runs": None}
    policy = visitors.settle(Namespace(**flags | more))
    assert policy.paths == paths == visitors.may_name_paths()
    alone = host in ("127.0.0.1", "::1", "localhost") and "allow_host" not in more
    assert policy.alone == alone == (policy.turn is None)
    assert policy.runs == (tmp_path / "runs" if alone else None)
    monkeypatch.setenv("SPACE_ID", "someone/barber")
    assert not visitors.may_name_paths()


def test_only_known_hosts_are_answered(server):
    port = httpx.URL(server.url).port

    def answer(host: str) -> int:
        return httpx.get(server.url, headers={"host": host, "origin": f"http://{host}"}).status_code

    for host in ("127.0.0.1", f"localhost:{port}", f"[::1]:{port}", "10.0.0.7", "barber.example"):
        assert answer(host) == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "[x", ""):
        assert answer(host) == 400


def test_no_file_and_no_endless_request_is_taken(server):
    upload = f"{server.url}gradio_api/upload"
    for kind in ("multipart/form-data; boundary=x", "Multipart/Form-Data;boundary=x"):
        answer = httpx.post(upload, content=b"--x--", headers={"content-type": kind})
        assert (answer.status_code, answer.text) == (403, "Uploads are not accepted.")
    answer = httpx.post(upload, files={"files": b"x" * (MOST_BYTES + 1)})
    assert answer.status_code in (403, 413)

    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * (MOST_BYTES // 10)

    join = f"{server.url}gradio_api/queue/join"
    for content in (b" " * (MOST_BYTES + 1), endless()):
        answer = httpx.post(join, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nsamples": 10**8}, "Samples"),
        ({"eval_windows": 10**6}, "Evaluation windows"),
        ({"rounds": 10**9}, "Rounds"),
        ({"seed": 10**300}, "Seed"),
        ({"model": "a\0b"}, "model"),
        ({"model": "n" * 1001}, "model"),
        ({"calibration": "\ud800"}, "calibration"),
    ],
)
def test_excessive_requests_are_refused_at_once(wrong, message):
    with pytest.raises(UserError, match=message):
        settings.to_spec(settings.DEFAULTS | wrong)


def test_a_prompt_is_refused_by_its_length_before_it_is_read():
    with pytest.raises(UserError, match="shorten it"):
        visitors.check_prompt("a" * (visitors.MOST_IN_PROMPT + 1))
    loaded = load()
    with pytest.raises(UserError, match="1000000 characters"):
        check_prompt(loaded.model, None, "a" * 1_000_000)  # without a tokenizer


def test_the_time_limit_of_a_run_applies_only_if_others_wait(tmp_path):
    hub = Hub(tmp_path, turn=0.0)
    list(hub.run(hub.new_run(), small()))
    first, second = (hub.run(hub.new_run(), small()) for _ in range(2))
    while not (isinstance(event := next(first), Progress) and event.phase == "data"):
        pass
    assert next(second).phase == "waiting"
    with pytest.raises(UserError, match="while others waited"):
        list(first)
    assert list(second)[-1].to_dict()


def test_a_hostile_visitor_neither_blocks_nor_changes_other_runs(server):
    """benchmarks/visitors.py does this with twenty visitors."""
    seeds = range(4)
    alone = {seed: visit(server, seed)[0] for seed in seeds}
    with Hostile(server) as hostile:
        found, seconds = together(server, seeds)
    assert found == alone
    assert max(seconds) < 60
    assert not any("ALLOWED" in answer for answer in hostile.answers)
    assert hostile.answers["foreign host: 400"] >= 1


def test_a_stopped_server_leaves_no_temporary_folder(tmp_path):
    """Where others can reach the app and no folder is given, runs are deleted when it ends, also on SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "app.py", "--host", "0.0.0.0", "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(scratch), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/").status_code == 200:
                    break
            time.sleep(0.3)
        assert list(scratch.glob("barber-runs-*"))
    finally:
        process.terminate()
        process.wait(30)
    assert not list(scratch.glob("barber-*"))
