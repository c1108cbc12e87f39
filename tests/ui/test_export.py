"""Files of a run from the app: by its API, and only for who has the id of the run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from analysis.tables import tables
from barber.errors import UserError
from barber.runs.directory import RunDirectory, open_masks
from tests.support.app_server import SMALL, Server, serving
from tests.support.interrupted import interrupted
from tests.ui.test_hub import small
from ui import exports
from ui.exports import KINDS, export
from ui.hub import Hub

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    with serving(folder, GRADIO_TEMP_DIR=str(folder / "served")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server, tmp_path_factory) -> Client:
    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def run(client) -> str:
    return client.predict(**SMALL, api_name="/run")["run"]


def served(server: Server) -> list[Path]:
    """The files that the server has made."""
    return sorted(path for path in (server.runs.parent / "served").rglob("*") if path.is_file())


def test_the_files_of_a_run_are_those_of_its_directory(client, server, run):
    recorded = RunDirectory(server.runs / run)
    page = Path(client.predict(run=run, api_name="/report"))
    assert page.name == "barber-report.html"
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert str(server.runs) not in text
    assert run not in text, "a report that is passed on gives nobody access to the run"
    archive = client.predict(run=run, api_name="/tables")
    names = list(tables(recorded))
    with zipfile.ZipFile(archive) as files:
        assert files.namelist() == [f"{name}.csv" for name in names]
    data = Path(client.predict(run=run, form="json", api_name="/tables"))
    assert list(json.loads(data.read_text("utf-8"))) == names
    masks = open_masks(Path(client.predict(run=run, api_name="/masks")))
    assert masks.model_hash == recorded.environment["model_hash"]
    assert masks.counts()[0] == recorded.events()[-1].zeros
    assert not [file for file in served(server) if run in str(file)]


def test_a_file_is_made_once(client, server, run):
    client.predict(run=run, api_name="/masks")
    before = served(server)
    client.predict(run=run, api_name="/masks")
    assert served(server) == before


@pytest.mark.parametrize("endpoint", ["/report", "/tables", "/masks"])
@pytest.mark.parametrize("wrong", ["", "x" * 22, "../..", "/etc", "\0"])
def test_no_other_id_gives_a_file(client, server, run, endpoint, wrong):
    before = served(server)
    with pytest.raises(AppError) as caught:
        client.predict(run=wrong, api_name=endpoint)
    assert "run" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert served(server) == before


def test_the_run_itself_is_not_served(client, server, run):
    client.predict(run=run, api_name="/tables")
    (made,) = [file for file in served(server) if file.name == "barber-tables.zip"]
    assert httpx.get(f"{server.url}gradio_api/file={quote(str(made))}").status_code == 200
    for path in (server.runs / run / "events.jsonl", server.runs / run, made.parent, made.parent.parent):
        assert httpx.get(f"{server.url}gradio_api/file={quote(str(path))}").status_code == 403


def test_the_folder_of_the_files_ends_with_the_server(tmp_path):
    with serving(tmp_path, GRADIO_TEMP_DIR=str(tmp_path / "served")) as server:
        client = Client(server.url, verbose=False, download_files=tmp_path / "downloads")
        name = client.predict(**SMALL, api_name="/run")["run"]
        client.predict(run=name, api_name="/masks")
        assert served(server)
    assert served(server) == []


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub whose files are served from a folder of the test."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    exports._folder.cache_clear()
    yield Hub(tmp_path / "runs")
    exports._folder.cache_clear()


def test_a_refusal_does_not_say_where_the_run_is(hub):
    name = hub.new_run()
    interrupted("one-pass", hub.path(name), 10)
    assert hub.has_results(name)
    assert export(hub, name, "csv").exists()
    with pytest.raises(UserError, match="The run has not all masks yet") as caught:
        export(hub, name, "masks")
    assert str(hub.runs) not in str(caught.value)


def test_files_are_as_old_as_runs_at_most(hub, monkeypatch):
    name = hub.new_run()
    list(hub.run(name, small()))
    first, second = export(hub, name, "csv"), export(hub, name, "json")
    assert (first.name, second.name) == (KINDS["csv"].file, KINDS["json"].file)
    assert first.parent != second.parent
    monkeypatch.setattr(exports, "KEPT_SECONDS", -1)
    assert export(hub, name, "csv").exists(), "one that is asked for again is made again"
    assert not second.exists()


def test_the_few_masks_of_an_example_are_no_masks_file():
    hub = Hub()
    example = next(card.run for card in hub.history.cards(None) if card.example)
    with pytest.raises(UserError, match="masks of a few layers only"):
        export(hub, example, "masks")
    assert export(hub, example, "report").stat().st_size < 6_000_000
