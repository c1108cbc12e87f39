"""Fused experts: every slice is a weight, its calls are found whichever product they are in, and it can be assigned."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations import moe

from barber.models.decoder import DecoderView, DenseWeights, assign_values
from barber.models.inspection import inspect
from barber.models.layerwise import LayerwiseModel
from barber.models.providers import LayerwiseProvider, ResidentProvider
from barber.models.replay import record_layer_calls
from barber.models.taps import by_name, tapping
from tests.support.families import EXPERTS, build
from tests.support.layerwise import assert_same, check, named, stream


def inspected(model) -> DecoderView:
    view = DecoderView(model)
    inspect(view, ResidentProvider(view))
    return view


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", EXPERTS)
def test_every_slice_is_a_weight(family, dtype):
    """All matrices of the layers but routers, and biases of experts, which are stacked to matrices."""
    view = inspected(build(family, dtype))
    assert len(view.layers[-1].weights) == EXPERTS[family][2]
    assert all("router" in name or name.endswith(("mlp.gate", "_bias")) for name in view.coverage.dense)
    assert view.coverage.prunable == sum(weight.view.numel() for layer in view.layers for weight in layer.weights)
    down = [w for w in view.layers[-1].weights if w.whole.endswith(("down_proj", "mlp.output_linear"))]
    weight = next(w for w in down if w.index == 3)
    fused = weight.parameter[3]
    assert torch.equal(weight.view, fused.T if weight.transposed else fused)
    assert weight.transposed == (family in ("gpt_oss", "llama4"))
    assert len(weight.view) == 32


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "fallback"])
@pytest.mark.parametrize("family", EXPERTS)
@torch.no_grad()
def test_taps_are_the_calls_of_each_expert(family, way, monkeypatch):
    """Each tap has y = x W^T, and the experts of a layer have as many inputs as the router sends."""
    model = build(family)
    if way == "fallback":
        monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda *_: False)
    elif model._can_set_experts_implementation():
        model.set_experts_implementation(way)
    view = inspected(model)
    layer = view.layers[-1]
    tokens = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(1))
    calls = record_layer_calls(model, [la.module for la in view.layers], tokens, {})[1]
    hidden = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(2))
    expected = layer.replay(calls[-1].with_hidden(hidden.clone()))
    with tapping(by_name(layer.weights)) as taps:
        assert torch.equal(layer.replay(calls[-1].with_hidden(hidden.clone())), expected)
    rows: dict[str, int] = {}
    for weight in layer.weights:
        for tap in taps.get(weight.name, []) if weight.index is not None else ():
            x, y = tap.own(tap.x).flatten(0, -2), tap.own(tap.y).flatten(0, -2)
            torch.testing.assert_close(y, x @ weight.view.T, atol=1e-6, rtol=1e-5)
            rows[weight.whole] = rows.get(weight.whole, 0) + len(x)
    routed = {"llama4": 4}.get(family, 2) * tokens.numel()  # Llama 4 gives every token to every expert
    assert set(rows.values()) == {routed}


def test_experts_that_cannot_be_followed_stay_dense():
    model = build("mixtral")
    model.set_experts_implementation("batched_mm")  # gathers a matrix for each token
    view = inspected(model)
    assert [[block.name for block in layer.sub_blocks] for layer in view.layers] == [["self_attn"]] * 2
    assert view.coverage.dense == {
        "mlp.gate": 2 * 4 * 32,
        "mlp.experts.gate_up_proj": 2 * 4 * 128 * 32,
        "mlp.experts.down_proj": 2 * 4 * 32 * 64,
    }


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_assigned_slices_leave_the_old_tensors_as_they_are(family):
    view = inspected(build(family))
    dense, weights = DenseWeights(view), view.layers[0].weights
    fused = next(weight for weight in weights if weight.index is not None)
    kept = {key: value.clone() for key, value in dense.tensors.items()}
    before = fused.parameter.data
    fused.assign(torch.ones_like(fused.view))
    assert bool((fused.view == 1).all())
    others = [weight for weight in weights if weight.whole == fused.whole and weight.index != fused.index]
    assert all(torch.equal(weight.view, kept[0, weight.name]) for weight in others)
    assign_values(weights, {weight.name: weight.view * 2 for weight in weights})
    assert bool((fused.view == 2).all())
    assert all(torch.equal(weight.view, 2 * kept[0, weight.name]) for weight in others)
    assert all(torch.equal(dense[key], value) for key, value in kept.items())
    dense.restore()
    assert fused.parameter.data.data_ptr() == before.data_ptr(), "dense weights come back without a copy"
    assert all(torch.equal(weight.view, kept[0, weight.name]) for weight in weights)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_layerwise_loading_and_saving(family, tmp_path):
    full = build(family)
    full.save_pretrained(tmp_path / "dense")
    check(tmp_path / "dense")
    streamed: LayerwiseModel = stream(tmp_path / "dense")
    inspect(streamed.view, LayerwiseProvider(streamed, torch.device("cpu")))
    view = inspected(full)
    assert streamed.view.describe() == view.describe()
    for layer in view.layers:
        assign_values(layer.weights, {weight.name: weight.view / 2 for weight in layer.weights})
    half = {layer.index: {weight.name: weight.view for weight in layer.weights} for layer in view.layers}
    streamed.save(tmp_path / "half", lambda index: half[index])
    assert_same(named(AutoModelForCausalLM.from_pretrained(tmp_path / "half")), named(full))
