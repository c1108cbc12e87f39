"""Faults of resumed runs: changed inputs, files of other programs, damaged files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from barber.cli import main
from barber.errors import UserError
from barber.job_spec import JobSpec
from barber.models.saving import folder_digests
from barber.runs.directory import RunDirectory
from barber.runs.recorder import create
from tests.support.jobs import ROOT, flags, recorded, same, save_inputs
from tests.support.layerwise import rewrite
from tests.support.tiny import llama

BARBER = ["--prune_method", "wanda", "--sparsity_ratio", "0.5", "--prune_barber", "--threshold", "0.3"]
SIZE = {"samples": 4, "seqlen": 16}
OLD = ROOT / "tests" / "golden" / "runs-0.1.0"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A workspace with a run that saved its model, with paths relative to the folder "here"."""
    workspace = save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=2), seqlen=16)
    (workspace / "here").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace / "here")
        given = [
            os.path.relpath(flag) if flag.startswith(str(workspace)) else flag for flag in flags(workspace, **SIZE)
        ]
        assert main([*given, *BARBER, "--run_dir", "run", "--save_model", "saved"]) == 0
    return workspace


@pytest.fixture
def workspace(begun, tmp_path):
    """A copy of it at the same path, since the run has the paths of its inputs; the original is restored at the end."""
    shutil.copytree(begun, tmp_path / "kept", symlinks=True)
    yield begun
    shutil.rmtree(begun)
    shutil.copytree(tmp_path / "kept", begun, symlinks=True)


def resume(run: Path, *more: str) -> int:
    return main(["--resume", str(run), *more])


def cut(run: Path, event: str) -> None:
    """Cut the run as if it was killed before its first event of this kind."""
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == event)
    (run / "events.jsonl").write_bytes(b"".join(lines[:first]))


def raise_tensor(model: Path, name: str) -> None:
    def change(tensors):
        tensors[name].view(-1)[0] += 0.5
        return tensors

    rewrite(model, change)


def set_config(model: Path, **changes) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


INPUTS = {
    "embedding": (lambda w: raise_tensor(w / "model", "model.embed_tokens.weight"), "tensors.model.embed_tokens"),
    "norm": (lambda w: raise_tensor(w / "model", "model.layers.1.input_layernorm.weight"), "tensors.layers.1"),
    "head": (lambda w: raise_tensor(w / "model", "lm_head.weight"), "tensors.lm_head.weight"),
    "config": (lambda w: set_config(w / "model", rms_norm_eps=0.1), "model_config.rms_norm_eps: 1e-06 there, 0.1 here"),
    "evaluation": (
        lambda w: np.save(w / "evaluation.npy", np.load(w / "evaluation.npy")[::-1]),
        "evaluation.evaluation.npy.fingerprint",
    ),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("change", INPUTS)
def test_other_inputs_are_refused_with_the_difference(change, streamed, workspace, capsys):
    run = workspace / "here" / "run"
    if streamed:  # the same model, loaded layer by layer
        data = json.loads((run / "job.json").read_text()) | {"stream": True}
        vouched = (run / "checksums.jsonl").read_text().splitlines()[2:]
        again = create(workspace / "again", JobSpec.from_dict(data), json.loads((run / "environment.json").read_text()))
        with (again / "checksums.jsonl").open("a") as file:
            file.write("\n".join(vouched) + "\n")
        for name in ("masks", "saliency", "events.jsonl"):
            copy = shutil.copytree if (run / name).is_dir() else shutil.copy
            shutil.rmtree(again / name, ignore_errors=True)
            copy(run / name, again / name)
        run = again
    before = folder_digests(run / "masks")
    harm, words = INPUTS[change]
    harm(workspace)
    assert resume(run) == 2
    assert words in capsys.readouterr().err
    assert folder_digests(run / "masks") == before


def test_other_initial_masks_are_refused(begun, tmp_path, capsys):
    given = [*flags(begun, **SIZE), "--initial_masks", str(tmp_path / "masks"), "--sparsity_ratio", "0.5"]
    shutil.copytree(begun / "here" / "run", tmp_path / "masks")
    assert main([*given, "--run_dir", str(tmp_path / "run")]) == 0
    file = tmp_path / "masks" / "masks" / "layer_000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 3
    file.write_bytes(data)
    assert resume(tmp_path / "run") == 2
    assert "initial_masks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["begun", "finished"])
def test_runs_of_an_older_version_resume(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = tmp_path / name
    shutil.copytree(OLD / name, run)
    assert resume(run) == 0
    assert RunDirectory(run).environment["model_hash"]
    assert {event.stage for event in RunDirectory(run).events() if hasattr(event, "perplexity")} >= {"dense", "rebuilt"}


def test_a_run_is_resumed_from_another_folder_and_deletes_only_its_own(workspace, tmp_path, monkeypatch, capsys):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "mine").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert resume(workspace / "here" / "run", "--delete") == 0
    assert (tmp_path / "saved" / "mine").read_text() == "mine"
    assert not (workspace / "here" / "saved").exists()
    assert f"Deleted the saved model {workspace / 'here' / 'saved'}" in capsys.readouterr().out
    assert resume(workspace / "here" / "run", "--delete") == 0, "what is gone is gone"


@pytest.mark.parametrize("change", ["another file", "another content"])
def test_a_folder_that_changed_is_not_deleted(change, workspace, capsys):
    saved = workspace / "here" / "saved"
    (saved / ("notes.txt" if change == "another file" else "config.json")).write_text("mine")
    before = folder_digests(saved)
    assert resume(workspace / "here" / "run", "--delete") == 2
    captured = capsys.readouterr()
    assert "was not deleted" in captured.err
    assert "prunable weights" in captured.out, "the results are printed"
    assert folder_digests(saved) == before


def test_delete_of_a_run_that_saved_nothing_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    shutil.copytree(OLD / "finished", tmp_path / "run")
    assert resume(tmp_path / "run", "--delete") == 2
    assert "--save_model" in capsys.readouterr().err


def test_a_run_killed_before_its_first_event_resumes(workspace):
    run = workspace / "here" / "run"
    whole = recorded(run)
    (run / "events.jsonl").unlink()
    shutil.rmtree(workspace / "here" / "saved")
    assert (run / "config.json").exists()
    assert resume(run) == 0
    assert same(recorded(run), whole)


@pytest.mark.parametrize("left", ["whole", "in part", "not yet"])
def test_a_run_killed_after_it_saved_its_model_resumes(left, workspace):
    run, saved = workspace / "here" / "run", workspace / "here" / "saved"
    whole = folder_digests(saved)
    cut(run, "Saved")
    if left == "in part":
        (saved / "config.json").unlink()
    if left == "not yet":  # only its checksum is on the disk
        shutil.rmtree(saved)
        (run / "saved.json").unlink()
    assert resume(run) == 0
    assert folder_digests(saved) == whole


def test_files_of_the_user_are_not_taken_for_the_model(workspace, capsys):
    saved = workspace / "here" / "saved"
    cut(workspace / "here" / "run", "Saved")
    (saved / "notes.txt").write_text("mine")
    assert resume(workspace / "here" / "run") == 2
    assert "is not empty" in capsys.readouterr().err
    assert (saved / "notes.txt").read_text() == "mine"


LINES = {"blank": b"", "zeros": bytes(80), "number": b"7", "unknown": b'{"event": "Nothing"}', "no UTF-8": b"\xff\xfe"}


@pytest.mark.parametrize("damage", [*LINES, "digit"])
def test_events_from_a_damaged_line_on_are_discarded(damage, workspace):
    run = workspace / "here" / "run"
    whole, file = recorded(run), run / "events.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[3] = LINES[damage] if damage in LINES else re.sub(rb"\d", lambda digit: b"%d" % (9 - int(digit[0])), lines[3])
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match="line 4 of"):
        RunDirectory(run).events()
    assert resume(run) == 0
    assert same(recorded(run), whole)
    assert RunDirectory(run).events()


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '{"model_hash": "0"}'])
def test_a_damaged_environment_is_refused(text, workspace, capsys):
    (workspace / "here" / "run" / "environment.json").write_text(text)
    assert resume(workspace / "here" / "run") == 2
    assert "environment.json" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1]", "7", "null", '{"event": "RunStarted", "model": 7}'])
