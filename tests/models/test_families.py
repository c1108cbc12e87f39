"""Every supported family: all weights found, exact replays, exact sparsity in fp32 and bf16."""

from __future__ import annotations

import pytest
import torch

from barber.config import Granularity, PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.events import LayerInitialised, RunFinished, SubBlockRebuilt
from barber.models.decoder import DecoderView
from barber.models.replay import first_tensor, replay
from barber.pruning.activation_store import ActivationStore
from barber.pruning.activations import ActivationStream
from barber.pruning.prune import prune
from barber.registry import INITIAL_MASKS
from tests.support.families import FAMILIES, build, copy_weights


def sequences(samples: int = 3, seqlen: int = 24) -> CalibrationSet:
    tokens = torch.randint(3, 96, (samples, seqlen), generator=torch.Generator().manual_seed(1))
    return CalibrationSet(tokens=tokens, source="random tokens", seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_found(family):
    model = build(family)
    view = DecoderView(model)
    found = {id(weight.parameter) for layer in view.layers for weight in layer.weights}
    layers = [p for layer in view.layers for p in layer.module.parameters() if p.dim() == 2]
    assert {id(p) for p in layers} == found
    assert [len(layer.weights) for layer in view.layers] == [FAMILIES[family][2]] * 2
    for layer in view.layers:
        assert [block.kind for block in layer.sub_blocks] == ["attention", "mlp"]
        for weight in layer.weights:
            x = torch.randn(2, weight.view.shape[1])
            expected = weight.module(x) - (weight.module.bias if weight.module.bias is not None else 0)
            torch.testing.assert_close(x @ weight.view.T, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_replay_is_exact(family):
    """The stream gives the model's own hidden states, and each sub-block replayed alone its own output."""
    model = build(family)
    view, data = DecoderView(model), sequences()
    seen: dict[int, list[torch.Tensor]] = {layer.index: [] for layer in view.layers}
    hooks = [
        layer.module.register_forward_hook(lambda _m, _a, out, i=layer.index: seen[i].append(first_tensor(out).clone()))
        for layer in view.layers
    ]
    for row in data.tokens:
        model(row[None], use_cache=False)
    for hook in hooks:
        hook.remove()

    stream = ActivationStream(model, [layer.module for layer in view.layers], ActivationStore(torch.device("cpu")))
    for row in data.tokens:
        stream.feed(row[None])
    for layer in view.layers:
        for j in range(len(stream)):
            call = stream.call(layer.index, j)
            for block in layer.sub_blocks:
                inner = block.record(call)
                assert torch.equal(block.replay(inner), block.replay(inner))
                whole = []
                target = block.module or block.weights[-1].module
                # Cloned at once: Falcon adds the attention's output to the MLP's in place.
                keep = lambda _m, _a, out, whole=whole: whole.append(first_tensor(out).clone())  # noqa: E731
                with target.register_forward_hook(keep):
                    replay(layer.module, call)
                assert torch.equal(block.replay(inner), whole[0].view(block.replay(inner).shape))
            stream.advance(layer, j)
            assert torch.equal(stream.hidden[j], seen[layer.index][j])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_and_rebuild_keep_the_count(family, dtype):
    model = build(family, dtype)
    before = copy_weights(DecoderView(model))
    others = {name: p.clone() for name, p in model.named_parameters()}
    config = PruneConfig(Sparsity.parse("50%"), "wanda", granularity=Granularity.BLOCK, threshold=0.5)
    masks: dict[tuple[int, str], torch.Tensor] = {}
    initial: dict[tuple[int, str], torch.Tensor] = {}
    for event in prune(model, sequences(), config):
        if isinstance(event, (LayerInitialised, SubBlockRebuilt)):
            keyed = {(event.layer, name): mask for name, mask in event.masks.items()}
            (initial if isinstance(event, LayerInitialised) else masks).update(keyed)
        if isinstance(event, SubBlockRebuilt):
            zeros = sum(module.zeros for module in event.modules.values())
            assert zeros == sum(int(initial[event.layer, name].sum()) for name in event.modules)
            assert event.swaps > 0
        if isinstance(event, RunFinished):
            assert event.zeros == sum(mask.shape[0] * (mask.shape[1] // 2) for mask in masks.values())
    assert masks.keys() == before.keys()
    pruned = set()
    for layer in DecoderView(model).layers:
        for weight in layer.weights:
            mask = masks[layer.index, weight.name]
            assert torch.equal(weight.view, before[layer.index, weight.name].masked_fill(mask, 0))
            pruned.add(id(weight.parameter))
    for name, parameter in model.named_parameters():
        if id(parameter) not in pruned:
            assert torch.equal(parameter, others[name]), f"{name} is not prunable and must not change"


@pytest.mark.parametrize("pattern", ["37%", "2:4", "1:4", "8:16"])
@pytest.mark.parametrize("method", INITIAL_MASKS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt-350m"])
def test_every_method_and_pattern_is_exact(family, method, pattern):
    """Linear, Conv1D and linears on the layer itself: as many zeros in the model as the masks and the pattern say."""
    model = build(family)
    before = copy_weights(DecoderView(model))
    sparsity = Sparsity.parse(pattern)
    config = PruneConfig(sparsity, method, granularity=Granularity.LAYER, threshold=0.3)
    masks: dict[tuple[int, str], torch.Tensor] = {}
    for event in prune(model, sequences(), config):
        if isinstance(event, (LayerInitialised, SubBlockRebuilt)):
            masks |= {(event.layer, name): mask for name, mask in event.masks.items()}
    for layer in DecoderView(model).layers:
        for weight in layer.weights:
            mask, dense = masks[layer.index, weight.name], before[layer.index, weight.name]
            assert torch.equal(weight.view, dense.masked_fill(mask, 0))
            assert int((weight.view == 0).sum()) == int(mask.sum())
            if sparsity.m:
                assert bool((mask.unflatten(1, (-1, sparsity.m)).sum(-1) == sparsity.n).all())
            elif method in ("wanda", "wandd"):
                assert int(mask.sum()) == sparsity.count(mask.shape[1]) * mask.shape[0]
            elif method in ("magnitude", "ria", "random"):
                assert int(mask.sum()) == sparsity.count(mask.numel())
            else:
                blocks = [part.numel() for part in mask.split(128, dim=1)]
                assert int(mask.sum()) == sum(map(sparsity.count, blocks))
