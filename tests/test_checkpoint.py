"""Streamed models: what is opened is what a full load gives, bit for bit, and no more than that is ever held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from barber.checkpoint import Streamed, load_streamed
from barber.errors import UserError
from barber.load import load
from barber.model import DecoderView
from tests.families import FAMILIES, build
from tests.tiny import llama, tokenizer

ROOT = Path(__file__).parents[1]
TOKENS = torch.arange(3, 43)[None]


def stream(folder: Path, **options) -> Streamed:
    return load_streamed(str(folder), device="cpu", **options)


def named(model: torch.nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def rewrite(folder: Path, change) -> None:
    """Put a changed dictionary of tensors into the one safetensors file of a folder."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def stripped(folder: Path, prefix: str) -> None:
    """Names as the old checkpoints on the hub have them, without the base model's prefix."""
    rewrite(folder, lambda tensors: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


def check(folder: Path, **options) -> None:
    """A streamed model is the full one: everything closed is on meta, everything open is equal."""
    full = load(str(folder), device="cpu", **options)
    streamed = stream(folder, **options)
    model, view, dense = streamed.loaded.model, streamed.view, DecoderView(full.model)
    layers = [dict(layer.module.named_parameters()) for layer in view.layers]
    held = {id(tensor): tensor.nbytes for tensor in named(model).values() if not tensor.is_meta}
    assert streamed.other_bytes == sum(held.values())
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
    assert len(list(model.parameters())) == len(list(full.model.parameters()))  # what was tied is tied
    assert model.generation_config.to_dict() == full.model.generation_config.to_dict()
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, full.model(TOKENS).logits)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for index, layer in enumerate(view.layers):
        streamed.close(index)
        assert all(parameter.is_meta for parameter in layer.module.parameters())
    assert_same(buffers, dict(model.named_buffers()))
    assert streamed.other_bytes == sum({id(t): t.nbytes for t in named(model).values() if not t.is_meta}.values())


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


def test_a_checkpoint_of_the_base_model(tmp_path):
    build("gemma").model.save_pretrained(tmp_path)
    check(tmp_path)


def test_tensors_that_transformers_renames_and_splits(tmp_path, monkeypatch):
    """A rule as transformers has for other families, registered for a plain one: both ways, part by part."""
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # makes the table
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


def test_tensors_that_the_model_has_no_place_for(tmp_path):
    build("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    check(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for(dtype, tmp_path):
    build("gptj", torch.float16).save_pretrained(tmp_path)
    check(tmp_path, dtype=dtype)
    assert stream(tmp_path, dtype=dtype).view.dtype == getattr(torch, dtype)


def test_the_bundled_model():
    streamed, full = load_streamed(device="cpu"), load(device="cpu")
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


@pytest.mark.parametrize("family", FAMILIES)
def test_saving(family, tmp_path):
    """A random half of the weights at zero, saved layer by layer, is what saving the whole model gives."""
    build(family, torch.bfloat16).save_pretrained(tmp_path / "dense")
    streamed, full = stream(tmp_path / "dense"), load(str(tmp_path / "dense"), device="cpu").model
    generator = torch.Generator().manual_seed(0)
    final = []
    for layer in DecoderView(full).layers:
        masks = {w.name: torch.rand(w.view.shape, generator=generator) < 0.5 for w in layer.weights}
        layer.apply(masks, {})
        final.append({weight.name: weight.view.float() for weight in layer.weights})
    streamed.open(1)
    streamed.save(tmp_path / "streamed", lambda index: final[index])
    full.save_pretrained(tmp_path / "whole")
    assert_same(named(load(str(tmp_path / "streamed"), device="cpu").model), named(full))
    names = [path.name for path in sorted((tmp_path / "streamed").glob("*.safetensors"))]
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    shards = {name: load_file(tmp_path / "streamed" / name) for name in names}
    assert (
        shards[names[0]].keys() | shards[names[1]].keys() | shards[names[2]].keys()
        == load_file(tmp_path / "whole" / "model.safetensors").keys()
    )
    index = json.loads((tmp_path / "streamed" / "model.safetensors.index.json").read_text("utf-8"))
    assert index["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in shards.values() for t in tensors.values())
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "streamed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "streamed", "whole"]
    check(tmp_path / "streamed")


def test_saving_brings_the_tokenizer(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "dense")
    tokenizer().save_pretrained(tmp_path / "dense")
    streamed = stream(tmp_path / "dense")
    streamed.save(tmp_path / "again", streamed.dense)
    again = load(str(tmp_path / "again"), device="cpu")
    assert_same(named(again.model), named(model))
    assert again.tokenizer("the cat")["input_ids"] == tokenizer()("the cat")["input_ids"]


def test_saving_leaves_nothing_behind_when_it_fails(tmp_path):
    build("llama").save_pretrained(tmp_path / "dense")
    streamed = stream(tmp_path / "dense")
    with pytest.raises(UserError, match=r"cannot be written to .*make room"):
        streamed.save(tmp_path / "dense" / "config.json" / "m", streamed.dense)
    with pytest.raises(KeyError):
        streamed.save(tmp_path / "m", lambda index: streamed.dense(0) if index == 0 else {})
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


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
    ("spoil", "said"),
    [
        (damaged, "cannot be loaded"),
        (other_shape, r"model\.norm\.weight is \(7,\)"),
        (pickled, "no safetensors weights"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(spoil, said, tmp_path):
    build("llama").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=said):
        stream(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"device": "tpu"}, "Device 'tpu'"), ({"dtype": "int8"}, "Dtype 'int8'"), ({"name": "a/b"}, "cannot be reached")],
)
def test_arguments_are_checked_as_for_a_full_load(options, said, tmp_path):
    build("llama").save_pretrained(tmp_path)
    for way in (load_streamed, load):
        with pytest.raises(UserError, match=said):
            way(**{"name": str(tmp_path), "cache_dir": str(tmp_path)} | options)


