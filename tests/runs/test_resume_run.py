"""Killed and resumed runs: real processes and signals, and the same bits at the end."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from barber.events import LayerInitialised, RunFinished, SubBlockRebuilt
from barber.runs.directory import RunDirectory
from tests.support.jobs import flags, recorded, run, same, save_inputs, start
from tests.support.layerwise import rewrite
from tests.support.tiny import llama

pytestmark = pytest.mark.process

BASE = ["--prune_method", "sparsegpt", "--sparsity_ratio", "0.5", "--prune_barber", "--retain_reconstruction",
        "--prune_granularity", "block", "--threshold", "0.3"]  # fmt: skip
WAYS = {"paper": [], "one-pass": ["--order", "one-pass"], "streamed": ["--stream"]}
SIZE = {"samples": 64, "seqlen": 48}
LAYERS = 4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    model = llama(num_hidden_layers=LAYERS, hidden_size=64, intermediate_size=192)
    return save_inputs(tmp_path_factory.mktemp("workspace"), model, rows=64, seqlen=48)


@pytest.fixture(scope="module")
def whole(workspace):
    """way -> the run directory and the output of an uninterrupted run."""
    made = {}

    def of(way: str) -> tuple[Path, str]:
        if way not in made:
            result = run(*flags(workspace, *BASE, *WAYS[way], "--run_dir", str(workspace / way), **SIZE))
            assert result.returncode == 0, result.stderr
            made[way] = (workspace / way, result.stdout)
        return made[way]

    return of


def lines(path: Path) -> list[dict]:
    """The events in a run directory."""
    text = (path / "events.jsonl").read_text("utf-8") if (path / "events.jsonl").exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def kill_after(process: subprocess.Popen, path: Path, count: int, delay: float) -> None:
    """SIGKILL when so many events are recorded and some time has passed."""
    while len(lines(path)) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "killed before it ended"


def table(text: str) -> str:
    """The part of the output without seconds and bytes: counts and perplexities."""
    rows = text[text.index("perplexity ") :].splitlines()
    return "\n".join([text[: text.index(" s\n")].rpartition(",")[0], *rows])


def stable(event) -> dict:
    """An event without fields that differ between runs."""
    return {key: value for key, value in event.to_dict().items() if key not in ("seconds", "peak_memory")}


@pytest.mark.parametrize(("way", "seed"), [("paper", 1), ("paper", 2), ("one-pass", 3), ("streamed", 4)])
def test_a_killed_run_resumes_to_the_same_results(way, seed, workspace, whole, tmp_path):
    path, rng = tmp_path / "run", random.Random(seed)
    full, printed = whole(way)
    everything = len(lines(full))
    process = start(*flags(workspace, *BASE, *WAYS[way], "--run_dir", str(path), **SIZE))
    kill_after(process, path, rng.randrange(3, everything - 4), rng.random() * 0.03)
    left = lines(path)
    assert len(left) < everything
    result = run("--resume", str(path))
    assert result.returncode == 0, result.stderr
    assert table(result.stdout) == table(printed)
    assert same(recorded(path), recorded(full))
    assert same(recorded(path, "weights"), recorded(full, "weights"))
    events, wanted = RunDirectory(path).events(), RunDirectory(full).events()
    assert [stable(event) for event in events] == [stable(event) for event in wanted]
    check_not_done_again(left, lines(path))
    stages = [row["stage"] for row in json.loads((path / "perplexity.json").read_text())]
    assert stages == ["dense", "initial", "rebuilt"]


def check_not_done_again(left: list[dict], ended: list[dict]) -> None:
    """Layers that were complete before the kill are not repeated: they have the same seconds."""
    names = {"LayerInitialised": 0, "SubBlockRebuilt": 0}
    before = [event for event in left if event["event"] in names]
    after = [event for event in ended if event["event"] in names]
    kept = 0
    while kept < len(before) and before[kept] == after[kept]:
        kept += 1
    undone = {event["layer"] for event in before[kept:]}
    assert len(undone) <= 1, "at most one layer is repeated"
    assert len(before) - kept <= 3


@pytest.mark.parametrize("way", ["paper", "one-pass"])
def test_a_finished_run_is_only_reported_again(way, whole, tmp_path):
    full, printed = whole(way)
    path = tmp_path / "run"
    shutil.copytree(full, path)
    own = ("checksums.jsonl", "writer.json")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name not in own}
    result = run("--resume", str(path))
    assert result.returncode == 0, result.stderr
    assert result.stdout == printed
    assert {file: file.read_bytes() for file in before} == before
    assert {type(event) for event in RunDirectory(path).events()} >= {LayerInitialised, SubBlockRebuilt, RunFinished}


def refusal(*arguments: str) -> str:
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    message = result.stderr.strip().splitlines()[-1].split("\r")[-1]
    assert message.startswith("error: ")
    return message


def test_other_flags_are_refused_with_the_difference(workspace, whole):
    full, _ = whole("paper")
    before = lines(full)
    message = refusal("--resume", str(full), *flags(workspace, *BASE, samples=32, seqlen=48))
    assert "nsamples: 64 there, 32 here" in message
    assert lines(full) == before


def test_the_same_flags_may_be_given_again(workspace, whole):
    full, printed = whole("paper")
    result = run("--resume", str(full), *flags(workspace, *BASE, **SIZE))
    assert (result.returncode, result.stdout) == (0, printed)


def test_other_weights_in_the_folder_are_refused(workspace, whole, tmp_path):
    full, _ = whole("paper")
    path, model, away = tmp_path / "run", workspace / "model", tmp_path / "model"
    shutil.copytree(full, path)
    shutil.copytree(model, away)

    def change(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][0, 0] += 0.5
        return tensors

    try:
        rewrite(model, change)
        message = refusal("--resume", str(path))
    finally:
        shutil.rmtree(model)
        shutil.copytree(away, model)
    assert f"{model} does not have the weights that the run in {path} was started with" in message


@pytest.mark.parametrize("harm", ["torn", "flipped"])
def test_a_damaged_masks_file_is_made_again(harm, whole, tmp_path):
    full, printed = whole("paper")
    path = tmp_path / "run"
    shutil.copytree(full, path)
    file = path / "masks" / "layer_002.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data[: len(data) // 2] if harm == "torn" else data)
    result = run("--resume", str(path))
    assert result.returncode == 0, result.stderr
    assert table(result.stdout) == table(printed)
    assert same(recorded(path), recorded(full))
    assert same(recorded(path, "weights"), recorded(full, "weights"))
    first = [e.seconds for e in RunDirectory(full).events() if isinstance(e, LayerInitialised)]
    again = [e.seconds for e in RunDirectory(path).events() if isinstance(e, LayerInitialised)]
    assert first[:2] == again[:2]
    assert first[2:] != again[2:]
