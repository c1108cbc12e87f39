"""The app through its API, and the parts of it that need no browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from safetensors import safe_open

from analysis import stories
from barber.config import METHODS, Allocation, Granularity, Metric, PruneConfig, Refiner, Sparsity, Target
from barber.errors import UserError
from barber.events import PerplexityMeasured, Progress, RunFinished, RunStarted, Stage, SubBlockRebuilt, TextGenerated
from barber.runs import RunDirectory
from barber.storyteller import MODEL_DIR
from tests.app_server import Server, serving
from ui import settings, text_tab
from ui.catalogue import CATALOGUE
from ui.choices_tab import why_empty
from ui.hub import Hub, reached
from ui.live import Live, duration, stage_of
from ui.saliency_tab import measure, not_drawn
from ui.worker import Worker

SMALL = {"nsamples": 6, "seqlen": 64, "eval_windows": 6}
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
    """Everything that one run on the bundled model streams."""
    job = client.submit(**ASKED, api_name="/run")
    job.result(timeout=120)
    return job.outputs()


def test_the_api_is_one_documented_endpoint(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/run"]
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


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sparsity": "150%"}, "Sparsity ratio 1.5 is not allowed"),
        ({"sparsity": "5:4"}, "Pattern 5:4 is not possible"),
        ({"threshold": 2}, "Threshold 2.0 is not allowed"),
        ({"threshold": "much"}, "Threshold 'much' is not a number"),
        ({"threshold": "auto", "nsamples": 2}, "Threshold auto holds every 4th calibration sequence out, but got 2"),
        ({"rounds": -1}, "Rounds at most -1 is not allowed"),
        ({"refiner": "comb"}, "Refiner 'comb' is unknown"),
        ({"allocation": "owl", "sparsity": "2:4"}, "Allocation owl gives each layer a ratio of its own"),
        ({"method": "scissors"}, "Method 'scissors' is unknown"),
        ({"nsamples": 0}, "Samples 0 is not allowed"),
        ({"model": "no/such/model/here"}, "no/such/model/here"),
        ({"calibration": "no-such-file.txt"}, "no-such-file.txt"),
        ({"seqlen": 100_000}, "Sequence length 100000"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(client, wrong, sentence):
    with pytest.raises(AppError) as caught:
        client.predict(**ASKED | wrong, api_name="/run")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_every_setting_of_the_rebuild_goes_through(client, server):
    asked = {"threshold": "auto", "rounds": 2, "target": "dense-stream", "reconstruct": True, "metric": "D"}
    summary = client.predict(**ASKED | asked, api_name="/run")
    assert asked.items() <= summary["config"].items()
    rebuilt = [e for e in RunDirectory(server.runs / summary["run"]).events() if isinstance(e, SubBlockRebuilt)]
    assert all(1 <= len(event.rounds) <= 2 and event.reconstruction for event in rebuilt)
    asked = {"refiner": "one-swap", "allocation": "owl", "method": "ria"}
    summary = client.predict(**ASKED | asked, api_name="/run")
    assert asked.items() <= summary["config"].items()
    assert summary["swaps"] > 0


def test_a_cancelled_run_stops_and_leaves_the_model_dense(client, server, outputs):
    before = set(server.runs.iterdir())
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
    (stopped,) = set(server.runs.iterdir()) - before - {server.runs / again["run"]}
    assert not any(isinstance(event, RunFinished) for event in RunDirectory(stopped).events())


def test_run_ids_cannot_be_guessed_nor_lead_elsewhere(tmp_path):
    hub = Hub(tmp_path / "runs")
    ids = {hub.new_run() for _ in range(100)}
    assert len(ids) == 100
    assert all(hub.path(name).parent == tmp_path / "runs" for name in ids)
    (tmp_path / "secret").mkdir()
    for name in ("../secret", "/etc", "", "a" * 21, "a" * 21 + "/", "." * 22, None):
        with pytest.raises(UserError):
            hub.path(name)


def test_the_hub_lends_the_model_dense_again(tmp_path):
    hub = Hub(tmp_path)
    spec = settings.to_spec(settings.DEFAULTS | {"sparsity": "2:4"} | SMALL)
    first, second = hub.new_run(), hub.new_run()
    events = hub.run(first, spec)
    assert any(isinstance(event, Progress) and event.phase == "rebuild" for event in events)
    events.close()
    list(hub.run(second, spec))
    seen = [*hub.events(first), *hub.events(second)]
    measured = [event for event in seen if isinstance(event, PerplexityMeasured)]
    dense = [event.perplexity for event in measured if event.stage == Stage.DENSE]
    assert len(dense) == 2
    assert dense[0] == dense[1]
    assert reached(hub.events(second)) == list(Stage)
    written = [event for event in hub.texts(second, "Once upon a time", 8, 0.0, 0) if isinstance(event, TextGenerated)]
    texts = [event for event in written if event.done]
    assert [event.stage for event in texts] == list(Stage)


def test_a_stopped_worker_closes_its_stream_on_its_own_thread():
    closed = []

    def stream():
        try:
            while True:
                time.sleep(0.01)
                yield Progress("work", 1, 2)
        finally:
            closed.append(threading.current_thread().name)

    worker = Worker(stream())
    batches = worker.batches(0.05)
    assert any(next(batches) for _ in range(20))
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 0.5
    while not closed and time.monotonic() - started < 2:
        time.sleep(0.01)
    assert closed == ["barber-worker"]


def test_a_worker_hands_on_what_its_stream_raises():
    def stream():
        yield Progress("work", 1, 2)
        raise UserError("Nothing to prune.")

    with pytest.raises(UserError, match="Nothing to prune"):
        list(Worker(stream()).batches(0.05))


def test_the_defaults_are_a_job_and_survive_a_link():
    spec = settings.to_spec(settings.DEFAULTS)
    assert isinstance(spec.prune, PruneConfig)
    link = {name: "" if value is None else str(value) for name, value in settings.DEFAULTS.items()}
    assert settings.from_query(link) == settings.DEFAULTS
    assert settings.from_query({"nsamples": "many", "__theme": "dark", "seed": "3"}) == {"seed": 3}
    assert settings.from_query({"method": "<b>", "metric": "X", "threshold": "nan", "granularity": "layer"}) == {
        "granularity": "layer"
    }


def test_the_form_splits_the_threshold_in_two():
    assert settings.from_form(*settings.FORM.values()) == settings.to_spec(settings.DEFAULTS)
    for threshold, switch in (("auto", "auto"), (0.25, "fixed")):
        link = settings.from_query({"threshold": str(threshold), "rounds": "3", "reconstruct": "true"})
        filled = settings.FORM | settings.to_form(link)
        assert filled["swaps"] == switch
        config = settings.from_form(*filled.values()).prune
        assert (config.threshold, config.rounds, config.reconstruct) == (threshold, 3, True)
    assert settings.to_form({"seed": 3}) == {"seed": 3}
    assert settings.from_query({"refiner": "comb", "target": "moon", "allocation": "owl"}) == {"allocation": "owl"}


def test_every_choice_of_a_setting_has_a_title():
    for titles, names in (
        (settings.METHOD_TITLES, METHODS),
        (settings.REFINER_TITLES, Refiner),
        (settings.TARGET_TITLES, Target),
        (settings.ALLOCATION_TITLES, Allocation),
        (settings.GRANULARITY_TITLES, Granularity),
        (settings.METRIC_TITLES, Metric),
    ):
        assert set(map(str, titles)) == set(map(str, names))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"barber": False}, "This run has no rebuild"),
        ({"refiner": "dsnot"}, "follows a rule of its own"),
        ({"threshold": 0.25}, "swaps 25 % of its gaining pairs"),
        ({"threshold": "auto"}, "stopped before the first block"),
    ],
)
def test_a_run_without_choices_says_why(changes, words):
    config = PruneConfig(Sparsity.parse("50%"), **changes)
    started = RunStarted("tiny", config.to_dict(), {}, [], "cpu", "float32")
    assert words in why_empty([started])
    assert "Press <b>Run</b>" in why_empty([])


def test_the_saliency_view_says_what_was_measured():
    def said(**changes: object) -> str:
        config = PruneConfig(Sparsity.parse("50%"), **changes)
        return measure([RunStarted("tiny", config.to_dict(), {}, [], "cpu", "float32")])

    assert "feels" in said()
    assert "inputs" in said(refiner="dsnot")
    assert "no rebuild" in said(barber=False, reconstruct=True)


def test_weights_that_the_histogram_leaves_out_are_told():
    assert not_drawn({}) == ""
    assert "1,234 weights have" in not_drawn({"": 1234})
    assert "1 cut weight has" in not_drawn({"cut": 1})
    assert "2 kept, 30 pruned and 4 cut weights have" in not_drawn({"kept": 2, "pruned": 30, "cut": 4})


def test_a_prompt_from_elsewhere_is_remarked_on_once():
    run = text_tab._Run("storyteller", True, list(Stage))
    texts = dict.fromkeys(map(str, Stage), " Some years ago. The end.")
    columns = "".join(text_tab._columns(run, "Call me Ishmael.", texts))
    assert columns.count(stories.UNKNOWN_PROMPT) == 1


def test_a_space_gives_no_access_to_its_files(monkeypatch, tmp_path):
    monkeypatch.setenv("SPACE_ID", "someone/barber")
    (tmp_path / "text.txt").write_text("secret")
    for changes in (
        {"model": str(tmp_path)},
        {"model": "./assets"},
        {"model": "assets"},
        {"calibration": str(tmp_path / "text.txt")},
        {"evaluation": f"wikitext2,{tmp_path / 'text.txt'}"},
    ):
        with pytest.raises(UserError, match="cannot be used here"):
            settings.to_spec(settings.DEFAULTS | changes)
    assert all(settings.to_spec(settings.DEFAULTS | {"model": entry.name}) for entry in CATALOGUE)


def test_the_catalogue_knows_the_size_of_the_bundled_model():
    with safe_open(MODEL_DIR / "model.safetensors", "pt") as file:
        weights = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (no mapping)
    assert CATALOGUE[0].name == "storyteller"
    assert CATALOGUE[0].size == f"{weights / 1e6:.1f} M"


def test_progress_is_told_in_words():
    assert [duration(seconds) for seconds in (None, 8.4, 200, 4900)] == ["", "8 s", "3 min", "82 min"]
    assert [stage_of(phase) for phase in ("text dense", "initial mask", "rebuild", "perplexity rebuilt")] == [
        Stage.DENSE,
        Stage.INITIAL,
        Stage.REBUILT,
        Stage.REBUILT,
    ]
    live = Live()
    live.update(Progress("load", 0, 1, "<b>x</b>"))
    assert "&lt;b&gt;x&lt;/b&gt;" in live.status()
