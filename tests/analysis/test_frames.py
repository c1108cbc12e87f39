"""Frames and figures from real runs of tiny models."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis import figures, frames, saliency
from analysis.style import format_perplexity
from barber.config import Granularity, Order, PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.events import Event, Fate, LayerInitialised, PerplexityMeasured, Stage, SubBlockRebuilt, TextGenerated
from barber.pruning.prune import prune
from tests.support.families import WIDTH

LIMIT = 300_000  # bytes of one figure's JSON


def run(layers: int, **changes) -> list:
    """The events of a real run of a random Llama, with their masks."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**WIDTH | {"num_hidden_layers": layers}))
    tokens = torch.randint(3, 96, (4, 16), generator=torch.Generator().manual_seed(0))
    settings = {"sparsity": Sparsity.parse("50%"), "granularity": Granularity.BLOCK, "threshold": 0.5} | changes
    return list(prune(model, CalibrationSet(tokens, "random", 0), PruneConfig(**settings)))


def masks(events: list, kind: type) -> dict:
    """(layer, name) -> mask, of the events of one kind."""
    return {(e.layer, name): mask for e in events if isinstance(e, kind) for name, mask in e.masks.items()}


def measured(stage: str, value: float, dataset: str = "text") -> PerplexityMeasured:
    return PerplexityMeasured(stage, dataset, seqlen=16, tokens=64, perplexity=value, seconds=0.1)


@pytest.fixture(scope="module", params=Order)
def events(request) -> list:
    """A run in each order; in one pass, a layer gets its initial masks sub-block by sub-block."""
    return run(2, order=request.param)


@pytest.fixture(scope="module")
def deep() -> list:
    return run(32)