def test_a_damaged_configuration_is_a_user_error(text, workspace):
    (workspace / "here" / "run" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        RunDirectory(workspace / "here" / "run").config  # noqa: B018
    assert resume(workspace / "here" / "run") == 0


def test_lost_masks_are_made_again_and_other_files_stay(workspace):
    run = workspace / "here" / "run"
    whole = recorded(run)
    shutil.rmtree(run / "masks")
    (run / "saliency" / "notes.json").write_text("mine")
    (run / "draft.part").write_text("mine")
    assert resume(run) == 0
    assert same(recorded(run), whole)
    assert {(run / name).read_text() for name in ("saliency/notes.json", "draft.part")} == {"mine"}


def test_only_flags_that_were_given_are_named(workspace, capsys):
    assert resume(workspace / "here" / "run", "--threshold", "0.5", "--prune_granularity", "output1") == 2
    message = capsys.readouterr().err
    assert "prune.threshold: 0.3 there, 0.5 here" in message
    assert "nsamples" not in message
    assert (
        resume(workspace / "here" / "run", "--sparsity_ratio", "0.5", "--save_model", str(workspace / "here" / "saved"))
        == 0
    )


HOLD = """
import sys, time
from pathlib import Path
from barber.runs.writer_lock import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_has_one_writer_whose_lock_ends_with_its_process(workspace, capsys):
    run = workspace / "here" / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        before = folder_digests(run)
        assert resume(run) == 2
        assert f"process {other.pid} on" in capsys.readouterr().err
        assert folder_digests(run) == before
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert resume(run) == 0


def test_all_files_have_the_mode_of_the_umask(begun, tmp_path):
    former = os.umask(0o027)
    try:
        given = [*flags(begun, **SIZE), "--prune_method", "sparsegpt", "--sparsity_ratio", "0.5"]
        given += ["--save_data", str(tmp_path / "data.npy"), "--save_ppl", str(tmp_path / "ppl")]
        assert main([*given, "--run_dir", str(tmp_path / "run"), "--save_model", str(tmp_path / "saved")]) == 0
    finally:
        os.umask(former)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 12
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}
