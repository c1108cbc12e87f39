"""Runs beside each other: their frames, the agreement of their masks, and the figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis import compare, frames
from barber.events import PerplexityMeasured
from barber.jobs.job import run_job
from barber.runs.directory import RunDirectory
from tests.analysis.test_frames import LIMIT
from tests.support.app_server import SMALL
from ui import settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, RunDirectory]:
    """Three recorded runs of the bundled model: two methods, and one of the first without a rebuild."""
    made = {}
    for label, changes in (("A", {}), ("B", {"method": "magnitude"}), ("C", {"rebuild": False})):
        spec = settings.to_spec(settings.DEFAULTS | SMALL | {"threshold": 0.2, "granularity": "block"} | changes)
        folder = tmp_path_factory.mktemp("runs") / label
        list(run_job(replace(spec, run_dir=folder)))
        made[label] = RunDirectory(folder)
    return made


@pytest.fixture(scope="module")
def events(runs) -> dict:
    return {label: run.events() for label, run in runs.items()}


def test_each_frame_has_the_rows_of_every_run(events):
    for whole, one in (
        (compare.perplexities, frames.perplexities),
        (compare.sub_blocks, frames.sub_blocks),
        (compare.flips, frames.flips),
        (compare.texts, frames.texts),
    ):
        beside = whole(events)
        for label, own in events.items():
            part = beside[beside["run"] == label].drop(columns="run").reset_index(drop=True)
            assert part.astype(object).equals(one(own).astype(object)) or len(one(own)) == len(part) == 0


def names(run: RunDirectory) -> list[tuple[int, str]]:
    return [(row.layer, row.name) for row in frames.modules(run.events()).itertuples(index=False)]


def test_the_agreement_is_that_of_the_unpacked_masks(runs):
    found = compare.jaccard(runs["A"], runs["B"], names(runs["A"]))
    assert len(found) == 35
    for row in found.itertuples():
        one, other = (runs[label].masks(row.layer, "rebuilt")[row.name] for label in "AB")
        both, either = int((one & other).sum()), int((one | other).sum())
        assert row.jaccard == both / either
        ratios = [mask.float().mean().item() for mask in (one, other)]
        together = math.prod(ratios)
        assert row.expected == pytest.approx(together / (sum(ratios) - together))
    assert (compare.jaccard(runs["A"], runs["A"], names(runs["A"]))["jaccard"] == 1).all()


def test_a_run_without_a_rebuild_agrees_by_its_initial_masks(runs):
    found = compare.jaccard(runs["A"], runs["C"], names(runs["A"]))
    row = found.iloc[0]
    one, other = (
        runs["A"].masks(row["layer"], "rebuilt")[row["name"]],
        runs["C"].masks(row["layer"], "initial")[row["name"]],
    )
    assert row["jaccard"] == int((one & other).sum()) / int((one | other).sum())
    assert 0 < found["jaccard"].min() < 1


def test_matrices_that_only_one_run_has_are_left_out(runs):
    assert compare.jaccard(runs["A"], runs["B"], [(0, "nothing"), (99, "mlp.up_proj")]).empty


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_agreement_by_chance_is_symmetric_and_a_share(first, second):
    value = compare._by_chance(first, second)
    assert 0 <= value <= 1
    assert value == compare._by_chance(second, first)


def test_independent_masks_agree_as_expected():
    one, other = (torch.rand(1000, 1000, generator=torch.Generator().manual_seed(seed)) < 0.6 for seed in (0, 1))
    assert int((one & other).sum()) / int((one | other).sum()) == pytest.approx(compare._by_chance(0.6, 0.6), abs=0.005)


def test_the_difference_of_two_runs_is_drawn_and_of_three_none(events):
    two = {label: events[label] for label in "AB"}
    figure = compare.flip_figure(compare.flips(two))
    first, second, difference = (np.array(trace.z, dtype=float) for trace in figure.data)
    assert difference == pytest.approx(second - first, abs=1e-2)
    three = two | {"D": events["A"]}
    assert len(compare.flip_figure(compare.flips(three)).data) == 3


def test_every_figure_is_small_and_names_its_runs(runs, events):
    for figure in (
        compare.perplexity_figure(compare.perplexities(events)),
        compare.error_figure(compare.sub_blocks(events)),
        compare.flip_figure(compare.flips(events)),
        compare.jaccard_figure(compare.jaccard(runs["A"], runs["B"], names(runs["A"]))),
    ):
        text = figure.to_json()
        assert len(text) < LIMIT
        json.loads(text)
    dots = compare.perplexity_figure(compare.perplexities(events)).data
    assert [set(trace.y) for trace in dots] == [{"A", "B", "C"}, {"A", "B", "C"}, {"A", "B"}]


def test_a_perplexity_that_is_not_finite_has_no_dot():
    measured = {
        label: [PerplexityMeasured("dense", "text", seqlen=16, tokens=64, perplexity=value, seconds=0.1)]
        for label, value in (("A", 5.0), ("B", math.inf))
    }
    dense = compare.perplexity_figure(compare.perplexities(measured)).data[0]
    assert list(dense.y) == ["A"]


def test_pairs_keep_the_order():
    assert compare.pairs(["A", "B", "C"]) == [("A", "B"), ("A", "C"), ("B", "C")]
