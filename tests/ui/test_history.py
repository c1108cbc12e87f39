"""The history: what the cards of the runs keep, who sees and changes them, and runs that go on without a page."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import pytest

from analysis import frames
from barber.atomic_files import write_json
from barber.errors import UserError
from barber.events import RunFinished
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.runs.directory import RunDirectory
from tests.support.app_server import SMALL
from ui import settings
from ui.history import EXAMPLES, Card, History, State, digest_of, perplexities
from ui.hub import Hub
from ui.runs_tab import ago, listing

ANN, BOB = "ann's token", "bob's token"


def spec(**changes: object) -> JobSpec:
    job = settings.to_spec(settings.DEFAULTS | SMALL | {"threshold": 0.2, "granularity": "block"} | changes)
    return replace(job, prompts=())


def card(run: str, **changes: object) -> Card:
    return Card(**{"run": run, "title": run, "began": 1.0, "job": spec().to_dict(), "state": State.FINISHED} | changes)


def own(hub: Hub, visitor: str | None) -> list[Card]:
    """The runs that a visitor sees, without the examples."""
    return [one for one in hub.history.cards(visitor) if not one.example]


def ended(hub: Hub, run: str) -> Card:
    running = hub.follow(run)
    assert running is None or running.over(120)
    return hub.history.read(run)


def stop_once_it_rebuilds(hub: Hub, run: str) -> None:
    running = hub.follow(run)
    deadline = time.monotonic() + 120
    while not hub.has_results(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hub.stop(run)
    assert running.over(60)


def test_a_card_survives_its_file(tmp_path):
    history = History(tmp_path, shared=True, examples=tmp_path / "none")
    kept = card("a", pinned=True, seconds=2.5, perplexities={"c4": {"dense": 2.0, "initial": float("inf")}})
    history.add(kept)
    assert history.read("a") == kept
    assert JobSpec.from_dict(history.read("a").job) == spec()
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text('{"run": "c", "state": "unheard of"}')
    assert history.cards(None) == [kept]


def test_pinned_runs_come_first_then_the_newest_and_words_narrow_the_list(tmp_path):
    history = History(tmp_path, shared=True, examples=tmp_path / "none")
    for began, run in enumerate(["Wanda 50%", "SparseGPT 50%", "Wanda 2:4"]):
        history.add(card(f"r{began}", title=run, began=float(began)))
    history.pin("r0", None, True)
    assert [one.run for one in history.cards(None)] == ["r0", "r2", "r1"]
    assert [one.run for one in history.cards(None, "wanda")] == ["r0", "r2"]
    assert [one.run for one in history.cards(None, " 2:4  WANDA ")] == ["r2"]
    history.pin("r0", None, False)
    assert [one.run for one in history.cards(None)] == ["r2", "r1", "r0"]


def test_a_visitor_sees_and_changes_only_his_own_runs(tmp_path):
    history = History(tmp_path, shared=False, examples=tmp_path / "none")
    history.add(card("anns", owner=digest_of(ANN)))
    history.add(card("nobodys"))
    assert ANN not in (tmp_path / "anns.json").read_text()
    assert [one.run for one in history.cards(ANN)] == ["anns"]
    for stranger in (BOB, "", None, digest_of(ANN)):
        assert history.cards(stranger) == []
        for act in (
            history.delete,
            lambda run, who: history.rename(run, who, "mine"),
            lambda *a: history.pin(*a, True),
        ):
            for run in ("anns", "nobodys"):
                with pytest.raises(UserError, match="somebody else"):
                    act(run, stranger)
    history.rename("anns", ANN, "  mine \n now ")
    assert history.read("anns").title == "mine now"
    history.delete("anns", ANN)
    assert history.read("anns") is None
    with pytest.raises(UserError, match="does not exist"):
        history.delete("anns", ANN)


@pytest.mark.parametrize("title", ["", "  ", "x" * 201, "a\x00b", None])
def test_a_title_that_cannot_be_shown_is_refused(tmp_path, title):
    history = History(tmp_path, shared=True, examples=tmp_path / "none")
    history.add(card("a"))
    with pytest.raises(UserError, match="characters"):
        history.rename("a", None, title)
    assert history.read("a").title == "a"


def test_a_run_goes_on_without_a_page_and_its_card_keeps_what_it_measured(tmp_path):
    hub = Hub(tmp_path, shared=True)
    run = hub.start(spec(), ANN)
    assert hub.history.read(run).state is State.WAITING
    assert hub.follow(run) is hub.follow(run)
    assert hub.history.read(run).state is State.RUNNING
    with pytest.raises(UserError, match="stop it first"):
        hub.history.delete(run, ANN)
    done = ended(hub, run)
    assert done.state is State.FINISHED
    assert done.seconds > 0
    (measured,) = done.perplexities.values()
    assert measured["dense"] < measured["rebuilt"] < measured["initial"]
    assert hub.follow(run) is None
    hub.history.delete(run, ANN)
    assert not list(tmp_path.iterdir())
    assert hub.events(run) == []


def test_a_stopped_run_resumes_and_ends_as_if_it_had_never_stopped(tmp_path):
    hub = Hub(tmp_path, shared=True)
    whole, parted = hub.start(spec()), hub.start(spec())
    ended(hub, whole)
    with pytest.raises(UserError, match="finished, so it cannot be resumed"):
        hub.resume(whole, None)
    stop_once_it_rebuilds(hub, parted)
    assert hub.history.read(parted).state is State.STOPPED
    assert not any(isinstance(event, RunFinished) for event in hub.events(parted))
    layers = RunDirectory(hub.path(parted)).layers()
    hub.resume(parted, None)
    with pytest.raises(UserError, match="waiting, so it cannot be resumed"):
        hub.resume(parted, None)
    assert ended(hub, parted).state is State.FINISHED
    assert layers
    for layer in RunDirectory(hub.path(whole)).layers():
        for name, mask in RunDirectory(hub.path(whole)).masks(layer, "rebuilt").items():
            assert RunDirectory(hub.path(parted)).masks(layer, "rebuilt")[name].equal(mask)


def test_a_run_may_be_resumed_while_it_still_ends(tmp_path):
    hub = Hub(tmp_path, shared=True)
    run = hub.start(spec())
    first = hub.follow(run)
    hub.stop(run)
    hub.resume(run, None)
    assert ended(hub, run).state is State.FINISHED
    assert first.over(0)


def test_a_run_that_fails_keeps_its_sentence(tmp_path):
    hub = Hub(tmp_path, shared=True)
    failed = ended(hub, hub.start(replace(spec(), model=str(tmp_path / "nothing"))))
    assert failed.state is State.FAILED
    assert "nothing" in failed.failure


def test_the_next_process_of_the_app_finds_an_interrupted_run_and_resumes_it(tmp_path):
    hub = Hub(tmp_path, shared=True)
    run = hub.start(spec())
    stop_once_it_rebuilds(hub, run)
    hub.history.update(run, state=State.RUNNING)  # as a process that was killed leaves it
    hub = Hub(tmp_path, shared=True)
    assert hub.history.read(run).state is State.INTERRUPTED
    hub.resume(run, None)
    assert ended(hub, run).state is State.FINISHED


def test_runs_of_the_command_line_are_listed_on_ones_own_machine_only(tmp_path):
    list(run_job(replace(spec(), run_dir=tmp_path / "mine")))
    hub = Hub(tmp_path, shared=True)
    (found,) = own(hub, None)
    assert (found.run, found.state) == ("mine", State.FINISHED)
    assert found.title.startswith("mine: storyteller")
    hub.history.rename("mine", None, "better")
    assert [one.title for one in own(hub, None)] == ["better"]
    assert own(Hub(tmp_path, shared=False), ANN) == []


def test_a_temporary_folder_forgets_runs_after_a_day(tmp_path):
    hub = Hub()
    hub.history.add(card("old", began=time.time() - 25 * 3600))
    hub.history.add(card("young", began=time.time()))
    hub.new_run()
    assert [one.run for one in hub.history.all()] == ["young"]


def test_a_page_that_left_a_run_may_come_back():
    hub = Hub()
    run = hub.start(spec())
    hub.leave(run, "page1")
    assert hub.left(run, "page1")
    assert not hub.left(run, "page2")
    hub.come_back(run, "page1")
    assert not hub.left(run, "page1")
    hub.leave(run, "../page")
    hub.leave(None, "page1")


def test_the_list_shows_what_is_in_a_title_and_ticks_what_is_chosen():
    cards = [card("a", title="<b>bold</b>", perplexities={"c4": {"dense": 2.5}}), card("b", pinned=True)]
    text = listing(cards, ["b"])
    assert "&lt;b&gt;bold" in text
    assert "<b>bold" not in text
    assert "2.5" in text
    assert text.count("checked") == 1
    assert text.count("<b>Pinned</b>") == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (9e5, "10 days ago")]
)
def test_how_long_ago(seconds, words):
    assert ago(seconds) == words


def test_examples_are_shown_to_everybody_and_stay_as_they_are(tmp_path):
    examples = tmp_path / "examples"
    list(run_job(replace(spec(), run_dir=examples / "shipped")))
    history = History(tmp_path, shared=False, examples=examples)
    assert history.cards(ANN) == []
    write_json(examples / "shipped.json", asdict(card("shipped", pinned=True, began=time.time())))
    history.add(card("anns", owner=digest_of(ANN)))
    assert [(one.run, one.example) for one in history.cards(ANN)] == [("anns", False), ("shipped", True)]
    assert history.path("shipped") == examples / "shipped"
    assert history.path("anns") == tmp_path / "anns"
    for act in (
        history.delete,
        lambda run, who: history.rename(run, who, "mine"),
        lambda *given: history.pin(*given, True),
    ):
        with pytest.raises(UserError, match="came with the app"):
            act("shipped", ANN)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.json")), ids=lambda file: file.stem)
def test_each_example_is_small_and_whole(file):
    shown = Card.read(file)
    run = RunDirectory(EXAMPLES / shown.run)
    events = run.events()
    assert sum(part.stat().st_size for part in run.path.rglob("*") if part.is_file()) < 3e6
    assert perplexities(events) == shown.perplexities
    assert not frames.flips(events).empty
    assert not frames.texts(events).empty
    layer = run.layers()[0]
    zeros = {row.name: row.zeros for row in frames.flips(events).itertuples() if row.layer == layer}
    assert {name: int(mask.sum()) for name, mask in run.masks(layer, "rebuilt").items()} == zeros
    assert JobSpec.from_dict(dict(shown.job)).model == frames.summary(events)["model"]


def test_a_run_that_is_stopped_while_it_ends_is_over(tmp_path, monkeypatch):
    hub = Hub(tmp_path, shared=True)
    run = hub.start(spec())
    note = hub._note

    def stopped_meanwhile(run_id: str, *given: object) -> None:
        note(run_id, *given)
        hub._running.pop(run_id, None)  # as `stop` does

    monkeypatch.setattr(hub, "_note", stopped_meanwhile)
    assert hub.follow(run).over(60)
