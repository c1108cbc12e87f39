"""Layerwise loading in tests: load a model, compare it with the resident one, change its files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from barber.models.decoder import DecoderView
from barber.models.layerwise import LayerwiseModel, load_layerwise
from barber.models.loading import find_source, load

TOKENS = torch.arange(3, 43)[None]


def load_by_layer(name: str, **options) -> LayerwiseModel:
    """As `load`, layer by layer."""
    return load_layerwise(find_source(name, **options))


def stream(folder: Path, **options) -> LayerwiseModel:
    return load_by_layer(str(folder), device="cpu", **options)


def named(model: torch.nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the dictionary of tensors in a folder's safetensors file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def check(folder: Path, **options) -> None:
    """A layerwise model equals the resident one: closed layers are on the meta device, open ones are equal."""
    full = load(str(folder), device="cpu", **options)
    streamed = stream(folder, **options)
    model, view, dense = streamed.loaded.model, streamed.view, DecoderView(full.model)
    layers = [dict(layer.module.named_parameters()) for layer in view.layers]
    resident = {id(tensor): tensor.nbytes for tensor in named(model).values() if not tensor.is_meta}
    assert streamed.other_bytes == sum(resident.values())
    assert all(parameter.is_meta for layer in layers for parameter in layer.values())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert streamed.loaded.max_seqlen == full.max_seqlen
    for index, layer in enumerate(view.layers):
        read = streamed.dense(index)
        assert_same(read, {weight.name: weight.view for weight in dense.layers[index].weights})
        assert all(parameter.is_meta for parameter in layer.module.parameters())
        streamed.open(index)
        weights = {weight.name: weight.view for weight in layer.weights}
        assert_same(read, weights)
        assert not any(weights[name].data_ptr() == read[name].data_ptr() for name in read)
        assert streamed.layer_bytes(index) == sum(p.nbytes for p in layer.module.parameters())
    assert_same(named(model), named(full.model))
    assert len(list(model.parameters())) == len(list(full.model.parameters()))  # tied weights are tied
    assert model.generation_config.to_dict() == full.model.generation_config.to_dict()
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, full.model(TOKENS).logits)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for index, layer in enumerate(view.layers):
        streamed.close(index)
        assert all(parameter.is_meta for parameter in layer.module.parameters())
    assert_same(buffers, dict(model.named_buffers()))
    assert streamed.other_bytes == sum({id(t): t.nbytes for t in named(model).values() if not t.is_meta}.values())
