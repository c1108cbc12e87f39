"""Masks that are exported and applied: the model is that of the run, bit for bit, or a sentence says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from barber.cli import main
from barber.models.saving import folder_digests
from tests.support.families import build
from tests.support.jobs import flags, save_inputs
from tests.support.tiny import llama

pytestmark = pytest.mark.slow

METHODS = {
    "rebuilt": ["--prune_method", "wanda", "--prune_barber", "--threshold", "0.3", "--prune_granularity", "block"],
    "not rebuilt": ["--prune_method", "magnitude"],
    "sparsegpt": ["--prune_method", "sparsegpt", "--prune_barber", "--threshold", "auto", "--retain_reconstruction"],
    "alps": ["--prune_method", "alps"],
    "refit": ["--prune_method", "wanda", "--prune_barber", "--threshold", "auto", "--reconstruct"],
    "layerwise": ["--prune_method", "sparsegpt", "--stream"],
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    folder = save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=2))
    llama(seed=1, num_hidden_layers=2).save_pretrained(folder / "other")
    llama(num_hidden_layers=1).save_pretrained(folder / "shallow")
    return folder


def prune(workspace: Path, place: Path, *more: str) -> None:
    """A run with its saved model, both in `place`."""
    outputs = ["--run_dir", str(place / "run"), "--save_model", str(place / "saved")]
    assert main([*flags(workspace), "--sparsity_ratio", "0.5", *more, *outputs]) == 0


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", METHODS)
def test_an_applied_file_gives_the_model_of_the_run(workspace, method, tmp_path, capsys):
    prune(workspace, tmp_path, *METHODS[method])
    file = str(tmp_path / "masks.safetensors")
    assert main(["masks", str(tmp_path / "run"), "--output", file]) == 0
    assert main(["apply", file, "--model", str(workspace / "model"), "--save_model", str(tmp_path / "file")]) == 0
    run = str(tmp_path / "run")
    streamed = ["--stream", "--save_model", str(tmp_path / "directory")]
    assert main(["apply", run, "--model", str(workspace / "model"), *streamed]) == 0
    assert "50.0000%" in capsys.readouterr().out
    assert same(tmp_path / "saved", tmp_path / "file")
    assert same(tmp_path / "saved", tmp_path / "directory")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "file")


def test_initial_masks_of_a_rebuilt_run_can_be_applied_and_pruned_with(workspace, tmp_path, capsys):
    prune(workspace, tmp_path, *METHODS["rebuilt"])
    prune(workspace, tmp_path / "initial", "--prune_method", "wanda")
    file = str(tmp_path / "masks.safetensors")
    assert main(["masks", str(tmp_path / "run"), "--stage", "initial", "--output", file]) == 0
    assert main(["apply", file, "--model", str(workspace / "model"), "--save_model", str(tmp_path / "applied")]) == 0
    assert same(tmp_path / "applied", tmp_path / "initial" / "saved")
    given = [*flags(workspace), "--initial_masks", file, "--save_model", str(tmp_path / "again")]
    assert main(given) == 0, "the file has its pattern"
    assert same(tmp_path / "again", tmp_path / "initial" / "saved")
    assert "initial masks" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gpt2"])
def test_masks_of_experts_and_of_transposed_weights_are_applied(family, tmp_path):
    workspace = save_inputs(tmp_path, build(family))
    prune(workspace, tmp_path, *METHODS["rebuilt"])
    file = str(tmp_path / "masks.safetensors")
    assert main(["masks", str(tmp_path / "run"), "--output", file]) == 0
    assert main(["apply", file, "--model", str(workspace / "model"), "--save_model", str(tmp_path / "file")]) == 0
    assert same(tmp_path / "saved", tmp_path / "file")


@pytest.fixture(scope="module")
def exported(workspace, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    prune(workspace, place, *METHODS["rebuilt"])
    assert main(["masks", str(place / "run"), "--output", str(place / "masks.safetensors")]) == 0
    return place / "masks.safetensors"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "{workspace}/other"], "does not have the weights that the masks in"),
        (["--model", "{workspace}/shallow"], "has other weight matrices than model"),
        (["--model", "{workspace}/model", "--dtype", "bfloat16"], "in bfloat16 does not have the weights"),
        (["--model", "{workspace}/none"], "neither a folder"),
        (["--model", "{workspace}/model", "--stage", "initial"], "has the rebuilt masks"),
        (["--model", "{workspace}/model", "--max_memory", "much"], "is not a size"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(workspace, exported, words, sentence, tmp_path, capsys):
    words = [word.format(workspace=workspace) for word in words]
    assert main(["apply", str(exported), *words, "--save_model", str(tmp_path / "new")]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_refused_and_another_model_only_on_request(workspace, exported, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    other = ["apply", str(exported), "--model", str(workspace / "other")]
    assert main([*other, "--allow_other", "--save_model", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"
    assert main([*other, "--allow_other", "--save_model", str(tmp_path / "new")]) == 0
    pruned, dense, masked = tensors(tmp_path / "new"), tensors(workspace / "other"), tensors(exported.parent / "saved")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(pruned[name] == 0, masked[name] == 0)
    assert torch.equal(pruned[name], torch.where(masked[name] == 0, 0.0, dense[name]))


def test_a_run_without_a_recorded_hash_is_checked_by_its_matrices(workspace, tmp_path):
    prune(workspace, tmp_path, *METHODS["not rebuilt"])
    for name in ("environment.json", "checksums.jsonl"):
        (tmp_path / "run" / name).unlink()
    run = ["apply", str(tmp_path / "run"), "--save_model", str(tmp_path / "new")]
    assert main([*run, "--model", str(workspace / "shallow")]) == 2
    assert main([*run, "--model", str(workspace / "model")]) == 0
    assert same(tmp_path / "saved", tmp_path / "new")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["masks", "{run}", "--output", "{place}/x.zip"], "does not end in .safetensors"),
        (["masks", "{place}", "--output", "{place}/x.safetensors"], "holds no run"),
        (["masks", "{run}", "--output", "{run}/../masks.safetensors"], "there already"),
        (["apply", "{place}/none", "--model", "storyteller", "--save_model", "{place}/m"], "does not exist"),
    ],
)
def test_a_wrong_place_is_one_sentence(exported, words, sentence, tmp_path, capsys):
    places = {"run": exported.parent / "run", "place": tmp_path}
    before = folder_digests(exported.parent)
    assert main([word.format(**places) for word in words]) == 2
    assert sentence in capsys.readouterr().err
    assert folder_digests(exported.parent) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["apply", "masks", "report", "tables"])
def test_every_command_has_its_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"{command} [-h]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([command, "--nonsense"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
