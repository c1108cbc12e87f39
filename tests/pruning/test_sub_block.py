"""The rebuild: swaps chosen by validation error, rounds, targets, refiners, and the refit of kept weights."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from barber.config import Granularity, PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Candidate, LayerInitialised, Notice, RunFinished, StageReached, SubBlockRebuilt
from barber.models.decoder import DecoderView, DenseWeights
from barber.models.loading import LoadedModel
from barber.models.replay import first_tensor
from barber.pruning.context import PruningContext
from barber.pruning.prune import prune
from barber.pruning.validation import split_sequences
from barber.registry import INITIAL_MASKS
from barber.runs.apply import at_stage
from barber.runs.directory import RunDirectory
from barber.runs.recorder import create, record
from tests.support.families import FAMILIES, build, copy_weights

pytestmark = pytest.mark.slow

PATTERNS = ("50%", "75%", "2:4", "1:4")


def sequences(samples: int = 8, seqlen: int = 24) -> CalibrationSet:
    tokens = torch.randint(3, 96, (samples, seqlen), generator=torch.Generator().manual_seed(1))
    return CalibrationSet(tokens=tokens, source="random tokens", seed=1)


def run(model, samples: int = 8, sparsity: str = "50%", **settings) -> list:
    return list(prune(model, sequences(samples), PruneConfig(Sparsity.parse(sparsity), **settings)))


def rebuilt(events: list) -> list[SubBlockRebuilt]:
    return [event for event in events if isinstance(event, SubBlockRebuilt)]


def initial_zeros(events: list) -> dict[str, int]:
    """Zeros of each sub-block after the initial mask, by layer and weight name."""
    return {
        (event.layer, name): int(mask.sum())
        for event in events
        if isinstance(event, LayerInitialised)
        for name, mask in event.masks.items()
    }


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt-350m"])
def test_auto_never_ends_worse_than_it_began(family, pattern):
    events = run(build(family), sparsity=pattern, threshold="auto")
    zeros, sparsity = initial_zeros(events), Sparsity.parse(pattern)
    for event in rebuilt(events):
        assert event.rounds
        assert sum(one.swaps for one in event.rounds) == event.swaps
        for one in event.rounds:
            errors = [tried.error for tried in one.curve]
            assert one.curve[0].swaps == 0
            assert one.curve[0].error == one.error_before
            assert one.error == min(errors)
            assert Candidate(one.swap, one.granularity, one.fraction, one.swaps, one.error) in one.curve
        for first, second in pairwise(event.rounds):
            assert first.error == second.error_before
            assert first.swaps, "the round before the last changed something"
        assert sum(module.zeros for module in event.modules.values()) == sum(
            zeros[event.layer, name] for name in event.modules
        )
        for mask in event.masks.values():
            if sparsity.m:
                assert bool((mask.unflatten(1, (-1, sparsity.m)).sum(-1) == sparsity.n).all())
    assert any(event.swaps for event in rebuilt(events))


def test_auto_validates_on_other_sequences_than_it_trains_on():
    config = PruneConfig(Sparsity(0.5), threshold="auto")
    for samples in range(4, 40):
        train, validation = split_sequences(samples, config)
        assert sorted([*train, *validation]) == list(range(samples))
        assert len(validation) == samples // 4
    assert split_sequences(3, PruneConfig(Sparsity(0.5))) == ([0, 1, 2], [0, 1, 2])


def test_each_round_begins_with_the_masks_of_the_last():
    """The first of four rounds equals the single round of another run, and the others lower the error further."""
    one, four = (rebuilt(run(build("llama"), threshold="auto", rounds=rounds)) for rounds in (1, 4))
    assert one[0].rounds[0] == four[0].rounds[0]
    assert all(len(event.rounds) == 1 for event in one)
    assert any(len(event.rounds) > 1 and event.rounds[1].swaps for event in four)


def test_rounds_of_a_fixed_threshold_stop_when_nothing_improves():
    settings = {"granularity": Granularity.BLOCK, "threshold": 0.3}
    published, repeated = (rebuilt(run(build("llama"), rounds=rounds, **settings)) for rounds in (None, 60))
    assert all(event.rounds == [] for event in published)
    for event in repeated:
        errors = [event.rounds[0].error_before, *(one.error for one in event.rounds)]
        assert errors == sorted(errors, reverse=True)
        assert len(event.rounds) < 60
        assert event.rounds[-1].swaps == 0
    assert repeated[0].rounds[0].swaps == published[0].swaps


@pytest.mark.parametrize("refiner", ["one-swap", "dsnot"])
@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt-350m"])
def test_other_refiners_keep_their_counts_row_by_row(family, pattern, refiner):
    events = run(build(family), sparsity=pattern, method="wanda", refiner=refiner)
    initial = {e.layer: e.masks for e in events if isinstance(e, LayerInitialised)}
    for event in rebuilt(events):
        for name, mask in event.masks.items():
            before = initial[event.layer][name]
            width = 4 if ":" in pattern else mask.shape[1]
            assert torch.equal(
                mask.unflatten(1, (-1, width)).sum(-1),
                before.unflatten(1, (-1, width)).sum(-1),
            )
    assert refiner == "dsnot" or any(event.swaps for event in rebuilt(events)), "tiny rows have errors too small for it"


def test_one_swap_lowers_the_reported_error():
    assert all(event.error_after < event.error_before for event in rebuilt(run(build("llama"), refiner="one-swap")))


@pytest.mark.parametrize(
    "settings", [{"threshold": "auto"}, {"threshold": 0.2}, {"refiner": "dsnot", "reconstruct": True}]
)
@torch.no_grad()
def test_the_dense_stream_has_the_outputs_of_the_dense_model(settings):
    """The error of the last sub-block is the distance between the dense and the pruned model's own MLP outputs."""
    model, data = build("llama"), sequences()
    view = DecoderView(model)
    before, last = DenseWeights(view), view.layers[-1].sub_blocks[-1].module

    def outputs() -> list[torch.Tensor]:
        seen = []
        with last.register_forward_hook(lambda _m, _a, out: seen.append(first_tensor(out).clone())):
            for row in data.tokens:
                model(row[None], use_cache=False)
        return seen

    wanted = outputs()
    events = list(prune(model, data, PruneConfig(Sparsity(0.5), target="dense-stream", **settings)))
    found = sum((a - b).square().mean().item() for a, b in zip(wanted, outputs(), strict=True)) / len(wanted)
    assert rebuilt(events)[-1].error_after == pytest.approx(found, rel=1e-4)
    before.restore()
    first, other = (rebuilt(run(build("llama"), target=target, **settings))[0] for target in ("block", "dense-stream"))
    assert all(torch.equal(mask, other.masks[name]) for name, mask in first.masks.items()), (
        "both streams have the same first input"
    )
    assert first.error_before == pytest.approx(other.error_before, rel=1e-5)


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("settings", [{"threshold": "auto"}, {"barber": False}, {"refiner": "dsnot"}])
def test_refitted_weights_keep_their_zeros_and_lower_the_error(settings, pattern, tmp_path):
    model = build("llama")
    loaded = LoadedModel("tiny", model, None, 64)
    config = PruneConfig(Sparsity.parse(pattern), method="wanda", reconstruct=True, **settings)
    view = DecoderView(model)
    dense = DenseWeights(view)
    context = replace(PruningContext.of(model), name="tiny")
    events = list(record(create(tmp_path / "run"), prune(model, sequences(), config, context=context)))
    for event in rebuilt(events):
        fitted = event.refit
        assert fitted.error_after < fitted.error_before
        assert event.error_after < event.error_before
        for name, mask in event.masks.items():
            assert torch.equal(event.weights[name] == 0, mask)
    final = copy_weights(view)
    dense.restore()
    with at_stage(loaded, RunDirectory(tmp_path / "run"), "rebuilt"):
        for layer in view.layers:
            for weight in layer.weights:
                assert torch.equal(weight.view, final[layer.index, weight.name]), weight.name


