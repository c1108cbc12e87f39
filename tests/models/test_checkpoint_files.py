"""Checkpoint files of layerwise loading: read without memory mapping, and written, one layer at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import str_to_torch_dtype

from barber.errors import UserError
from barber.models.decoder import DecoderView
from barber.models.loading import load
from barber.models.safetensors_file import read_header
from tests.support.families import FAMILIES, build
from tests.support.layerwise import assert_same, check, named, stream
from tests.support.tiny import llama, tokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, (9).to_bytes(8, "little") + b"no header"])
def test_what_is_not_a_safetensors_file_is_refused(header, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=r"cut off|Expecting value"):
        read_header(tmp_path / "x.safetensors")


def test_stored_tensors_are_those_of_the_library(tmp_path):
    """Every dtype, and shapes without elements or dimensions."""
    made = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in str_to_torch_dtype.values()}
    made |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    save_file(made, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = {name: tensor[...] for name, tensor in read_header(tmp_path / "x.safetensors").items()}
    assert read.keys() == made.keys()
    for name, tensor in made.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_saving(family, tmp_path):
    """Saving layer by layer gives the files of saving the whole model, with a random half of the weights zero."""
    build(family, torch.bfloat16).save_pretrained(tmp_path / "dense")
    streamed, full = stream(tmp_path / "dense"), load(str(tmp_path / "dense"), device="cpu").model
    generator = torch.Generator().manual_seed(0)
    final = []
    for layer in DecoderView(full).layers:
        masks = {w.name: torch.rand(w.view.shape, generator=generator) < 0.5 for w in layer.weights}
        layer.assign({w.name: w.view.clone() for w in layer.weights}, masks, {})
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
    with pytest.raises(UserError, match=r"cannot be written to .*(make room|see that the folder)"):
        streamed.save(tmp_path / "dense" / "config.json" / "m", streamed.dense)
    with pytest.raises(KeyError):
        streamed.save(tmp_path / "m", lambda index: streamed.dense(0) if index == 0 else {})
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


LIMITED = """
import resource, sys
from pathlib import Path
from barber.models.layerwise import load_layerwise
from barber.models.loading import find_source, load

way, small, big, out, spare = sys.argv[1:]
load(small, device="cpu")  # imports and threads of the first load do not count
load_layerwise(find_source(small, device="cpu"))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(spare),) * 2)
if way == "full":
    load(big, device="cpu")
else:
    streamed = load_layerwise(find_source(big, device="cpu"))
    for _ in range(2):
        for layer in streamed.view.layers:
            streamed.open(layer.index)
            assert layer.weights[0].view.any()
            if way == "streamed":
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


@pytest.mark.process
@pytest.mark.parametrize(
    ("way", "kind"), [("streamed", "file"), ("streamed", "shards"), ("full", "shards"), ("never closed", "shards")]
)
def test_one_layer_at_a_time_is_in_memory(way, kind, big, tmp_path):
    """With address space for four of 24 layers, every layer is opened and all of it is saved.

    A full load fails, and so does opening layers without closing them.
    """
    streamed = stream(big["file"])
    layer = streamed.layer_bytes(0)
    assert 8e6 < layer < 9e6
    spare = streamed.other_bytes + 4 * layer
    command = [sys.executable, "-c", LIMITED, way, str(big["small"]), str(big[kind]), str(tmp_path / "out"), str(spare)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # glibc gives large blocks back to the system when they are freed. What is large to it grows up to 32 MB, like a
    # matrix of a 7B model; here it is 1 MB, so that these matrices count as theirs do.
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=200, check=False)
    if way != "streamed":
        assert done.returncode != 0
        assert "memory" in done.stderr.lower(), done.stderr
        return
    assert done.returncode == 0, done.stderr
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(named(saved), named(AutoModelForCausalLM.from_pretrained(big["file"])))
