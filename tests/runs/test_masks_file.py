"""The file of a run's masks: what is read from it equals the run, and a damaged one is refused in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from barber.errors import UserError
from barber.events import Stage
from barber.runs.directory import RunDirectory, open_masks, read_masks
from barber.runs.masks_file import FORMAT, masks_in_file, write_masks
from tests.support.interrupted import interrupted, whole_run, written

pytestmark = pytest.mark.slow


@pytest.fixture
def run() -> RunDirectory:
    """A run of SparseGPT, which gives the kept weights new values at both stages."""
    return RunDirectory(whole_run("paper"))


def equal(one: tuple, two: tuple) -> bool:
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("stage", [Stage.INITIAL, Stage.REBUILT])
def test_a_file_has_the_masks_and_values_of_its_run(run, stage, tmp_path):
    file = tmp_path / "masks.safetensors"
    write_masks(run.stage_masks(stage), file)
    masks = open_masks(file)
    assert (masks.stage, str(masks.pattern), masks.dtype) == (stage, "50%", run.config["dtype"])
    assert sorted(masks.shapes) == run.layers()
    for layer in run.layers():
        assert run.state(layer, stage)[1], "the run has values that are not dense"
        assert equal(masks.state(layer), run.state(layer, stage))
        assert equal(read_masks(file)[layer], run.state(layer, stage))
    assert masks.counts()[0] * 2 == masks.counts()[1]


def test_masks_are_bit_packed_and_described(run, tmp_path):
    file = tmp_path / "masks.safetensors"
    write_masks(run.stage_masks(), file)
    tensors = load_file(file)
    shapes = {f"{m['layer']}.{m['name']}": m["shape"] for m in run.config["modules"]}
    for name, (rows, columns) in shapes.items():
        assert tensors[f"masks/{name}"].dtype == torch.uint8
        assert tensors[f"masks/{name}"].numel() == -(-rows * columns // 8)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert json.loads(header["shapes"]) == shapes
    assert (header[FORMAT], header["stage"], header["pattern"]) == ("1", "rebuilt", "50%")
    assert run.config["model"].startswith("/")
    assert "/" not in header["model"], "the folder of a local model is not for others"


def test_the_last_stage_is_the_default(run):
    assert run.stage_masks().stage == Stage.REBUILT
    assert RunDirectory(whole_run("no rebuild")).stage_masks().stage == Stage.INITIAL


@pytest.mark.parametrize(
    ("order", "count", "stage", "words"),
    [
        ("no rebuild", None, "rebuilt", "has no stage 'rebuilt'"),
        ("paper", 7, None, "has not all masks yet"),
        ("one-pass", 12, None, "has not all masks yet"),
    ],
)
def test_a_stage_that_was_not_reached_is_refused(order, count, stage, words, tmp_path):
    path = whole_run(order) if count is None else interrupted(order, tmp_path / "run", count)
    assert count is None or count < len(written(order))
    with pytest.raises(UserError, match=words):
        RunDirectory(path).stage_masks(stage)


def test_a_file_is_of_one_stage(run, tmp_path):
    write_masks(run.stage_masks("initial"), tmp_path / "masks.safetensors")
    with pytest.raises(UserError, match="has the initial masks"):
        open_masks(tmp_path / "masks.safetensors", "rebuilt")


def test_nothing_is_overwritten(run, tmp_path):
    file = tmp_path / "masks.safetensors"
    file.write_text("mine")
    with pytest.raises(UserError, match="there already"):
        write_masks(run.stage_masks(), file)
    assert file.read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written"):
        write_masks(run.stage_masks(), tmp_path / "missing" / "masks.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["masks.safetensors"]


@pytest.mark.parametrize("damage", ["version", "shape", "bits", "value", "lacking", "config", "dtype", "cut"])
def test_a_damaged_file_is_one_sentence(run, damage, tmp_path):
    file, broken = tmp_path / "masks.safetensors", tmp_path / "broken.safetensors"
    write_masks(run.stage_masks(), file)
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    name = next(iter(tensors)).partition("/")[2]
    shapes = json.loads(header["shapes"])
    match damage:
        case "version":
            header[FORMAT] = "2"
        case "shape":
            header["shapes"] = json.dumps(shapes | {name: [shapes[name][0] * 100, shapes[name][1]]})
        case "bits":
            tensors[f"masks/{name}"] = tensors[f"masks/{name}"][1:].clone()
        case "value":
            tensors[f"values/{name}"] = tensors[f"values/{name}"][1:].clone()
        case "lacking":
            del tensors[f"masks/{name}"]
        case "config":
            header["config"] = "{}"
        case "dtype":
            header["dtype"] = "int3"
    save_file(tensors, broken, metadata=header)
    if damage == "cut":
        broken.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError) as caught:
        open_masks(broken).counts()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        read_masks(broken)


def test_masks_of_a_run_whose_files_are_gone_are_refused(tmp_path):
    shutil.copytree(whole_run("paper"), tmp_path / "run")
    (tmp_path / "run" / "masks" / "layer_001.safetensors").unlink()
    with pytest.raises(UserError, match=r"layer 1 in .* are damaged"):
        RunDirectory(tmp_path / "run").stage_masks().counts()


def test_other_files_are_not_taken_for_exports(tmp_path):
    save_file({"0.self_attn.q_proj": torch.ones(2, 2)}, tmp_path / "plain.safetensors")
    assert masks_in_file(tmp_path / "plain.safetensors") is None
    with pytest.raises(UserError, match="do not say which model"):
        open_masks(tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        open_masks(tmp_path / "none.safetensors")