def test_a_refit_that_diverges_ends_at_the_best_state(monkeypatch):
    monkeypatch.setattr("barber.pruning.refit.RATE", 1e30)
    events = run(build("llama"), reconstruct=True, threshold="auto")
    for event in rebuilt(events):
        assert event.refit.diverged
        assert event.refit.error_after <= event.refit.error_before
        assert math.isfinite(event.error_after)
    assert any("diverged" in event.message for event in events if isinstance(event, Notice))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_family_can_be_refined_and_refitted(family, dtype):
    model = build(family).to(dtype)
    settings = {"reconstruct": True} if dtype is torch.bfloat16 else {"target": "dense-stream"}
    events = run(model, 4, method="wanda", threshold="auto", rounds=1, **settings)
    assert [event.stage for event in events if isinstance(event, StageReached)] == ["initial", "rebuilt"]
    finished = next(event for event in events if isinstance(event, RunFinished))
    assert finished.zeros == sum(initial_zeros(events).values())
    view = DecoderView(model)
    zeros = sum(int((weight.view == 0).sum()) for layer in view.layers for weight in layer.weights)
    assert zeros >= finished.zeros
    assert all(bool(weight.view.isfinite().all()) for layer in view.layers for weight in layer.weights)


@pytest.mark.parametrize("method", INITIAL_MASKS)
def test_every_initial_mask_can_be_refined(method):
    events = run(build("llama"), method=method, threshold="auto", retain_reconstruction=method == "sparsegpt")
    assert all(event.error_after <= event.error_before * 1.5 for event in rebuilt(events))
    assert any(event.swaps for event in rebuilt(events))


