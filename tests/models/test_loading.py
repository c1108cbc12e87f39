"""Folders and hub models that cannot be pruned: user errors that name the remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from barber.errors import UserError
from barber.models.loading import load
from barber.models.saving import save_model
from tests.support.families import build
from tests.support.layerwise import assert_same, check, load_by_layer, named
from tests.support.tiny import llama, tokenizer

ROOT = Path(__file__).parents[2]
WAYS = pytest.mark.parametrize("way", [load, load_by_layer], ids=["resident", "layerwise"])


def refused(way, folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        way(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def configure(folder: Path, **values) -> None:
    """Change the config.json of a folder."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    build("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
class TestAdapters:
    @pytest.fixture
    def adapter(self, tmp_path) -> Path:
        torch.manual_seed(0)
        adapted = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    @WAYS
    def test_beside_the_weights(self, way, adapter, folder):
        for file in adapter.iterdir():
            file.rename(folder / file.name)
        refused(way, folder, r"has an adapter \(adapter_config\.json\).*merge_and_unload")

    @WAYS
    def test_alone(self, way, adapter):
        refused(way, adapter, r"has an adapter \(adapter_config\.json\).*merge_and_unload")


@WAYS
class TestFolders:
    def test_without_config(self, way, folder):
        (folder / "config.json").unlink()
        refused(way, folder, r"has no config\.json: give the folder that save_pretrained wrote")

    def test_of_the_hubs_cache(self, way, folder, tmp_path):
        cached = tmp_path / "models--some--model"
        (cached / "snapshots").mkdir(parents=True)
        folder.rename(cached / "snapshots" / "abc")
        refused(way, cached, r"looks like a folder of the hub's cache: give .*snapshots/abc\.$")

    def test_weights_that_cannot_be_read(self, way, folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(folder / "gone")
        refused(way, folder, r"model\.safetensors in .* is a link to nothing: give a folder whose weights can be read")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").mkdir()
        refused(way, folder, r"model\.safetensors in .* is no file")

    def test_weights_of_another_size(self, way, folder):
        configure(folder, intermediate_size=72)
        refused(way, folder, r"json: model\.layers\.0\.mlp\.down_proj\.weight is \(32, 64\) in the .* \(32, 72\)")

    @pytest.mark.parametrize("key", ["max_position_embeddings", "num_hidden_layers", "vocab_size"])
    def test_sizes_of_zero(self, way, key, folder):
        configure(folder, **{key: 0})
        refused(way, folder, rf"has {key} 0, which no language model has")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"hidden_size": 33}, r"does not fit its architecture \(The hidden size \(33\) is not a multiple"),
            ({"num_hidden_layers": "two"}, r"does not fit its architecture \(Field 'num_hidden_layers' expected int"),
            ({"hidden_act": "nonesuch"}, "has 'nonesuch', which this version of transformers does not know"),
            ({"num_attention_heads": -4}, "has num_attention_heads -4, which no language model has"),
            ({"model_type": "nonesuch"}, "this version of transformers does not know: upgrade transformers"),
        ],
    )
    def test_configs_with_impossible_values(self, way, values, message, folder):
        configure(folder, **values)
        refused(way, folder, message)

    @pytest.mark.parametrize(("text", "message"), [("{}", "has no model_type"), ("{", "damaged JSON file")])
    def test_configs_that_are_damaged(self, way, text, message, folder):
        (folder / "config.json").write_text(text, "utf-8")
        refused(way, folder, message)

    def test_a_shard_that_is_missing(self, way, folder):
        (folder / "model.safetensors").unlink()
        build("llama").save_pretrained(folder, max_shard_size="20KB")
        (folder / "model-00002-of-00007.safetensors").unlink()
        refused(way, folder, r"lacks a file that belongs to it \(.*model-00002-of-00007.*\): download or copy it whole")

    def test_weights_that_are_damaged(self, way, folder):
        os.truncate(folder / "model.safetensors", 5000)
        refused(way, folder, r"The weights of .* are damaged \(.*\): download or copy them again")


