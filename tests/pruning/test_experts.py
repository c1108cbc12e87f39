"""Runs on mixtures of experts: each expert is pruned as a linear layer of its own would be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations import moe

from barber.config import PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.events import LayerInitialised, Notice, RunFinished, Stage, SubBlockRebuilt
from barber.jobs.job import run_job
from barber.models.decoder import DecoderView
from barber.models.loading import load
from barber.pruning.context import PruningContext
from barber.pruning.gradients import ForwardRecord
from barber.pruning.prune import prune
from barber.pruning.refit import _gradients
from barber.pruning.sub_block_calls import SubBlockCalls
from barber.runs.apply import at_stage
from barber.runs.directory import RunDirectory
from tests.models.test_experts import inspected
from tests.support.experts import unfused
from tests.support.families import EXPERTS, build, copy_weights
from tests.support.jobs import job, masks_in_events, recorded, same, save_inputs, values_in_events

UNFUSABLE = [name for name in EXPERTS if name not in ("llama4", "jetmoe")]
pytestmark = pytest.mark.slow

REBUILD = {"granularity": "block", "threshold": 0.3}


def sequences(samples: int = 16, seqlen: int = 24) -> CalibrationSet:
    tokens = torch.randint(3, 96, (samples, seqlen), generator=torch.Generator().manual_seed(1))
    return CalibrationSet(tokens=tokens, source="random tokens", seed=1)


def state(model) -> dict[tuple[int, str], Tensor]:
    return {(layer.index, weight.name): weight.view for layer in inspected(model).layers for weight in layer.weights}


WAYS = {
    "paper": ("wanda", REBUILD),
    "one-pass": ("sparsegpt", REBUILD | {"order": "one-pass"}),
    "auto": ("wanda", {"threshold": "auto", "rounds": 1}),
    "one-swap": ("sparsegpt", {"refiner": "one-swap"}),
}
CASES = [(family, way) for family in UNFUSABLE for way in WAYS if way in ("paper", "one-pass") or family == "gpt_oss"]


@pytest.mark.parametrize(("family", "way"), CASES)
def test_masks_are_those_of_linear_layers(family, way):
    """The same model with a linear layer for each expert gets the same masks and values, bit for bit."""
    fused = build(family)
    fused.set_experts_implementation("eager")
    by_hand = unfused(fused)
    method, settings = WAYS[way]
    config = PruneConfig(Sparsity.parse("50%"), method, **settings)
    one, other = (list(prune(model, sequences(), config)) for model in (fused, by_hand))
    assert masks_in_events(one).keys() == masks_in_events(other).keys()
    assert same(masks_in_events(one), masks_in_events(other))
    left, right = state(fused), state(by_hand)
    for key, value in left.items():
        torch.testing.assert_close(value, right[key])
    changes = [{e.sub_block: e.swaps for e in events if isinstance(e, SubBlockRebuilt)} for events in (one, other)]
    assert changes[0] == changes[1]
    assert changes[0]["mlp"] > 0


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("family", EXPERTS)
def test_counts_of_every_expert_are_exact(family, pattern):
    model = build(family)
    before = copy_weights(inspected(model))
    others = {name: parameter.clone() for name, parameter in model.named_parameters()}
    sparsity, masks = Sparsity.parse(pattern), {}
    events = list(prune(model, sequences(), PruneConfig(sparsity, "wanda", granularity="layer", threshold=0.3)))
    for event in events:
        if isinstance(event, LayerInitialised):
            for name, mask in event.masks.items():
                assert bool((mask.sum(1) == mask.shape[1] // 2).all()), name
        if isinstance(event, LayerInitialised | SubBlockRebuilt):
            masks |= {(event.layer, name): mask for name, mask in event.masks.items()}
    after = state(model)
    assert masks.keys() == before.keys() == after.keys()
    for key, mask in masks.items():
        assert torch.equal(after[key], before[key].masked_fill(mask, 0))
        assert int(mask.sum()) == mask.numel() // 2
        if sparsity.m:
            assert bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all())
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    assert finished.zeros == sum(int(mask.sum()) for mask in masks.values()) == finished.weights // 2
    pruned = {id(weight.parameter) for layer in DecoderView(model).layers for weight in layer.weights}
    for name, parameter in model.named_parameters():
        assert id(parameter) in pruned or torch.equal(parameter, others[name])


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "fallback"])
@pytest.mark.parametrize("family", EXPERTS)
def test_gradients_are_those_of_the_fused_weights(family, way, monkeypatch):
    """Of each sequence squared, and of a batch for the refit, against autograd of the whole parameters."""
    model = build(family).requires_grad_(False)
    if way == "fallback":
        monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda *_: False)
    elif model._can_set_experts_implementation():
        model.set_experts_implementation(way)
    view = inspected(model)
    context = PruningContext(view, PruningContext.of(model).provider, PruningContext.of(model).store)
    config = PruneConfig(Sparsity.parse("50%"), "wanda")
    stream = context.feed(sequences(3), config)
    assert stream.sizes == [1, 1, 1]
    layer = view.layers[-1]
    block = layer.sub_blocks[-1]
    (earlier,) = layer.sub_blocks[:-1]
    for batch in range(len(stream)):
        stream.save_output(earlier, batch, earlier.replay(earlier.record(stream.call(layer.index, batch))))
    calls = SubBlockCalls.record(layer, block, stream, (earlier,), context.ranks)
    targets = {batch: torch.randn_like(calls.output(batch)) for batch in calls.batches}
    found = {weight.name: torch.zeros_like(weight.view) for weight in block.weights}
    expected = {weight.name: torch.zeros_like(weight.view) for weight in block.weights}
    for batch, target in targets.items():
        record = ForwardRecord.record(block, calls.call(batch), calls.others(batch))
        record.add_squared_gradients(block, target - record.output.detach(), found)
        parameters = list({id(weight.parameter): weight.parameter for weight in block.weights}.values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            error = (block.replay(calls.call(batch), calls.others(batch)) - target).square().mean()
            gradients = torch.autograd.grad(error, parameters, materialize_grads=True)
        for parameter in parameters:
            parameter.requires_grad_(False)
        of = {id(parameter): gradient for parameter, gradient in zip(parameters, gradients, strict=True)}
        refit = _gradients(calls, batch, targets)
        scale = 2.0 ** round(torch.tensor(float(target[0].numel())).log2().item())
        for weight in block.weights:
            own = weight.oriented(of[id(weight.parameter)])
            expected[weight.name] += own.square()
            torch.testing.assert_close(refit[weight.name] / scale, own, atol=1e-7, rtol=1e-4)
    assert any(bool(value.any()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=float(value.max()) * 1e-4, rtol=1e-3)


RUNS = {
    "paper": {"method": "wanda", **REBUILD},
    "one-pass": {"method": "sparsegpt", "retain_reconstruction": True, "order": "one-pass", **REBUILD},
    "auto and refit": {"method": "magnitude", "threshold": "auto", "rounds": 1, "reconstruct": True},
}
JOBS = [(family, run) for family in UNFUSABLE for run in RUNS if run == "one-pass" or family in ("mixtral", "gpt_oss")]


@pytest.mark.parametrize(("family", "run"), JOBS)
def test_layerwise_and_saved(family, run, tmp_path):
    """A run layer by layer equals that in memory, its saved model and its run directory have the masks and values."""
    spec = job(save_inputs(tmp_path, build(family)), **RUNS[run])
    whole = list(run_job(replace(spec, save_model=tmp_path / "whole", run_dir=tmp_path / "resident")))
    layerwise = replace(spec, stream=True, save_model=tmp_path / "streamed", run_dir=tmp_path / "run")
    streamed = list(run_job(layerwise))
    assert same(masks_in_events(whole), masks_in_events(streamed))
    assert same(values_in_events(whole), values_in_events(streamed))
    assert same(masks_in_events(whole), recorded(tmp_path / "run"))
    one, other = (state(AutoModelForCausalLM.from_pretrained(tmp_path / way)) for way in ("whole", "streamed"))
    assert same(one, other)
    dense, values = state(build(family)), recorded(tmp_path / "run", "weights")
    for (layer, name, stage), mask in recorded(tmp_path / "run").items():
        if stage == Stage.REBUILT:
            value = values.get((layer, name, stage), dense[layer, name])
            assert torch.equal(one[layer, name], value.masked_fill(mask, 0))
    loaded = load(str(tmp_path / "model"), device="cpu")
    with at_stage(loaded, RunDirectory(tmp_path / "resident"), Stage.REBUILT):
        assert same(state(loaded.model), one)
    assert same(state(loaded.model), dense)


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "layerwise"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_stopped_run_resumes(family, stream, tmp_path):
    spec = job(save_inputs(tmp_path, build(family)), method="wanda", **REBUILD)
    list(run_job(replace(spec, run_dir=tmp_path / "whole")))
    stopped = replace(spec, run_dir=tmp_path / "stopped", stream=stream)
    events = run_job(stopped)
    rebuilt = 0
    while rebuilt < 2:
        rebuilt += isinstance(next(events), SubBlockRebuilt)
    events.close()
    list(run_job(stopped, resumed=True))
    assert same(recorded(tmp_path / "whole"), recorded(tmp_path / "stopped"))


class TestStarvedExperts:
    @staticmethod
    def starving():
        """A DeepSeek-V3 of which no token reaches the first expert."""
        model = build("deepseek_v3")
        model.model.layers[1].mlp.gate.e_score_correction_bias[0] = -100
        return model

    NAMES = ("mlp.experts.gate_up_proj.0", "mlp.experts.down_proj.0")

    @pytest.mark.parametrize("pattern", ["50%", "2:4"])
    @pytest.mark.parametrize("settings", [REBUILD, {"refiner": "dsnot"}, {"threshold": "auto"}, {"reconstruct": True}])
    @pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
    def test_they_are_pruned_by_magnitude_and_not_rebuilt(self, method, settings, pattern):
        model = self.starving()
        dense, sparsity = copy_weights(inspected(model)), Sparsity.parse(pattern)
        events = list(prune(model, sequences(), PruneConfig(sparsity, method, **settings)))
        masks = masks_in_events(events)
        for name in self.NAMES:
            mask, weight = masks[1, name, Stage.INITIAL], dense[1, name]
            if sparsity.m:
                grouped = weight.abs().unflatten(1, (-1, 4)).masked_fill(~mask.unflatten(1, (-1, 4)), 0).amax(-1)
                assert bool((grouped[..., None] <= weight.abs().unflatten(1, (-1, 4)).masked_fill(
                    mask.unflatten(1, (-1, 4)), torch.inf)).all())  # fmt: skip
            elif method == "wanda":
                cut = weight.abs().masked_fill(~mask, 0).amax(1)
                assert bool((cut[:, None] <= weight.abs().masked_fill(mask, torch.inf)).all())
            assert int(mask.sum()) == mask.numel() // 2
            assert torch.equal(masks[1, name, Stage.REBUILT], mask)
            assert torch.equal(state(model)[1, name], weight.masked_fill(mask, 0))
        initial = [event for event in events if isinstance(event, LayerInitialised)]
        assert [event.starved for event in initial] == [[], list(self.NAMES)]
        (notice,) = [e.message for e in events if isinstance(e, Notice) and "too few calibration tokens" in e.message]
        assert all(f"layers.1.{name}" in notice for name in self.NAMES)

    @pytest.mark.parametrize("allocation", ["owl", "saliency"])
    def test_ratios_do_without_them(self, allocation):
        config = PruneConfig(Sparsity.parse("50%"), "wanda", allocation=allocation)
        (finished,) = [e for e in prune(self.starving(), sequences(), config) if isinstance(e, RunFinished)]
        assert finished.zeros == finished.weights // 2

    def test_a_gram_of_fewer_tokens_than_inputs_is_not_used(self):
        """Of 2 x 24 tokens, on average 24 reach each of 4 experts of 32 and 64 inputs."""
        starved = {}
        for method in ("sparsegpt", "wanda"):
            config = PruneConfig(Sparsity.parse("50%"), method, barber=False)
            initial = [e for e in prune(build("mixtral"), sequences(2), config) if isinstance(e, LayerInitialised)]
            starved[method] = {name for event in initial for name in event.starved}
            assert all(not set(event.starved) & event.weights.keys() for event in initial)
        assert {f"mlp.experts.down_proj.{expert}" for expert in range(4)} <= starved["sparsegpt"]
        assert not starved["wanda"]

    def test_layerwise_and_from_its_run_directory(self, tmp_path):
        spec = job(save_inputs(tmp_path, self.starving()), method="sparsegpt", **REBUILD)
        runs = [list(run_job(replace(spec, stream=way, run_dir=tmp_path / str(way)))) for way in (False, True)]
        assert same(masks_in_events(runs[0]), masks_in_events(runs[1]))
        events = RunDirectory(tmp_path / "True").events()
        assert set(self.NAMES) <= {n for e in events if isinstance(e, LayerInitialised) for n in e.starved}