@pytest.mark.parametrize(
    ("settings", "samples", "wrong"),
    [
        ({"threshold": "auto"}, 3, "Threshold auto"),
        ({"reconstruct": True}, 3, "Reconstruction"),
        ({"rounds": 0}, 8, "Rounds 0"),
        ({"threshold": "automatic"}, 8, "Threshold 'automatic'"),
        ({"threshold": 1.5}, 8, "Threshold 1.5"),
        ({"refiner": "best"}, 8, "Refiner"),
        ({"target": "moon"}, 8, "Target"),
        ({"allocation": "fair"}, 8, "Allocation"),
        ({"refiner": "dsnot", "target": "dense-stream"}, 8, "dsnot compares each weight"),
    ],
)
def test_user_errors_come_before_any_change(settings, samples, wrong):
    model = build("llama")
    before = copy_weights(DecoderView(model))
    with pytest.raises(UserError, match=wrong):
        run(model, samples, **settings)
    assert all(torch.equal(weight, before[key]) for key, weight in copy_weights(DecoderView(model)).items())


def test_nothing_to_refit_is_refused_first():
    model = build("llama")
    view = DecoderView(model)
    masks = {
        la.index: ({w.name: torch.zeros_like(w.view, dtype=torch.bool) for w in la.weights}, {}) for la in view.layers
    }
    weights = [w for la in view.layers for w in la.weights]
    masks[0][0][weights[0].name][:] = True
    ratio = weights[0].view.numel() / sum(weight.view.numel() for weight in weights)
    config = PruneConfig(Sparsity(ratio), method="masks", initial_masks="given", reconstruct=True)
    with pytest.raises(UserError, match="keep no weight of"):
        list(prune(model, sequences(), config, initial=masks))


@pytest.mark.parametrize("settings", [{"threshold": "auto"}, {"refiner": "one-swap"}, {"refiner": "dsnot"}])
def test_a_weight_that_text_never_reaches_stays_dense(settings):
    """A notice names it, and the masks of the others are those without it."""
    model, plain = build("llama"), build("llama")
    extras = []
    for layer in model.model.layers:
        layer.mlp.extra = torch.nn.Linear(32, 32, bias=False)
        extras.append(layer.mlp.extra.weight.detach().clone())
    events, without = (run(one, reconstruct=True, **settings) for one in (model, plain))
    assert any("mlp.extra" in event.message for event in events if isinstance(event, Notice))
    for event, other in zip(rebuilt(events), rebuilt(without), strict=True):
        assert event.masks.keys() == other.masks.keys()
        assert all(torch.equal(mask, other.masks[name]) for name, mask in event.masks.items())
    assert all(torch.equal(la.mlp.extra.weight, was) for la, was in zip(model.model.layers, extras, strict=True))


@pytest.mark.parametrize(
    "settings", [{"refiner": "one-swap"}, {"barber": False, "reconstruct": True}, {"threshold": "auto"}]
)
def test_overflowing_activations_are_a_user_error(settings):
    model = build("llama", torch.float16)
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1e4)
    model.model.layers[0].mlp.gate_proj.weight.data.mul_(1e4)
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1e4)
    with pytest.raises(UserError, match="overflow"):
        run(model, **settings)


def test_a_refit_changes_no_mask():
    settings = {"granularity": Granularity.BLOCK, "threshold": 0.1}
    plain, fitted = (rebuilt(run(build("llama"), reconstruct=on, **settings))[0] for on in (False, True))
    assert all(torch.equal(mask, fitted.masks[name]) for name, mask in plain.masks.items())


def test_only_values_that_the_mask_does_not_give_are_kept():
    assert all(event.weights == {} for event in rebuilt(run(build("llama"), threshold=0.0)))
    assert all(event.weights for event in rebuilt(run(build("llama"), reconstruct=True)))
