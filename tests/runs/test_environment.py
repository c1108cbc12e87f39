"""The hashes of a model: the same for a resident and a layerwise model, and different for any changed number."""

from __future__ import annotations

import pytest
import torch

from barber.models.decoder import DecoderView
from barber.models.loading import load
from barber.models.providers import LayerwiseProvider, ResidentProvider
from barber.runs.environment import hash_model
from tests.support.families import FAMILIES, build
from tests.support.layerwise import stream
from tests.support.tiny import llama


def resident(model) -> tuple[str, dict[str, str]]:
    view = DecoderView(model)
    return hash_model(ResidentProvider(view), view)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_model_has_the_hashes_of_the_whole(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    streamed = stream(tmp_path)
    provider = LayerwiseProvider(streamed, torch.device("cpu"))
    assert hash_model(provider, streamed.view) == resident(load(str(tmp_path), device="cpu").model)
    assert all(p.is_meta for layer in streamed.view.layers for p in layer.module.parameters()), "closed again"


def test_any_tensor_that_differs_changes_a_hash():
    model = llama()
    before = resident(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert len(tensors) > 12
    for name, tensor in tensors.items():
        kept = tensor.detach().clone()
        tensor.data.view(-1)[-1] += 1
        assert resident(model) != before, name
        tensor.data.copy_(kept)
    assert resident(model) == before
