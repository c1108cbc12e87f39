"""Choices by validation error: frames, descriptions and figures, of constructed rounds and of a real run."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from analysis import choices, frames
from barber.config import AUTO, Sparsity
from barber.events import Candidate, GainCurve, Refit, Round, SubBlockRebuilt
from tests.analysis.test_frames import LIMIT, run

NONE = {"swap": "", "granularity": "", "fraction": 0.0, "swaps": 0}
BIG = {"swap": "swap", "granularity": "block", "fraction": 0.4, "swaps": 400}
SMALL = {"swap": "swap", "granularity": "output1", "fraction": 0.1, "swaps": 90}
EXACT = {"swap": "one-swap", "granularity": "", "fraction": 0.0, "swaps": 250}


def one_round(before: float, *tried: tuple[dict, float]) -> Round:
    """A round with these candidates and their errors, which chooses the best."""
    curve = [Candidate(**NONE, error=before), *(Candidate(**change, error=error) for change, error in tried)]
    return Round(**vars(min(curve, key=lambda change: change.error)), error_before=before, curve=curve)


def sub_block(layer: int, kind: str, rounds: list[Round], refit: Refit | None = None) -> SubBlockRebuilt:
    name = "self_attn" if kind == "attention" else kind
    return SubBlockRebuilt(layer, name, kind, 2.0, 1.0, 900, 400, 0.1, 0, {}, rounds, refit)


ROUNDS = [
    one_round(4.0, (BIG, 8.0), (SMALL, 2.0), (EXACT, 3.0)),
    one_round(2.0, (SMALL, 1.5), (EXACT, 1.0)),
    one_round(1.0, (BIG, 1.25)),
]
EVENTS = [sub_block(0, "attention", ROUNDS), sub_block(0, "mlp", ROUNDS[1:])]


@pytest.fixture(scope="module")
def real() -> list:
    return run(2, threshold=AUTO)


def test_every_round_is_a_row_with_its_swap_and_its_error_change():
    table = choices.choices(EVENTS)
    first = table[table["kind"] == "attention"]
    assert first["round"].tolist() == [1, 2, 3]
    assert first["swap"].tolist() == ["swap", "one-swap", ""]
    assert first["relative"].tolist() == [0.5, 0.25, 0.25]
    assert first["before"].tolist() == [4, 2, 1]
    assert choices.most_improved(table) == (0, "self_attn")


def test_every_candidate_is_a_row_and_one_of_a_round_is_chosen():
    table = choices.candidates(EVENTS)
    assert len(table) == sum(len(one.curve) for one in [*ROUNDS, *ROUNDS[1:]])
    chosen = table[table["chosen"]]
    assert chosen["swap"].tolist() == ["swap", "one-swap", "", "one-swap", ""]
    assert (table[(table["swap"] == "") & (table["kind"] == "attention")]["relative"] == [1, 0.5, 0.25]).all()


def test_a_rebuild_without_validation_has_no_rows():
    for events in ([], [sub_block(0, "mlp", [])]):
        assert choices.choices(events).empty
        assert choices.candidates(events).empty
    without = [replace(ROUNDS[0], curve=[])]
    assert len(choices.choices([sub_block(0, "mlp", without)])) == 1
    assert choices.candidates([sub_block(0, "mlp", without)]).empty


def test_a_sub_block_without_error_has_no_relative_one():
    table = choices.choices([sub_block(0, "mlp", [one_round(0.0)]), *EVENTS])
    assert math.isnan(table["relative"][0])
    assert choices.most_improved(table) == (0, "self_attn")
    assert json.loads(choices.rounds_figure(table).to_json())


@pytest.mark.parametrize(
    ("swap", "words"),
    [
        (NONE, "no change"),
        (BIG, "40 % of the gaining pairs in the whole sub-block: 400 pairs"),
        (SMALL, "10 % of the gaining pairs in one output row: 90 pairs"),
        (EXACT, "exact one-swaps in each row: 250 pairs"),
    ],
)
def test_swaps_are_described(swap, words):
    assert choices.describe_swap(**swap) == words


def traces(figure) -> dict:
    return {trace.name: trace for trace in figure.data}


def test_the_figure_of_rounds_begins_with_the_initial_mask():
    figure = choices.rounds_figure(choices.choices(EVENTS))
    drawn = traces(figure)
    assert list(drawn["initial mask"].x) == ["0 attn", "0 mlp"]
    assert list(drawn["initial mask"].y) == [100, 100]
    assert list(drawn["swap by saliency"].y) == [50]
    assert list(drawn["one-swaps"].y) == [25, 50]
    assert drawn["one-swaps"].customdata[0] == [2, "exact one-swaps in each row: 250 pairs"]


def test_the_curve_marks_its_start_and_the_chosen_candidate():
    table = choices.candidates(EVENTS[:1])
    figure = choices.curve_figure(table[table["round"] == 1])
    drawn = traces(figure)
    assert list(drawn) == ["sub-block", "row", "one-swaps", "no change", "chosen"]
    assert (drawn["chosen"].x[0], drawn["chosen"].y[0]) == (0.1, 50)
    none = drawn["no change"].x[0]
    assert 0 < none < 0.1
    assert (figure.layout.xaxis.tickvals[0], figure.layout.xaxis.ticktext[0]) == (none, "none")
    assert list(drawn["sub-block"].x) == [none, 0.4]
    assert list(drawn["sub-block"].y) == [100, 200]
    assert set(drawn["one-swaps"].y) == {75}
    assert figure.layout.xaxis.type == "log"


@pytest.mark.parametrize("number", [2, 3])
def test_the_chosen_candidate_may_be_a_one_swap_or_none(number):
    table = choices.candidates(EVENTS[:1])
    drawn = traces(choices.curve_figure(table[table["round"] == number]))
    assert drawn["chosen"].y[0] == 25
    if number == 3:
        assert drawn["chosen"].x == drawn["no change"].x


def test_a_round_without_candidates_is_drawn():
    figure = choices.curve_figure(choices.candidates([sub_block(0, "mlp", [one_round(1.0)])]))
    assert list(traces(figure)) == ["no change", "chosen"]


def test_a_curve_of_large_errors_gets_a_log_axis():
    def axis(worst: float) -> str | None:
        events = [sub_block(0, "mlp", [one_round(1.0, (BIG, worst))])]
        return choices.curve_figure(choices.candidates(events)).layout.yaxis.type

    assert axis(100.0) == "log"
    assert axis(2.0) is None


def test_the_error_never_rises_over_the_rounds_of_a_real_run(real):
    table, tried = choices.choices(real), choices.candidates(real)
    assert len(table.drop_duplicates(["layer", "sub_block"])) == 4
    assert (table["after"] <= table["before"]).all()
    for row in table.itertuples():
        same = (tried["layer"] == row.layer) & (tried["sub_block"] == row.sub_block) & (tried["round"] == row.round)
        assert tried[same]["error"].min() == row.after
        assert tried[same & tried["chosen"]]["swaps"].tolist() == [row.swaps]
        assert len(choices.curve_figure(tried[same]).to_json()) < LIMIT


def test_the_rounds_of_a_deep_model_are_a_small_figure():
    events = [sub_block(layer, kind, ROUNDS) for layer in range(48) for kind in ("attention", "mlp")]
    assert 1_000 < len(choices.rounds_figure(choices.choices(events)).to_json()) < LIMIT


def test_the_gain_curve_of_a_sub_block_is_drawn(real):
    events = [replace(EVENTS[0], curve=GainCurve([1, 10, 100], [3.0, 0.2, 0.001])), EVENTS[1]]
    gains = choices.gain_curve(events, 0, "self_attn")
    assert gains.to_dict("list") == {"rank": [1, 10, 100], "gain": [3.0, 0.2, 0.001]}
    assert choices.gain_curve(events, 0, "mlp").empty
    assert choices.gain_curve(events, 1, "self_attn").empty
    figure = choices.gain_figure(gains)
    assert list(figure.data[0].y) == [3.0, 0.2, 0.001]
    assert figure.layout.yaxis.type == "log"
    for sub_block in ("self_attn", "mlp"):
        gains = choices.gain_curve(real, 1, sub_block)
        assert gains["gain"].is_monotonic_decreasing
        assert len(choices.gain_figure(gains).to_json()) < LIMIT
        few = choices.some_gains(gains)
        assert len(few) == min(25, len(gains))
        assert few["rank"].tolist()[:: len(few) - 1] == gains["rank"].tolist()[:: len(gains) - 1]


@pytest.mark.parametrize("length", [1, 2, 25, 26, 1000])
def test_some_gains_have_the_first_and_the_last(length):
    gains = choices.gain_curve(
        [replace(EVENTS[0], curve=GainCurve([*range(1, length + 1)], [1.0] * length))], 0, "self_attn"
    )
    ranks = choices.some_gains(gains)["rank"].tolist()
    assert (ranks[0], ranks[-1], len(ranks)) == (1, length, min(25, length))


def refit(before: float, after: float, diverged: bool = False) -> Refit:
    return Refit(before, after, 48, diverged)


def test_the_refit_is_described():
    assert frames.describe_refits(frames.refits(EVENTS)) == ""
    events = [
        sub_block(0, "attention", [], refit(2.0, 1.0)),
        sub_block(0, "mlp", [], refit(2.0, 1.5)),
        sub_block(1, "mlp", [], refit(2.0, 2.0, diverged=True)),
    ]
    text = frames.describe_refits(frames.refits(events))
    assert "2 of 3 sub-blocks" in text
    assert "38\N{NO-BREAK SPACE}%" in text
    assert text.endswith("In layer 1 mlp it diverged and went back to its best weights.")
    assert frames.describe_refits(frames.refits(events[2:])).startswith("The refit of the kept weights lowered")


def test_the_refit_of_a_real_run_is_described():
    table = frames.refits(run(1, reconstruct=True, sparsity=Sparsity.parse("60%")))
    assert len(table) == 2
    assert (table["after"] <= table["before"]).all()
