"""One weight read from the files of a model: for each family the values that the loaded model has."""

from __future__ import annotations

import pytest
import torch

from barber.bundled import STORYTELLER
from barber.errors import UserError
from barber.models.decoder import DecoderView
from barber.models.loading import load
from barber.models.stored_weights import read_weight
from tests.support.families import FAMILIES, build


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_a_stored_weight_is_that_of_the_loaded_model(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    read = 0
    for weight in DecoderView(load(str(tmp_path), device="cpu").model).layers[1].weights:
        value = read_weight(str(tmp_path), 1, weight.name)
        assert (value is None) == (weight.index is not None)
        if value is not None:
            assert torch.equal(value, weight.view)
            read += 1
    assert read


def test_the_bundled_model_is_read_by_its_name():
    weight = DecoderView(load(STORYTELLER, device="cpu").model).layers[2].weights[0]
    assert torch.equal(read_weight(STORYTELLER, 2, weight.name), weight.view)


@pytest.mark.parametrize(("layer", "name"), [(99, "self_attn.q_proj"), (0, "no such weight")])
def test_a_weight_that_does_not_exist_is_none(layer, name):
    assert read_weight(STORYTELLER, layer, name) is None


def test_a_model_that_is_gone_is_a_user_error(tmp_path):
    with pytest.raises(UserError):
        read_weight(str(tmp_path / "gone"), 0, "self_attn.q_proj")