@pytest.mark.parametrize("spoil", [damaged, lambda folder: (folder / "model.safetensors").unlink()])
def test_files_that_are_spoilt_later_are_one_sentence(spoil, tmp_path):
    build("llama").save_pretrained(tmp_path)
    streamed = stream(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        for layer in streamed.view.layers:
            streamed.open(layer.index)


def test_a_model_of_the_hub_that_is_cached(tmp_path):
    cached = tmp_path / "models--some--model"
    snapshot = cached / "snapshots" / ("0" * 40)
    build("llama").save_pretrained(snapshot, max_shard_size="20KB")
    tokenizer().save_pretrained(snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40, "utf-8")
    streamed = load_streamed("some/model", device="cpu", cache_dir=str(tmp_path))
    streamed.open(1)
    assert_same(
        dict(streamed.view.layers[1].module.named_parameters()),
        dict(DecoderView(build("llama")).layers[1].module.named_parameters()),
    )


LIMITED = """
import resource, sys
from pathlib import Path
from barber.checkpoint import load_streamed
from barber.load import load

way, small, big, out, spare = sys.argv[1:]
for load_once in (load, load_streamed):  # what the first load imports and starts is not what is measured
    load_once(small, device="cpu")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(spare),) * 2)
if way == "full":
    load(big, device="cpu")
else:
    streamed = load_streamed(big, device="cpu")
    for _ in range(2):
        for layer in streamed.view.layers:
            streamed.open(layer.index)
            assert layer.weights[0].view.any()
            streamed.close(layer.index)
    streamed.save(Path(out), streamed.dense)
print("done")
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> dict[str, Path]:
    """24 layers of 8 MB: in one file and in shards, and a small one to begin with."""
    folder = tmp_path_factory.mktemp("big")
    shape = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 2432, "vocab_size": 2048}
    model = llama(**shape, num_hidden_layers=24)
    model.save_pretrained(folder / "file")
    model.save_pretrained(folder / "shards", max_shard_size="20MB")
    llama(num_hidden_layers=2).save_pretrained(folder / "small")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["file", "shards"])
@pytest.mark.parametrize("way", ["streamed", "full"])
def test_one_layer_at_a_time_is_held(way, kind, big, tmp_path):
    """With address space for six of 24 layers, every layer is opened and all of it is saved; a full load fails."""
    streamed = stream(big["file"])
    layer = streamed.layer_bytes(0)
    assert 8e6 < layer < 9e6
    spare = streamed.other_bytes + 6 * layer
    command = [sys.executable, "-c", LIMITED, way, str(big["small"]), str(big[kind]), str(tmp_path / "out"), str(spare)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=False)
    if way == "full":
        assert done.returncode != 0
        assert "memory" in done.stderr.lower(), done.stderr
        return
    assert done.returncode == 0, done.stderr
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(named(saved), named(AutoModelForCausalLM.from_pretrained(big["file"])))
