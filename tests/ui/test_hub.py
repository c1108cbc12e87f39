"""The hub of the app, which owns the model, and the worker that runs its jobs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from analysis import frames, matrix
from barber.errors import UserError
from barber.events import (
    Estimated,
    LayerInitialised,
    Notice,
    PerplexityMeasured,
    Progress,
    Stage,
    SubBlockRebuilt,
    TextGenerated,
)
from barber.job_spec import JobSpec
from barber.runs.directory import RunDirectory
from tests.support.app_server import SMALL
from ui import settings
from ui.hub import Hub, reached
from ui.worker import Worker


def small(**changes: object) -> JobSpec:
    """A job of about two seconds, with one prompt."""
    spec = settings.to_spec(settings.DEFAULTS | SMALL | {"threshold": 0.2, "granularity": "block"} | changes)
    return replace(spec, prompts=spec.prompts[:1])


def test_run_ids_cannot_be_guessed_and_stay_in_their_folder(tmp_path):
    hub = Hub(tmp_path / "runs")
    ids = {hub.new_run() for _ in range(100)}
    assert len(ids) == 100
    assert all(hub.path(name).parent == tmp_path / "runs" for name in ids)
    (tmp_path / "secret").mkdir()
    for name in ("../secret", "/etc", "", "a/b", "a\\b", ".", "..", "a\n", "a" * 101, None):
        with pytest.raises(UserError):
            hub.path(name)


def test_the_hub_returns_a_dense_model(tmp_path):
    hub = Hub(tmp_path)
    spec = small(sparsity="2:4")
    first, second = hub.new_run(), hub.new_run()
    events = hub.run(first, spec)
    assert any(isinstance(event, Progress) and event.phase == "rebuild" for event in events)
    events.close()
    list(hub.run(second, spec))
    assert {hub.path(name).stat().st_mode & 0o777 for name in (first, second)} == {0o700}
    seen = [*hub.events(first), *hub.events(second)]
    measured = [event for event in seen if isinstance(event, PerplexityMeasured)]
    dense = [event.perplexity for event in measured if event.stage == Stage.DENSE]
    assert len(dense) == 2
    assert dense[0] == dense[1]
    assert reached(hub.events(second)) == list(Stage)
    written = [event for event in hub.texts(second, "Once upon a time", 8, 0.0, 0) if isinstance(event, TextGenerated)]
    texts = [event for event in written if event.done]
    assert [event.stage for event in texts] == list(Stage)


def test_a_streamed_job_gets_no_model(tmp_path):
    hub = Hub(tmp_path)
    masks, loaded = {}, {}
    for stream in (False, True):
        name = hub.new_run()
        events = list(hub.run(name, small(stream=stream)))
        assert [e.streamed for e in events if isinstance(e, Estimated)] == [stream]
        assert any(isinstance(e, TextGenerated) for e in events) != stream
        assert any("No texts are generated" in e.message for e in events if isinstance(e, Notice)) == stream
        loaded[stream] = hub._loaded and hub._loaded.name
        masks[stream] = RunDirectory(hub.path(name)).masks(0, Stage.REBUILT)
    assert loaded == {False: "storyteller", True: None}
    assert all(masks[True][key].equal(mask) for key, mask in masks[False].items())


def test_a_memory_limit_decides_whether_a_job_gets_a_model(tmp_path):
    hub = Hub(tmp_path)
    streamed = {}
    for limit in ("3MB", "2GiB"):
        events = hub.run(hub.new_run(), small(max_memory=limit, nsamples=4, seqlen=8))
        streamed[limit] = next(e for e in events if isinstance(e, Estimated)).streamed
        events.close()
    assert streamed == {"3MB": True, "2GiB": False}


def test_waiting_jobs_report_their_position_and_run_in_order(tmp_path):
    hub = Hub(tmp_path)
    first, second, third = (hub.run(hub.new_run(), small()) for _ in range(3))
    assert next(first).phase == "load"
    assert [next(second), next(third)] == [
        Progress("waiting", 0, 1, "1 job before yours"),
        Progress("waiting", 0, 1, "2 jobs before yours"),
    ]
    first.close()
    assert next(third).where == "1 job before yours"
    second.close()
    assert next(third).phase == "load"
    third.close()


@pytest.mark.parametrize("end", [LayerInitialised, SubBlockRebuilt])
def test_an_unfinished_run_in_one_pass_can_be_viewed(tmp_path, end):
    hub = Hub(tmp_path)
    name = hub.new_run()
    events = hub.run(name, small(order="one-pass"))
    for event in events:
        if isinstance(event, end) and event.layer == 1:
            break
    seen = hub.events(name)  # while it runs
    events.close()
    assert hub.events(name) == seen
    assert reached(seen) == [Stage.DENSE]
    moved = frames.flips(seen)
    assert len(moved) == 7 + 4 * (end is SubBlockRebuilt)
    assert len(frames.sub_blocks(seen)) == 2 + (end is SubBlockRebuilt)
    run = RunDirectory(hub.path(name))
    for row in moved.itertuples():
        counts = matrix.overview(matrix.read(run, row.layer, row.name)).counts
        assert (counts["grown"], counts["cut"]) == (row.grown, row.cut)
        assert not frames.saliency(seen, row.layer, row.name).empty
    assert matrix.read(run, 1, "mlp.down_proj") is None
    assert frames.perplexities(seen)["stage"].tolist() == ["dense"]
    assert set(frames.texts(seen)["stage"]) == {"dense"}
    assert not frames.summary(seen)["finished"]
    written = hub.texts(name, "Once upon a time", 4, 0.0, 0)
    assert {event.stage for event in written if isinstance(event, TextGenerated)} == {Stage.DENSE}


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


def test_a_worker_raises_the_errors_of_its_stream():
    def stream():
        yield Progress("work", 1, 2)
        raise UserError("Nothing to prune.")

    with pytest.raises(UserError, match="Nothing to prune"):
        list(Worker(stream()).batches(0.05))
