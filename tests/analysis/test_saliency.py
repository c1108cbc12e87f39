"""The curves of saliency: shares, cumulative shares and counts, by fate and by mask."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import frames, saliency
from analysis.saliency import BY_FATE, BY_MASK, Scale
from barber.config import Granularity
from barber.events import Fate
from tests.analysis.test_frames import LIMIT, run

BINS = pd.DataFrame(
    {
        "left": [-3.0, -2.0, -1.0],
        "right": [-2.0, -1.0, 0.0],
        "kept": [100, 200_000, 234_000],
        "pruned": [200_000, 100, 0],
        "grown": [0, 3, 1],
        "cut": [4, 0, 0],
    }
)
ZEROS = {"pruned": 50, "cut": 4}


@pytest.fixture(scope="module")
def events() -> list:
    return run(1, granularity=Granularity.LAYER)


@pytest.mark.parametrize("which", [BY_FATE, BY_MASK])
def test_shares_of_each_curve_add_up_to_all_of_it_but_what_has_no_saliency(which):
    table = saliency.curves(BINS, ZEROS, which, Scale.SHARE)
    whole = saliency.totals(BINS, ZEROS, which)
    for name, curve in which.items():
        below = sum(ZEROS.get(fate, 0) for fate in curve.fates)
        assert table[name].sum() == pytest.approx(100 * (1 - below / whole[name]))


@pytest.mark.parametrize("which", [BY_FATE, BY_MASK])
def test_a_cumulative_share_rises_to_all(which):
    table = saliency.curves(BINS, ZEROS, which, Scale.CUMULATIVE)
    for name in which:
        assert table[name].is_monotonic_increasing
        assert table[name].iloc[-1] == pytest.approx(100)
    assert table[[*which]].to_numpy().max() == pytest.approx(100)


def test_a_cumulative_share_begins_with_what_has_no_saliency():
    table = saliency.curves(BINS, ZEROS, BY_FATE, Scale.CUMULATIVE)
    assert table["cut"][0] == 100
    assert table["pruned"][0] == pytest.approx(100 * (50 + 200_000) / 200_150)


def test_the_masks_keep_and_prune_every_weight_once():
    numbers = saliency.totals(BINS, ZEROS, BY_MASK)
    whole = sum(saliency.totals(BINS, ZEROS, BY_FATE).values())
    for mask in ("initial", "rebuilt"):
        assert numbers[f"kept by the {mask} mask"] + numbers[f"pruned by the {mask} mask"] == whole
    grown, cut = (saliency.totals(BINS, ZEROS, BY_FATE)[fate] for fate in (Fate.GROWN, Fate.CUT))
    assert numbers["kept by the rebuilt mask"] - numbers["kept by the initial mask"] == grown - cut


def test_a_few_grown_weights_are_as_high_as_many_kept_ones():
    figure = saliency.figure(BINS, {}, BY_FATE, Scale.SHARE)
    top = {trace.name.split()[0]: max(trace.y) for trace in figure.data}
    assert top["grown"] > top["kept"] > 50


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("apart", [False, True])
def test_every_curve_is_a_line_over_the_bins(scale, apart):
    figure = saliency.figure(BINS, ZEROS, BY_MASK, scale, apart)
    assert [trace.name.split(" (")[0] for trace in figure.data] == [*BY_MASK]
    panels = {trace.yaxis or "y" for trace in figure.data}
    assert len(panels) == (4 if apart else 1)
    for trace in figure.data:
        assert list(trace.x) == [-3, -2, -1, 0]
        assert len(trace.y) == 4
    logarithmic = figure.layout.yaxis.type == "log"
    assert logarithmic == (scale is Scale.LOG)
    assert not any(value == 0 for trace in figure.data for value in trace.y) or not logarithmic


def test_the_curves_of_a_real_run_are_small_and_complete(events):
    row = max(frames.flips(events).itertuples(), key=lambda row: min(row.grown, row.cut))
    bins, zeros = frames.saliency(events, row.layer, row.name), frames.without_saliency(events, row.layer, row.name)
    numbers = saliency.totals(bins, zeros, BY_FATE)
    assert (numbers["grown"], numbers["cut"], sum(numbers.values())) == (row.grown, row.cut, row.weights)
    table = saliency.curves(bins, zeros, BY_MASK, Scale.CUMULATIVE)
    assert (table["kept by the rebuilt mask"] <= table["kept by the initial mask"] + 1e-9).all()
    for apart in (False, True):
        figure = saliency.figure(bins, zeros, BY_FATE, Scale.SHARE, apart)
        assert len(figure.to_json()) < LIMIT
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert np.isfinite([value for trace in figure.data for value in trace.y]).all()
