"""Parity with the paper's published implementation (see golden_data)."""

from __future__ import annotations

import pytest
import torch

from barber.events import SubBlockRebuilt
from barber.models.decoder import DecoderView, assign_values
from barber.models.taps import by_name, tapping
from barber.pruning.activation_store import ActivationStore
from barber.pruning.activations import ActivationStream
from barber.pruning.gradients import ForwardRecord
from barber.pruning.initial_masks import make_masks
from barber.pruning.prune import prune
from barber.pruning.statistics import StatisticSums
from barber.registry import INITIAL_MASKS, METRICS
from tests.support import golden_data as golden

UNSTRUCTURED = [run_id for run_id, run in golden.RUNS.items() if "stype" not in run]
PATTERNED = [run_id for run_id, run in golden.RUNS.items() if "stype" in run and run.get("barber", True)]
INITIAL = sorted({run["init"] for run in golden.RUNS.values()})


def initial_of(run: dict) -> dict:
    masks = golden.masks("initial_masks", run["init"], run["family"])
    updates = golden.updates(run["init"], run["family"]) if run["method"] == "sparsegpt" else {}
    return {layer: (masks[layer], updates.get(layer, {})) for layer in masks}


def rebuild(run: dict, attention: str) -> list[SubBlockRebuilt]:
    config = golden.config(run, method="masks", initial_masks="golden")
    events = prune(golden.model(run["family"], attention), golden.calibration(), config, initial=initial_of(run))
    return [event for event in events if isinstance(event, SubBlockRebuilt)]


@pytest.mark.parametrize("run_id", UNSTRUCTURED)
def test_rebuilt_masks_are_identical(run_id):
    run = golden.RUNS[run_id]
    expected = golden.masks("rebuilt_masks", run_id, run["family"])
    flips = 0
    for event in rebuild(run, "eager"):
        for name, mask in event.masks.items():
            assert torch.equal(mask, expected[event.layer].pop(name)), f"layer {event.layer} {name}"
        flips += 2 * event.swaps
    assert not any(expected.values()), "every weight was rebuilt"
    assert flips == run["flips"]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_fused_attention_gives_the_same_masks(method):
    run_id = f"llama-{method}-unstructured-0.5-block-0.5-WD"
    run = golden.RUNS[run_id]
    expected = golden.masks("rebuilt_masks", run_id, "llama")
    for event in rebuild(run, "sdpa"):
        for name, mask in event.masks.items():
            assert torch.equal(mask, expected[event.layer][name]), f"layer {event.layer} {name}"


@pytest.mark.parametrize("key", INITIAL)
def test_initial_masks(key):
    """Wanda and n:m are identical; published magnitude and SparseGPT prune one weight too many, ours do not.

    Each layer is compared on the published stream: the layers before it have the published weights.
    """
    run = next(run for run in golden.RUNS.values() if run["init"] == key)
    family, method = run["family"], INITIAL_MASKS[run["method"]]
    sparsity, patterned = golden.config(run).sparsity, "stype" in run
    published = golden.masks("initial_masks", key, family)
    updates = golden.updates(key, family) if run["method"] == "sparsegpt" else {}
    view = DecoderView(golden.model(family, "eager"))
    stream = ActivationStream(view.model, [layer.module for layer in view.layers], ActivationStore(torch.device("cpu")))
    for row in golden.calibration().tokens:
        stream.feed(row[None])
    seen = 0
    for layer in view.layers:
        sums = StatisticSums(method.statistic)
        dense = {weight.name: weight.view.clone() for weight in layer.weights}
        for j in range(len(stream) if method.calibrated else 0):
            with tapping(by_name(layer.weights)) as taps:
                layer.replay(stream.call(layer.index, j))
            sums.add(taps)
        ours, _ = make_masks(layer.index, layer.weights, method, sums.values, sparsity)
        for weight in layer.weights:
            theirs, mask = published[layer.index][weight.name], ours[weight.name]
            extra = 0 if patterned or run["method"] in ("wanda", "wandd") else 1
            if run["method"] == "sparsegpt":
                extra *= -(-mask.shape[1] // 128)
            assert not bool((mask & ~theirs).any()), f"ours is a subset at layer {layer.index} {weight.name}"
            assert int(theirs.sum() - mask.sum()) == extra
            values = updates.get(layer.index, {}).get(weight.name, dense[weight.name].masked_fill(theirs, 0))
            weight.view.copy_(values)
            seen += 1
        for j in range(len(stream)):
            stream.advance(layer, j)
    assert seen == len(golden.INDEX["shapes"][family])


@pytest.mark.parametrize("run_id", PATTERNED)
def test_patterns_stay_valid_and_never_lose_saliency(run_id):
    """The published code swaps pairs that lose saliency; ours must not."""
    run = golden.RUNS[run_id]
    expected = golden.masks("rebuilt_masks", run_id, run["family"])
    n, m = (int(part) for part in run["stype"].split(":"))
    for event in rebuild(run, "eager"):
        for name, mask in event.masks.items():
            zeros = mask.unflatten(1, (-1, m)).sum(-1)
            assert bool((zeros == n).all())
            module = event.modules[name]
            assert module.saliency_after >= module.saliency_before
            assert int(expected[event.layer][name].sum()) == module.zeros


@pytest.mark.parametrize("run_id", PATTERNED)
def test_patterns_keep_at_least_as_much_saliency_as_published(run_id):
    """On the first sub-block, whose input is the same for both, one saliency measures both masks."""
    run = golden.RUNS[run_id]
    config, family = golden.config(run), run["family"]
    view = DecoderView(golden.model(family, "eager"))
    view.model.requires_grad_(False)
    block = view.layers[0].sub_blocks[0]
    masks = golden.masks("initial_masks", run["init"], family)[0]
    masks = {weight.name: masks[weight.name] for weight in block.weights}
    theirs = golden.masks("rebuilt_masks", run_id, family)[0]
    updates = golden.updates(run["init"], family)[0] if run["method"] == "sparsegpt" else {}
    dense = {weight.name: weight.view.clone() for weight in block.weights}
    initial = {name: updates.get(name, dense[name]).masked_fill(mask, 0) for name, mask in masks.items()}

    stream = ActivationStream(view.model, [layer.module for layer in view.layers], ActivationStore(torch.device("cpu")))
    squares = {name: torch.zeros_like(value) for name, value in dense.items()}
    for row in golden.calibration().tokens:
        stream.feed(row[None])
        call = block.record(stream.call(0, len(stream) - 1))
        assign_values(block.weights, initial)
        sparse = block.replay(call)
        assign_values(block.weights, dense)
        record = ForwardRecord.record(block, call)
        record.add_squared_gradients(block, record.output.detach() - sparse, squares)
    ours = rebuild(run, "eager")[0].masks
    for name, mask in masks.items():
        weight = torch.where(mask, dense[name], initial[name]) if config.retain_reconstruction else dense[name]
        score = METRICS[config.metric].call(weight, squares[name] / 16)
        assert score[~ours[name]].sum() >= score[~theirs[name]].sum() - 1e-9, name
