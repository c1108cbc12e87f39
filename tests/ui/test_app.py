"""The app through its API."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from barber.events import RunFinished, Stage, SubBlockRebuilt
from barber.runs.directory import RunDirectory
from tests.support.app_server import SMALL, Server, serving
from ui import settings

pytestmark = pytest.mark.process

ASKED = {"method": "wanda", "sparsity": "50%", "granularity": "block", "threshold": 0.2} | SMALL


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("app")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def outputs(client) -> list[dict]:
    """All outputs of one run on the bundled model."""
    job = client.submit(**ASKED, api_name="/run")
    job.result(timeout=120)
    return job.outputs()


def test_the_endpoints_are_documented(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/run", "/matrix", "/report", "/tables", "/masks"}
    for name, parameters in {"/report": ["run"], "/tables": ["run", "form"], "/masks": ["run"]}.items():
        assert [p["parameter_name"] for p in endpoints[name]["parameters"]] == parameters
        assert endpoints[name]["returns"][0]["python_type"]["type"].startswith("dict(path: str")
        assert "by the id that /run returned" in endpoints[name]["description"]
    matrix = {p["parameter_name"]: p["python_type"]["type"] for p in endpoints["/matrix"]["parameters"]}
    numbers = dict.fromkeys(("layer", "row", "column", "size"), "int")
    assert matrix == {"run": "str", "module": "str"} | numbers
    assert [p["parameter_name"] for p in endpoints["/run"]["parameters"]] == list(settings.FIELDS)
    assert all(p["parameter_has_default"] for p in endpoints["/run"]["parameters"])


def test_a_run_streams_its_progress_and_ends_with_a_summary(outputs):
    *progress, summary = outputs
    shares = [value["share_done"] for value in progress]
    assert shares == sorted(shares)
    assert len(shares) > 1
    assert {"phase", "where", "seconds_left"} <= progress[0].keys()
    assert summary["finished"]
    assert summary["model"] == "storyteller"
    assert summary["config"]["method"] == "wanda"
    assert summary["zeros"] == sum(row["zeros"] for row in summary["flips"])
    assert summary["zeros"] == pytest.approx(summary["weights"] / 2, rel=0.01)
    assert sum(row["grown"] for row in summary["flips"]) == sum(row["cut"] for row in summary["flips"]) > 0


def test_a_run_measures_all_three_stages_and_keeps_its_directory(outputs, server):
    summary = outputs[-1]
    values = {row["stage"]: row["perplexity"] for row in summary["perplexity"]}
    assert list(values) == [str(stage) for stage in Stage]
    assert values["dense"] < values["initial"]
    run = RunDirectory(server.runs / summary["run"])
    assert run.config["config"] == summary["config"]
    assert {name for la in run.layers() for name in run.masks(la, Stage.REBUILT)} == {
        row["name"] for row in summary["flips"]
    }


def test_a_matrix_is_given_as_plain_values(client, server, outputs):
    run = outputs[-1]["run"]
    row = max(outputs[-1]["flips"], key=lambda row: min(row["grown"], row["cut"]))
    there = {"run": run, "layer": row["layer"], "module": row["name"]}
    answer = client.predict(**there, row=3, column=5, size=16, api_name="/matrix")
    initial, rebuilt = (
        RunDirectory(server.runs / run).masks(row["layer"], stage)[row["name"]]
        for stage in (Stage.INITIAL, Stage.REBUILT)
    )
    assert answer["shape"] == list(initial.shape)
    assert (answer["counts"]["grown"], answer["counts"]["cut"]) == (row["grown"], row["cut"])
    assert answer["rows"]["rebuilt"] == pytest.approx((~rebuilt).float().mean(1).tolist(), abs=1e-5)
    assert answer["columns"]["initial"] == pytest.approx((~initial).float().mean(0).tolist(), abs=1e-5)
    window = answer["window"]
    assert (window["row"], window["column"], len(window["fates"]), len(window["fates"][0])) == (3, 5, 16, 16)
    grown = [[fate == "grown" for fate in line] for line in window["fates"]]
    assert grown == (initial & ~rebuilt)[3:19, 5:21].tolist()
    assert answer["patterns"] is None
    for wrong in ({"run": "no-such-run"}, {"run": "a" * 22}, {"layer": 99}, {"module": "../config"}):
        with pytest.raises(AppError) as caught:
            client.predict(**there | wrong, api_name="/matrix")
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sparsity": "150%"}, "Sparsity ratio 1.5 is not allowed"),
        ({"sparsity": "5:4"}, "Pattern 5:4 is not possible"),
        ({"threshold": 2}, "Threshold 2 is not allowed"),
        ({"threshold": "much"}, "Threshold 'much' is not a number"),
        (
            {"threshold": "auto", "nsamples": 2},
            "Threshold auto uses every 4th calibration sequence",
        ),
        ({"rounds": -1}, "Rounds -1 is not allowed"),
        ({"refiner": "comb"}, "Refiner 'comb' is unknown"),
        ({"allocation": "owl", "sparsity": "2:4"}, "Allocation owl gives each layer its own ratio"),
        ({"method": "scissors"}, "Method 'scissors' is unknown"),
        ({"nsamples": 0}, "Samples 0 is not allowed"),
        ({"model": "no/such/model/here"}, "no/such/model/here"),
        ({"calibration": "no-such-file.txt"}, "no-such-file.txt"),
        ({"seqlen": 100_000}, "Sequence length 100000"),
        ({"order": "sideways"}, "Order 'sideways' is unknown"),
        ({"max_memory": "much"}, "Memory limit 'much' is not a size"),
        ({"max_memory": "1KiB"}, "storyteller needs about"),
    ],
)
def test_a_user_error_is_one_sentence(client, wrong, sentence):
    with pytest.raises(AppError) as caught:
        client.predict(**ASKED | wrong, api_name="/run")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_every_setting_of_the_rebuild_reaches_the_run(client, server):
    asked = {"threshold": "auto", "rounds": 2, "target": "dense-stream", "reconstruct": True, "metric": "D"}
    summary = client.predict(**ASKED | asked, api_name="/run")
    assert asked.items() <= summary["config"].items()
    rebuilt = [e for e in RunDirectory(server.runs / summary["run"]).events() if isinstance(e, SubBlockRebuilt)]
    assert all(1 <= len(event.rounds) <= 2 and event.refit for event in rebuilt)
    asked = {"refiner": "one-swap", "allocation": "owl", "method": "ria"}
    summary = client.predict(**ASKED | asked, api_name="/run")
    assert asked.items() <= summary["config"].items()
    assert summary["swaps"] > 0


def test_a_run_in_one_pass_has_the_same_kinds_of_output(client, server, outputs):
    job = client.submit(**ASKED | {"order": "one-pass"}, api_name="/run")
    job.result(timeout=120)
    *progress, summary = job.outputs()
    shares = [value["share_done"] for value in progress]
    assert shares == sorted(shares)
    assert summary["config"]["order"] == "one-pass"
    assert summary["finished"]
    assert (summary["weights"], summary["zeros"]) == (outputs[-1]["weights"], outputs[-1]["zeros"])
    assert [row["stage"] for row in summary["perplexity"]] == [str(stage) for stage in Stage]
    assert [row["name"] for row in summary["flips"]] == [row["name"] for row in outputs[-1]["flips"]]
    assert sum(row["grown"] for row in summary["flips"]) == sum(row["cut"] for row in summary["flips"]) > 0
    run = RunDirectory(server.runs / summary["run"])
    for stage in (Stage.INITIAL, Stage.REBUILT):
        assert sum(int(mask.sum()) for la in run.layers() for mask in run.masks(la, stage).values()) == summary["zeros"]


def test_a_layerwise_run_has_the_same_results(client, outputs):
    summary = client.predict(**ASKED | {"stream": True, "max_memory": "1GiB"}, api_name="/run")
    assert summary["flips"] == outputs[-1]["flips"]
    values, wanted = ([row["perplexity"] for row in each["perplexity"]] for each in (summary, outputs[-1]))
    assert values == pytest.approx(wanted, rel=1e-4)


def test_a_cancelled_run_stops_and_leaves_the_model_dense(client, server, outputs):
    before = set(server.runs.glob("*/"))
    job = client.submit(**ASKED | {"nsamples": 512, "seqlen": 128}, api_name="/run")
    deadline = time.monotonic() + 60
    while not any(value["phase"] == "rebuild" for value in job.outputs()):
        assert time.monotonic() < deadline, job.outputs()[-1:]
        assert not job.done()
        time.sleep(0.1)
    started = time.monotonic()
    job.cancel()
    assert time.monotonic() - started < 2
    again = client.predict(**ASKED, api_name="/run")
    assert again["perplexity"] == outputs[-1]["perplexity"]
    assert again["flips"] == outputs[-1]["flips"]
    (stopped,) = set(server.runs.glob("*/")) - before - {server.runs / again["run"]}
    assert not any(isinstance(event, RunFinished) for event in RunDirectory(stopped).events())