@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user")
@WAYS
def test_weights_of_another_user(way, folder, tmp_path):
    """Read by a user without permission."""
    (folder / "model.safetensors").chmod(0o600)
    scratch = Path(tempfile.gettempdir())
    for place in (folder, tmp_path, *(parent for parent in tmp_path.parents if scratch in parent.parents)):
        place.chmod(0o755)
    os.seteuid(65534)
    try:
        refused(way, folder, r"model\.safetensors in .* may not be read by you")
    finally:
        os.seteuid(0)


def test_both_loaders_read_the_file_that_the_config_names(folder):
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    configure(folder, transformers_weights="own.safetensors")
    check(folder)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_saved_model_loads_where_users_load_it(layerwise, folder, tmp_path):
    """Its config has no former sparsity, which other programs refuse, and a tied embedding is stored once."""
    build("gemma").save_pretrained(folder)
    configure(folder, sparsity_config={"format": "dense"})
    if layerwise:
        streamed = load_by_layer(str(folder), device="cpu")
        streamed.save(tmp_path / "saved", streamed.dense)
    else:
        save_model(load(str(folder), device="cpu"), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    assert not {"sparsity_config", "quantization_config", "compression_config"} & config.keys()
    keys = [key for file in (tmp_path / "saved").glob("*.safetensors") for key in load_file(file)]
    assert [key for key in keys if "embed" in key or "head" in key] == ["model.embed_tokens.weight"]
    assert_same(named(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), named(build("gemma")))


def test_an_error_of_save_pretrained_is_a_user_error(folder, tmp_path):
    """Two weights that share memory but are not tied, which safetensors refuses."""
    loaded = load(str(folder), device="cpu")
    layers = loaded.model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(UserError, match="transformers cannot write this model"):
        save_model(loaded, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


LOAD = """
from barber.models.layerwise import load_layerwise
from barber.models.loading import load
print(load("some/model", device="cpu").tokenizer("the cat")["input_ids"])
from barber.models.loading import find_source
print(load_layerwise(find_source("some/model", device="cpu")).other_bytes)
"""


def test_a_cached_model_without_network_is_quick_and_quiet(tmp_path):
    """With an unreachable hub, no request is repeated and no warning is printed."""
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("0" * 40)
    llama().save_pretrained(snapshot)
    tokenizer().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40, "utf-8")
    environment = os.environ | {
        "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    started = time.monotonic()
    quiet = "from transformers.utils import logging; logging.disable_progress_bar()"  # as in the command line
    done = subprocess.run(
        [sys.executable, "-c", quiet + LOAD], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tokenizer()("the cat")["input_ids"]))
    assert time.monotonic() - started < 60  # on a busy machine; three minutes before


def test_a_partly_cached_model_is_a_user_error(tmp_path):
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    llama().save_pretrained(snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40, "utf-8")
    for way in (load, load_by_layer):
        with pytest.raises(UserError, match="only in part on this machine, and the hub cannot be reached"):
            way("some/model", device="cpu", cache_dir=str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_auto_picks_no_dtype_that_this_cpu_multiplies_slowly(tmp_path, dtype):
    llama().to(dtype).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    picked = load(str(tmp_path), device="cpu").model.dtype
    assert picked in (dtype, torch.float32)
    assert _seconds(picked) < 3 * _seconds(torch.float32)
    assert load(str(tmp_path), device="cpu", dtype=str(dtype).removeprefix("torch.")).model.dtype == dtype


def _seconds(dtype: torch.dtype) -> float:
    """CPU seconds of a matrix product, the best of several."""
    matrix, seconds = torch.ones(512, 512, dtype=dtype), []
    for _ in range(8):
        started = time.process_time()
        torch.mm(matrix, matrix)
        seconds.append(time.process_time() - started)
    return min(seconds)
