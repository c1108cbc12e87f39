"""Layerwise loading: opened layers are those of a full load, bit for bit, for any form of checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, Concatenate, WeightConverter, WeightRenaming

from barber.errors import UserError
from barber.models.decoder import DecoderView
from barber.models.layerwise import load_layerwise
from barber.models.loading import find_source, load
from tests.support.families import FAMILIES, build
from tests.support.layerwise import assert_same, check, named, rewrite, stream
from tests.support.tiny import tokenizer


def stripped(folder: Path, prefix: str) -> None:
    """Remove the base model's prefix from tensor names, as in old checkpoints on the hub."""
    rewrite(folder, lambda tensors: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_opened_layers_are_those_of_a_full_load(family, dtype, tmp_path):
    build(family, dtype).save_pretrained(tmp_path)
    check(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards(family, tmp_path):
    build(family).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    check(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "falcon"])
def test_names_without_the_prefix_of_the_base_model(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    stripped(tmp_path, "transformer.")
    assert not any(name.startswith("transformer.") for name in load_file(tmp_path / "model.safetensors"))
    check(tmp_path)


@pytest.mark.parametrize("head", ["equal", "different", "alone"])
def test_a_tied_head_that_has_a_tensor_of_its_own(head, tmp_path):
    """As in transformers: tied if equal, not tied if different, and a single tensor is used for both."""
    build("gemma").save_pretrained(tmp_path)

    def change(tensors):
        embedding = tensors.pop("model.embed_tokens.weight")
        own = torch.ones_like(embedding) if head == "different" else embedding.clone()
        return tensors | ({} if head == "alone" else {"model.embed_tokens.weight": embedding}) | {"lm_head.weight": own}

    rewrite(tmp_path, change)
    check(tmp_path)
    model = stream(tmp_path).loaded.model
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (head != "different")


def test_a_checkpoint_of_the_base_model(tmp_path):
    build("gemma").model.save_pretrained(tmp_path)
    check(tmp_path)


def test_tensors_that_transformers_renames_and_splits(tmp_path, monkeypatch):
    """A conversion of transformers for other families, registered for Llama: loaded and saved, layer by layer."""
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # creates the table
    rules = [
        WeightConverter("mlp.gate_up_proj.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], [Chunk(dim=0)]),
        WeightRenaming("embedding.", "embed_tokens."),
        WeightRenaming(r"\.attention\.", r".self_attn."),
    ]
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "llama", rules)
    build("llama").save_pretrained(tmp_path / "dense")
    saved = load_file(tmp_path / "dense" / "model.safetensors")
    assert saved["model.layers.1.mlp.gate_up_proj.weight"].shape == (128, 32)
    assert {"model.embedding.weight", "model.layers.0.attention.q_proj.weight"} < saved.keys()
    check(tmp_path / "dense")
    streamed = stream(tmp_path / "dense")
    streamed.save(tmp_path / "again", streamed.dense)
    parts = [load_file(file) for file in (tmp_path / "again").glob("*.safetensors")]
    assert_same({name: tensor for part in parts for name, tensor in part.items()}, saved)
    check(tmp_path / "again")


def test_tensors_that_transformers_merges(tmp_path, monkeypatch):
    conversion_mapping.get_checkpoint_conversion_mapping("phi3")
    parts = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    rules = [WeightConverter(parts, "mlp.gate_up_proj.weight", [Concatenate(dim=0)])]
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "phi3", rules)
    build("phi3").save_pretrained(tmp_path)
    assert f"model.layers.1.{parts[1]}" in load_file(tmp_path / "model.safetensors")
    check(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {f"model.layers.1.{parts[1]}": torch.ones(64, 31)})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.gate_up_proj\.weight cannot be made from"):
        stream(tmp_path)


def test_tensors_that_the_model_does_not_have(tmp_path):
    build("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    check(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for(dtype, tmp_path):
    build("gptj", torch.float16).save_pretrained(tmp_path)
    check(tmp_path, dtype=dtype)
    assert stream(tmp_path, dtype=dtype).view.dtype == getattr(torch, dtype)


def test_the_bundled_model():
    streamed, full = load_layerwise(find_source(device="cpu")), load(device="cpu")
    for layer in streamed.view.layers:
        streamed.open(layer.index)
    assert_same(named(streamed.loaded.model), named(full.model))
    text = "Once upon a time"
    assert streamed.loaded.tokenizer(text)["input_ids"] == full.tokenizer(text)["input_ids"]


def test_opening_twice_keeps_what_was_written_and_closing_loses_it(tmp_path):
    build("llama").save_pretrained(tmp_path)
    streamed = stream(tmp_path)
    weight = streamed.view.layers[1].weights[0]
    streamed.open(1)
    dense = weight.view.clone()
    weight.view.zero_()
    streamed.open(1)
    assert not weight.view.any()
    assert torch.equal(streamed.dense(1)[weight.name], dense)
    assert not weight.view.any()
    streamed.close(1)
    streamed.close(1)
    streamed.open(1)
    assert torch.equal(weight.view, dense)


def test_the_view_of_closed_layers(tmp_path):
    model = build("opt-350m")
    model.save_pretrained(tmp_path)
    streamed = stream(tmp_path)
    assert streamed.view.describe() == DecoderView(model).describe()
    assert streamed.view.device.type == "meta"
    streamed.open(0)
    assert streamed.view.device.type == "cpu"


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_an_incomplete_checkpoint_is_refused(name, tmp_path):
    build("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    for way in (stream, lambda folder: load(str(folder), device="cpu")):
        with pytest.raises(UserError, match=rf"lacks 1 weights, the first is {name}: give a complete checkpoint"):
            way(tmp_path)


def damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_shape(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {"model.norm.weight": torch.ones(7)})


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged, "are damaged"),
        (other_shape, r"model\.norm\.weight is \(7,\)"),
        (pickled, "no safetensors weights"),
    ],
)
def test_a_damaged_checkpoint_is_a_user_error(damage, message, tmp_path):
    build("llama").save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        stream(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "tpu"}, "Device 'tpu'"), ({"dtype": "int8"}, "Dtype 'int8'"), ({"name": "a/b"}, "cannot be reached")],
)
def test_arguments_are_checked_as_for_a_full_load(options, message, tmp_path):
    build("llama").save_pretrained(tmp_path)
    for way in (find_source, load):
        with pytest.raises(UserError, match=message):
            way(**{"name": str(tmp_path), "cache_dir": str(tmp_path)} | options)


def halved(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


@pytest.mark.parametrize("damage", [halved, lambda folder: (folder / "model.safetensors").unlink()])
def test_files_that_are_damaged_later_are_a_user_error(damage, tmp_path):
    build("llama").save_pretrained(tmp_path)
    streamed = stream(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=r"(damaged|lacks a file).*model\.safetensors"):
        streamed.dense(1)
    assert all(tensor.is_meta for tensor in named(streamed.checkpoint.skeleton).values())


def test_a_model_of_the_hub_that_is_cached(tmp_path):
    cached = tmp_path / "models--some--model"
    snapshot = cached / "snapshots" / ("0" * 40)
    build("llama").save_pretrained(snapshot, max_shard_size="20KB")
    tokenizer().save_pretrained(snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40, "utf-8")
    streamed = load_layerwise(find_source("some/model", device="cpu", cache_dir=str(tmp_path)))
    streamed.open(1)
    assert_same(
        dict(streamed.view.layers[1].module.named_parameters()),
        dict(DecoderView(build("llama")).layers[1].module.named_parameters()),
    )
