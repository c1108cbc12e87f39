"""The texts of the page on a run, without a browser."""

from __future__ import annotations

import pytest

from analysis import stories
from barber.config import PruneConfig, Sparsity
from barber.events import Estimated, JobPlanned, LayerInitialised, Progress, RunStarted, Stage
from ui import text_tab
from ui.choices_tab import why_empty
from ui.live import IN_ONE_PASS, Live, duration, progress, rounding
from ui.saliency_tab import measure, not_drawn


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"barber": False}, "This run has no rebuild"),
        ({"refiner": "dsnot"}, "does not choose between swaps"),
        ({"threshold": 0.25}, "swaps 25 % of its gaining pairs"),
        ({"threshold": "auto"}, "stopped before the rebuild"),
    ],
)
def test_a_run_without_choices_shows_the_reason(changes, words):
    config = PruneConfig(Sparsity.parse("50%"), **changes)
    started = RunStarted("tiny", config.to_dict(), {}, [], "cpu", "float32")
    assert words in why_empty([started])
    assert "Press <b>Run</b>" in why_empty([])


def test_the_saliency_view_names_the_metric():
    def message(**changes: object) -> str:
        config = PruneConfig(Sparsity.parse("50%"), **changes)
        return measure([RunStarted("tiny", config.to_dict(), {}, [], "cpu", "float32")])

    assert "weight times gradient" in message()
    assert "inputs" in message(refiner="dsnot")
    assert "no rebuild" in message(barber=False, reconstruct=True)


def test_weights_outside_the_histogram_are_counted():
    assert not_drawn({}) == ""
    assert "1,234 weights have" in not_drawn({"": 1234})
    assert "1 cut weight has" in not_drawn({"cut": 1})
    assert "2 kept, 30 pruned and 4 cut weights have" in not_drawn({"kept": 2, "pruned": 30, "cut": 4})


def test_an_unknown_prompt_has_one_remark():
    run = text_tab._Run("storyteller", True, list(Stage))
    texts = dict.fromkeys(map(str, Stage), " Some years ago. The end.")
    columns = "".join(text_tab._columns(run, "Call me Ishmael.", texts))
    assert columns.count(stories.UNKNOWN_PROMPT) == 1


def test_a_run_without_texts_shows_the_reason():
    started = RunStarted("tiny", PruneConfig(Sparsity.parse("50%")).to_dict(), {}, [], "cpu", "float32")
    assert "Press <b>Run</b>" in text_tab.why_empty([])
    assert "was stopped before" in text_tab.why_empty([started])
    assert "read layer by layer" in text_tab.why_empty([started, LayerInitialised(0, {}, 0.1)])


def test_a_waiting_generation_shows_its_reason():
    run = text_tab._Run("storyteller", True, [Stage.DENSE, Stage.INITIAL])
    columns = text_tab._columns(run, "Once", {}, "Waiting: 1 job before yours.")
    assert ["1 job before yours" in column for column in columns] == [True, True, False]
    assert "did not reach this stage" in columns[2]


def test_the_steps_follow_the_order_of_the_run():
    after = ["perplexity initial", "text initial"]
    paper = ["perplexity dense", "text dense", "allocation", "initial mask", *after, "rebuild", "perplexity rebuilt"]
    assert progress(paper, "allocation") == [("Dense model", "done"), ("Initial mask", "now"), ("Rebuild", "todo")]
    assert progress(paper, "perplexity rebuilt")[-1] == ("Rebuild", "now")
    assert progress(paper[:-2], "text initial") == [("Dense model", "done"), ("Initial mask", "now")]
    one_pass = ["perplexity dense", "text dense", "allocation", "rebuild", *after, "perplexity rebuilt"]
    for phase, states in (
        ("load", ["todo", "todo", "todo"]),
        ("text dense", ["now", "todo", "todo"]),
        ("allocation", ["done", "now", "todo"]),
        ("rebuild", ["done", "now", "todo"]),
        ("perplexity initial", ["done", "done", "now"]),
        ("perplexity rebuilt", ["done", "done", "now"]),
    ):
        assert progress(one_pass, phase) == list(zip(IN_ONE_PASS, states, strict=True))


def test_the_estimate_is_shown_during_the_run():
    live = Live()
    assert "Expected" not in live.status()
    live.update(Estimated("cpu", 0, 2**29, 0, 12.3, False, "host"))
    live.update(JobPlanned({"rebuild": 1.0}))
    assert "Expected on cpu: about 12 s in all, 512 MiB" in live.status()


def test_the_share_of_pruned_weights_is_explained():
    def said(zeros: int, pattern: str = "60%", method: str = "wanda") -> str:
        return rounding(zeros, 1000, PruneConfig(Sparsity.parse(pattern), method))

    assert said(595) == ": of 60%, counts are rounded down in each row"
    assert said(598, method="sparsegpt") == ": of 60%, counts are rounded down in each block of columns"
    assert said(600) == said(500, "2:4") == ""


def test_progress_is_described():
    assert [duration(seconds) for seconds in (None, 8.4, 200, 4900)] == ["", "8 s", "3 min", "82 min"]
    live = Live()
    live.update(Progress("load", 0, 1, "<b>x</b>"))
    assert "&lt;b&gt;x&lt;/b&gt;" in live.status()