def test_flips_are_those_of_the_masks(events):
    initial, rebuilt = masks(events, LayerInitialised), masks(events, SubBlockRebuilt)
    table = frames.flips(events)
    assert len(table) == len(rebuilt) == 14
    for row in table.itertuples():
        before, after = initial[row.layer, row.name], rebuilt[row.layer, row.name]
        assert row.grown == int((before & ~after).sum())
        assert row.cut == int((after & ~before).sum())
        assert row.share == (row.grown + row.cut) / before.numel()
    assert table["grown"].sum() == table["cut"].sum() > 0
    assert set(table["module"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_short_names_stay_unique():
    assert frames.short_names(["attn.c_proj", "mlp.c_proj", "mlp.c_fc"]) == {
        "attn.c_proj": "attn.c_proj",
        "mlp.c_proj": "mlp.c_proj",
        "mlp.c_fc": "c_fc",
    }


def test_histograms_count_every_weight_once(events):
    for row in frames.flips(events).itertuples():
        histogram = frames.saliency(events, row.layer, row.name)
        assert not frames.without_saliency(events, row.layer, row.name)
        assert histogram["grown"].sum() == row.grown
        assert histogram["cut"].sum() == row.cut
        assert histogram[list(map(str, Fate))].to_numpy().sum() == row.weights
        assert (histogram["right"] > histogram["left"]).all()


@pytest.fixture(scope="module")
def partly_dead() -> tuple[list, int]:
    """The events of a run of a model with unused hidden units, and the number of their weights in a matrix."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**WIDTH | {"num_hidden_layers": 1}))
    down = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        down[:, :5] = 0.0
    tokens = torch.randint(3, 96, (4, 16), generator=torch.Generator().manual_seed(0))
    config = PruneConfig(Sparsity.parse("50%"), granularity=Granularity.LAYER, threshold=0.5)
    return list(prune(model, CalibrationSet(tokens, "random", 0), config)), down[:, :5].numel()


def legend(events: list, name: str) -> dict[str, int]:
    """Fate -> the count in the figure's legend."""
    zeros = frames.without_saliency(events, 0, name)
    shown = saliency.figure(frames.saliency(events, 0, name), zeros, saliency.BY_FATE, saliency.Scale.SHARE)
    words = [trace.name.rstrip(")").split(" (") for trace in shown.data]
    return {fate: int(count.replace(",", "")) for fate, count in words}


def test_weights_without_saliency_are_counted_by_fate(partly_dead):
    events, unused = partly_dead
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        row = frames.flips(events).set_index("name").loc[name]
        zeros, bins = frames.without_saliency(events, 0, name), frames.saliency(events, 0, name)
        assert sum(zeros.values()) == unused
        assert sum(zeros.values()) + bins[list(map(str, Fate))].to_numpy().sum() == row["weights"]
        counts = legend(events, name)
        assert (counts["grown"], counts["cut"]) == (row["grown"], row["cut"])
        assert counts["pruned"] + counts["cut"] == row["zeros"]
    assert frames.without_saliency(events, 0, "mlp.gate_proj")["cut"] > 0
    assert not frames.without_saliency(events, 0, "no such weight")


def test_runs_without_zeros_by_fate_give_a_total(partly_dead):
    events, unused = partly_dead
    event = next(event for event in events if isinstance(event, SubBlockRebuilt) and "mlp.up_proj" in event.modules)
    module = event.modules["mlp.up_proj"]
    data = event.to_dict()
    data["modules"]["mlp.up_proj"]["histogram"]["zeros"] = unused
    before = Event.read(data)
    assert frames.without_saliency([before], 0, "mlp.up_proj") == {"": unused}
    assert sum(legend([before], "mlp.up_proj").values()) == module.weights - unused


def test_a_grown_weight_matters_more_than_a_cut_one(events):
    row = next(row for row in frames.flips(events).itertuples() if row.grown and row.cut)
    histogram = frames.saliency(events, row.layer, row.name)
    middle = (histogram["left"] + histogram["right"]) / 2
    assert np.average(middle, weights=histogram["grown"]) > np.average(middle, weights=histogram["cut"])


def test_the_most_changed_module_grows_and_cuts(events):
    flips = frames.flips(events).set_index(["layer", "name"])
    chosen = flips.loc[frames.most_changed(flips.reset_index())]
    both = flips[["grown", "cut"]].min(axis=1) / flips["weights"]
    assert min(chosen["grown"], chosen["cut"]) / chosen["weights"] == both.max() > 0


def test_sub_blocks_come_in_order_with_their_errors(events):
    table = frames.sub_blocks(events)
    assert list(zip(table["layer"], table["kind"], strict=True)) == [
        (0, "attention"),
        (0, "mlp"),
        (1, "attention"),
        (1, "mlp"),
    ]
    assert (table["swaps"] > 0).all()
    assert np.allclose(table["change"], table["after"] / table["before"] - 1)


@pytest.mark.parametrize(
    ("dense", "initial", "rebuilt", "share"),
    [(2, 8, 4, 0.5), (2, 8, 2, 1), (2, 8, 8, 0), (2, 8, 16, -0.5), (2, 2, 2, math.nan), (2, math.inf, 4, math.nan)],
)
def test_share_of_the_gap_is_measured_in_logarithms(dense, initial, rebuilt, share):
    assert frames.recovered(dense, initial, rebuilt) == pytest.approx(share, nan_ok=True)
    stages = zip(Stage, (dense, initial, rebuilt), strict=True)
    table = frames.perplexities([measured(stage, value) for stage, value in stages])
    assert table["recovered"].tolist() == pytest.approx([math.nan, math.nan, share], nan_ok=True)


def test_perplexities_of_two_datasets_do_not_mix():
    values = {"one": (2, 8, 4), "two": (3, 27, 3)}
    table = frames.perplexities(
        [measured(stage, v[i], name) for i, stage in enumerate(Stage) for name, v in values.items()]
    )
    shares = table.dropna(subset="recovered").set_index("dataset")["recovered"]
    assert shares.to_dict() == pytest.approx({"one": 0.5, "two": 1})


def test_an_unfinished_run_gives_the_frames_so_far(events):
    half = events[: next(i for i, event in enumerate(events) if isinstance(event, SubBlockRebuilt)) + 1]
    assert set(frames.flips(half)["sub_block"]) == {"self_attn"}
    for table in (frames.flips([]), frames.sub_blocks([]), frames.perplexities([]), frames.texts([])):
        assert table.empty
    assert frames.saliency(half, 1, "mlp.up_proj").empty
    assert frames.summary([])["finished"] is False


def test_texts_are_complete():
    grown = [TextGenerated("dense", "Once", text, done) for text, done in ((" a", False), (" a cat", True))]
    assert frames.texts(grown).to_dict("records") == [{"prompt": "Once", "stage": "dense", "text": " a cat"}]
    assert frames.agreement(" a cat sat", " a cat ran") == len(" a cat")
    assert frames.agreement(" a cats", " a cat") == len(" a")


def test_the_summary_is_plain_json(events):
    with_perplexities = [*events, *(measured(stage, value) for stage, value in zip(Stage, (2, 8, 4), strict=True))]
    facts = json.loads(json.dumps(frames.summary(with_perplexities), allow_nan=False))
    assert facts["zeros"] == facts["weights"] // 2
    assert facts["swaps"] == sum(row["grown"] for row in facts["flips"])
    assert [row["recovered"] for row in facts["perplexity"]] == [None, None, pytest.approx(0.5)]


def test_every_figure_of_a_deep_model_is_small(deep):
    flips = frames.flips(deep)
    assert len(flips) == 32 * 7
    measurements = [
        measured(stage, 10.0 ** (i + k), f"data set {k}") for i, stage in enumerate(Stage) for k in range(3)
    ]
    pictures = {
        "heatmap": figures.flip_heatmap(flips),
        "by layer": figures.flip_bars(flips, "layer"),
        "by module": figures.flip_bars(flips, "module"),
        "errors": figures.sub_block_errors(frames.sub_blocks(deep)),
        "perplexity": figures.perplexity_dots(frames.perplexities(measurements)),
    }
    sizes = {name: len(picture.to_json()) for name, picture in pictures.items()}
    assert all(1_000 < size < LIMIT for size in sizes.values()), sizes


def test_the_heatmap_shows_the_shares(events):
    flips = frames.flips(events)
    trace = figures.flip_heatmap(flips).data[0]
    shown = {(layer, name): trace.z[r][c] for r, name in enumerate(trace.y) for c, layer in enumerate(trace.x)}
    for row in flips.itertuples():
        assert shown[row.layer, row.module] == pytest.approx(100 * row.share, rel=1e-3)


def test_one_bar_stands_for_grown_and_as_many_cut(events):
    flips = frames.flips(events)
    (both,) = figures.flip_bars(flips, "layer").data
    assert sum(both.y) == flips["grown"].sum() == flips["cut"].sum()
    assert "as many cut" in both.name
    unequal = flips.assign(cut=flips["cut"] + 1)
    grown, cut = figures.flip_bars(unequal, "module").data
    assert (sum(grown.y), sum(cut.y)) == (unequal["grown"].sum(), unequal["cut"].sum())
    assert figures.flip_sums(unequal, "module")["cut"].sum() == unequal["cut"].sum()


def test_a_figure_and_its_table_round_alike():
    events = [measured(stage, value) for stage, value in zip(Stage, (1.23456, 3.82649, 2.0), strict=True)]
    frame = frames.perplexities(events)
    (dots,) = figures.perplexity_dots(frame).data
    assert list(dots.text) == [format_perplexity(value) for value in frame["perplexity"]] == ["1.235", "3.826", "2"]
    assert list(dots.x) == frame["perplexity"].tolist()


def test_dots_have_their_intervals_on_a_log_axis():
    events = [measured(stage, value) for stage, value in zip(Stage, (2, 5000, 40), strict=True)]
    frame = frames.perplexities(events).assign(low=[1.9, 4000, math.nan], high=[2.2, 7000, math.nan])
    figure = figures.perplexity_dots(frame)
    (dots,) = figure.data
    assert list(dots.error_x.array) == pytest.approx([0.2, 2000, 0])
    assert list(dots.error_x.arrayminus) == pytest.approx([0.1, 1000, 0])
    assert list(dots.customdata) == ["2, 95 % interval 1.9 to 2.2", "5,000, 95 % interval 4,000 to 7,000", "40"]
    assert figure.layout.xaxis.type == "log"
    assert "tokens" in figure.layout.annotations[0].text


@pytest.mark.parametrize(("low", "high"), [(1.5, 4.2), (20.1, 20.9), (1.9, 7000), (1.7, 1e19), (5.0, 5.1), (0.9, 1.1)])
def test_a_log_axis_has_some_round_ticks(low, high):
    ticks = figures.log_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert low <= ticks[0] <= ticks[-1] <= high


def test_perplexities_have_few_digits():
    values = (1.4641, 22.65, 999.94, 20_521.3, 6.867e19, math.inf)
    assert [format_perplexity(value) for value in values] == ["1.464", "22.65", "999.9", "20,521", "6.9e+19", "inf"]


def test_figures_have_no_background_of_their_own(events):
    for picture in (figures.flip_bars(frames.flips(events)), figures.sub_block_errors(frames.sub_blocks(events))):
        assert picture.layout.paper_bgcolor == picture.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_more_swaps_than_grown_weights_are_explained(events):
    swaps, grown = frames.sub_blocks(events)["swaps"].sum(), frames.flips(events)["grown"].sum()
    assert swaps == grown
    assert f"{swaps:,} swaps: each grew one weight" in frames.describe_swaps(events)
    assert frames.describe_swaps([]) == ""
    again = [replace(e, swaps=e.swaps + 2500) if isinstance(e, SubBlockRebuilt) else e for e in events]
    sentence = frames.describe_swaps(again)
    assert f"made {swaps + 4 * 2500:,} swaps" in sentence
    assert f"in the end {grown:,} weights are grown" in sentence


def test_only_modules_with_a_mask_can_be_selected(events):
    assert len(frames.masked(events)) == len(frames.modules(events)) == 14
    assert frames.masked(events)["shape"].map(math.prod).tolist() == frames.modules(events)["weights"].tolist()
    before = events[: next(i for i, event in enumerate(events) if isinstance(event, LayerInitialised))]
    assert frames.masked(before).empty
    first = events[: len(before) + 1]
    assert set(frames.masked(first)["name"]) == set(first[-1].modules)
