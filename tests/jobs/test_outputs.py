"""The outputs of a job: impossible ones are refused before the work, and no other file is overwritten."""

from __future__ import annotations

import os
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from barber.cli import main
from barber.errors import UserError
from barber.events import SubBlockRebuilt
from barber.models.loading import load
from barber.models.saving import MARK, folder_digests, save_model
from barber.runs.directory import RunDirectory
from tests.support.jobs import flags, save_inputs
from tests.support.tiny import llama

PRUNE = ["--prune_method", "magnitude", "--sparsity_ratio", "0.5"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=2))


@pytest.fixture
def place(tmp_path):
    """A folder with files and folders that an output may conflict with."""
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "mine").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("flag", "name", "words"),
    [
        ("save_ppl", "file", "not a folder"),
        ("save_ppl", "fifo", "not a folder"),
        ("save_ppl", "/dev/full", "not a folder"),
        ("save_zeroshot", "file", "not a folder"),
        ("save_ppl", "loop", "cannot be written"),
        ("save_ppl", "file/below", "cannot be written"),
        ("save_data", "fifo.npy", "neither a .npy file"),
        ("save_data", "file", "nor a new or empty folder"),
        ("save_data", ".new.part", "nor a new or empty folder"),
        ("save_data", "file/below", "cannot be written"),
        ("save_model", "new", "in the way"),
        ("save_model", "n" * 252, "cannot be written"),
    ],
)
def test_an_output_is_refused_before_the_work(flag, name, words, workspace, place, capsys):
    os.mkfifo(place / "fifo.npy")
    before = folder_digests(place)
    assert main([*flags(workspace), *PRUNE, f"--{flag}", str(place / name)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert folder_digests(place) == before


def test_results_that_cannot_be_written_are_a_user_error(workspace, tmp_path, capsys):
    (tmp_path / "ppl" / "perplexity.json" / "in the way").mkdir(parents=True)
    assert main([*flags(workspace), *PRUNE, "--save_ppl", str(tmp_path / "ppl")]) == 2
    captured = capsys.readouterr()
    assert "The results cannot be written" in captured.err
    assert "evaluation.npy" in captured.out


def test_a_model_that_cannot_be_saved_loses_no_results(workspace, tmp_path, capsys):
    """A limit of the file size below that of the weights has the effect of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16 + 1, limits[1]))
    try:
        assert main([*flags(workspace), *PRUNE, "--save_model", str(tmp_path / "saved")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    captured = capsys.readouterr()
    assert "The model cannot be written" in captured.err
    assert "evaluation.npy" in captured.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", [[], ["--stream"]])
def test_an_empty_folder_is_filled(way, workspace, tmp_path):
    """A mount point cannot be replaced; the draft of a killed process in it is removed."""
    saved = tmp_path / "saved"
    (saved / ".saved.part" / "model").mkdir(parents=True)
    (saved / ".saved.part" / MARK).touch()
    (saved / ".saved.part" / "model" / "torn").write_text("torn")
    number = saved.stat().st_ino
    assert main([*flags(workspace), *PRUNE, *way, "--save_model", str(saved)]) == 0
    assert saved.stat().st_ino == number
    assert not list(saved.glob(".*"))
    assert AutoModelForCausalLM.from_pretrained(saved)


def test_a_draft_of_another_program_is_neither_used_nor_removed(workspace, place):
    with pytest.raises(UserError, match="in the way"):
        save_model(load(str(workspace / "model"), device="cpu"), place / "new")
    assert (place / ".new.part" / "mine").read_text() == "mine"
    assert not (place / "new").exists()


def test_calibration_tokens_overwrite_nothing(workspace, tmp_path, capsys):
    file = tmp_path / "tokens.npy"
    job = [*flags(workspace), *PRUNE, "--prune_barber", "--save_data", str(file)]
    file.write_bytes(b"mine")
    assert main(job) == 2
    assert "overwrites nothing" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"
    file.unlink()
    assert main(job) == 0
    assert np.load(file).shape == (8, 24)
    assert main(job) == 0, "the same tokens may be written again"
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npy"]


def gain_frames(folder) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in sorted((folder / "gains").iterdir())}


@pytest.mark.parametrize("settings", [["--prune_granularity", "block", "--threshold", "0.1"], ["--threshold", "auto"]])
def test_the_gains_of_the_pairs_are_saved(settings, workspace, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    flags_of = [*flags(workspace), *PRUNE, "--prune_barber", *settings, "--run_dir", str(run)]
    assert main([*flags_of, "--save_data", str(data)]) == 0
    assert np.load(data / "calibration.npy").shape == (8, 24)
    found = gain_frames(data)
    assert list(found) == [f"layer_00{layer}.{name}" for layer in (0, 1) for name in ("mlp", "self_attn")]
    for event in RunDirectory(run).events():
        if isinstance(event, SubBlockRebuilt):
            frame = found[f"layer_{event.layer:03}.{event.sub_block}"]
            assert list(frame.columns) == ["rank", "share", "gain"]
            assert frame["rank"].iloc[[0, -1]].tolist() == [1, event.candidates]
            assert frame["rank"].is_monotonic_increasing
            assert len(frame) == min(event.candidates, 1000)
            assert frame["gain"].is_monotonic_decreasing
            assert (frame["gain"] > 0).all()
            assert frame["share"].iloc[-1] == 1
            assert frame["gain"].tolist() == event.curve.gains
    shutil.rmtree(data)
    assert main(["--resume", str(run)]) == 0
    again = gain_frames(data)
    assert found.keys() == again.keys()
    assert all(found[name].equals(again[name]) for name in found)


def test_a_run_without_pairs_saves_tokens_and_says_so(workspace, tmp_path, capsys):
    data = tmp_path / "data"
    assert main([*flags(workspace), *PRUNE, "--prune_barber", "--refiner", "dsnot", "--save_data", str(data)]) == 0
    assert "wrote no gains" in capsys.readouterr().out
    assert [path.name for path in data.iterdir()] == ["calibration.npy"]
    assert main([*flags(workspace), *PRUNE, "--save_data", str(tmp_path / "none.npy")]) == 0
    assert "needs no calibration sequences" in capsys.readouterr().out
    assert not (tmp_path / "none.npy").exists()
