"""A run directory after any death or damage: what is left is right, and going on ends as if nothing had been.

Every point at which a process can die is tried by copying the directory before each file operation.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import (
    Event,
    LayerInitialised,
    PerplexityMeasured,
    Progress,
    RunFinished,
    RunStarted,
    Stage,
    StageReached,
    SubBlockRebuilt,
    TextGenerated,
    ZeroShotMeasured,
    ZeroShotSkipped,
)
from barber.files import check_room, read_packed
from barber.job import run_job
from barber.record import create, record
from barber.resume import Finished, difference, read_job, reopen
from barber.runs import RunDirectory
from barber.spec import JobSpec
from tests.golden_data import GOLDEN
from tests.tiny import llama

ORDERS = ("paper", "one-pass", "no rebuild")
LAYERS = 2
TOKENS = str(GOLDEN / "calibration_tokens.npy")


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """No power is lost here, and thousands of syncs take minutes on some disks; where they happen still counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def new_folder() -> Path:
    """A folder that is there until the tests end."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def job() -> JobSpec:
    """SparseGPT with its values kept, so that there are weights to be stored at both stages."""
    folder = new_folder()
    llama(num_hidden_layers=LAYERS, vocab_size=512).save_pretrained(folder)
    config = PruneConfig(
        Sparsity.parse("50%"), "sparsegpt", granularity="block", threshold=0.5, retain_reconstruction=True
    )
    return JobSpec(model=str(folder), prune=config, calibration=TOKENS, evaluation=(), nsamples=4, seqlen=64)


@cache
def story(order: str) -> list[Event]:
    """The events of a real run with their tensors, in an order, and what may be measured at each stage."""
    spec = job() if order != "no rebuild" else replace(job(), prune=replace(job().prune, barber=False))
    events = [event for event in run_job(spec) if type(event).__name__ not in ("JobPlanned", "Notice", "Progress")]
    started = next(event for event in events if isinstance(event, RunStarted))
    layers = [e for e in events if isinstance(e, (LayerInitialised, SubBlockRebuilt))]
    layers = one_pass(layers) if order == "one-pass" else layers
    stages = [Stage.INITIAL, Stage.REBUILT][: sum(isinstance(event, StageReached) for event in events)]
    split = len(layers) if order == "one-pass" else LAYERS
    told = [*measured(Stage.DENSE), started, Progress("initial mask", 1, 2), *layers[:split]]
    told += [StageReached(stages[0]), *measured(stages[0]), *layers[split:]]
    for stage in stages[1:]:
        told += [StageReached(stage), *measured(stage)]
    return [*told, events[-1]]


def one_pass(layers: list[Event]) -> list[Event]:
    """The same masks, each sub-block rebuilt as soon as it is initialised."""
    told = []
    for rebuilt in (event for event in layers if isinstance(event, SubBlockRebuilt)):
        first = next(e for e in layers if isinstance(e, LayerInitialised) and e.layer == rebuilt.layer)
        parts = {
            part: {name: value for name, value in getattr(first, part).items() if name in rebuilt.modules}
            for part in ("modules", "masks", "weights")
        }
        told += [replace(first, **parts), rebuilt]
    return told


def measured(stage: str) -> list[Event]:
    return [
        PerplexityMeasured(stage, "text", 16, 64, 2.0 + len(stage), 0.1),
        TextGenerated(stage, "the", " ca", done=False),
        TextGenerated(stage, "the", " cat", done=True),
        ZeroShotMeasured(stage, "story_ending", {"acc": 0.5}, {"acc": None}, 4),
        ZeroShotSkipped("piqa", "no data"),
    ]


def written(order: str) -> list[Event]:
    """The events that a directory holds."""
    return [e for e in story(order) if not isinstance(e, Progress) and getattr(e, "done", True)]


def started(order: str) -> RunStarted:
    return next(event for event in story(order) if isinstance(event, RunStarted))


def stream(events):
    yield from events


@cache
def whole_run(order: str) -> Path:
    path = create(new_folder(), job())
    list(record(path, stream(story(order))))
    return path


def interrupted(order: str, path: Path, count: int) -> Path:
    """A run that died after so many events."""
    create(path, job())
    list(record(path, stream(written(order)[:count])))
    return path


def boundary(order: str, count: int) -> int:
    """How many of the first `count` events stay: whole layers, of two sub-blocks each."""

    def is_whole(n: int) -> bool:
        kinds = [type(event) for event in written(order)[:n]]
        steps = kinds.count(SubBlockRebuilt)
        if order == "one-pass":
            return (steps + kinds.count(LayerInitialised)) % 4 == 0
        return steps % 2 == 0

    return next(n for n in range(count, -1, -1) if is_whole(n))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def content(path: Path) -> dict[str, object]:
    """All that a run directory holds, but for the checksums."""
    found = {}
    for file in sorted(path.rglob("*.*")):
        if file.suffix == ".safetensors":
            tensors, shapes = read_packed(file)
            found[str(file.relative_to(path))] = (shapes, {key: value.tolist() for key, value in tensors.items()})
        elif file.name != "checksums.jsonl":
            found[str(file.relative_to(path))] = file.read_bytes()
    return found


def check(order: str, path: Path) -> Finished:
    """Reopen a directory; what is called finished is as in the whole run, and nothing else is there."""
    finished = reopen(path, started(order))
    kept = finished.before + finished.events
    assert kept == written(order)[: len(kept)]
    assert len(kept) == finished.recorded == boundary(order, len(kept))
    assert not finished.events or isinstance(finished.events[0], RunStarted)
    lines = (path / "events.jsonl").read_text().splitlines()
    assert [Event.from_dict(json.loads(line)) for line in lines] == kept
    assert not list(path.rglob("*.part"))
    for name, kinds in (("perplexity", PerplexityMeasured), ("zeroshot", (ZeroShotMeasured, ZeroShotSkipped))):
        file = path / f"{name}.json"
        entries = json.loads(file.read_text()) if file.exists() else []
        assert entries == [event.to_dict() for event in kept if isinstance(event, kinds)]
    assert (path / "config.json").exists() == bool(finished.events)
    if finished.events:
        run, full = RunDirectory(path), RunDirectory(whole_run(order))
        for stage, count in ((Stage.INITIAL, finished.initial), (Stage.REBUILT, finished.rebuilt)):
            for layer in range(LAYERS):
                for one, two in zip(run.recorded(layer, stage), full.recorded(layer, stage), strict=True):
                    assert same(one, two if layer < count else {})
        histograms = {f"layer_{layer:03}.json" for layer in range(finished.rebuilt)}
        assert {file.name for file in (path / "saliency").iterdir()} == histograms
    return finished


def go_on(order: str, path: Path, finished: Finished) -> None:
    """Let the rest of the run happen, after which the directory is as if nothing had been."""
    kept = finished.before + finished.events
    rest = written(order)[len(kept) :]
    again = list(record(path, stream([*kept, Progress("rebuild", 1, 2), *rest]), skip=finished.recorded))
    assert [event for event in again if not isinstance(event, Progress)] == written(order)
    assert content(path) == content(whole_run(order))
    assert check(order, path).recorded == len(written(order))


def deaths(monkeypatch, path: Path, copies: Path, work) -> list[Path]:
    """Copies of a directory as it was before each operation on its files while `work` went on."""
    found: list[Path] = []

    def watched(real):
        def operation(*arguments, **options):
            copy = copies / f"{len(found):04}"
            if path.exists():
                shutil.copytree(path, copy)
                found.append(copy)
            return real(*arguments, **options)

        return operation

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, watched(getattr(os, name)))
        work()
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_a_run_can_die_at_every_file_operation(order, tmp_path, monkeypatch):
    path, counts = tmp_path / "run", []
    create(path, job())
    found = deaths(monkeypatch, path, tmp_path / "copies", lambda: list(record(path, stream(story(order)))))
    assert len(found) > 4 * len(written(order))
    for copy in found:
        lines = (copy / "events.jsonl").read_bytes().count(b"\n") if (copy / "events.jsonl").exists() else 0
        finished = check(order, copy)
        assert finished.recorded == boundary(order, lines), "nothing that was done is done again"
        assert read_job(copy) == replace(job(), run_dir=copy)
        if not counts or counts[-1] != finished.recorded:
            go_on(order, copy, finished)
        counts.append(finished.recorded)
    assert len(set(counts)) > 10


@pytest.mark.parametrize("order", ORDERS)
def test_reopening_can_die_too(order, tmp_path, monkeypatch):
    for count in range(0, len(written(order)) + 1, 3):
        path, copies = tmp_path / f"run{count}", tmp_path / f"copies{count}"
        interrupted(order, path, count)
        with (path / "checksums.jsonl").open("ab") as torn:
            torn.write(b'{"files": {"masks/lay')
        found = deaths(monkeypatch, path, copies, lambda path=path: reopen(path, started(order)))
        assert len(found) > 3
        for copy in found:
            assert check(order, copy).recorded == boundary(order, count)
        go_on(order, found[-2], check(order, found[-2]))


@st.composite
def damage(draw):
    """A way to harm a file: bytes -> bytes, or None for a file that is gone."""
    place = draw(st.floats(0, 1, exclude_max=True))
    bit = draw(st.integers(0, 7))

    def flip(data: bytes) -> bytes:
        index = int(place * len(data))
        return data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :] if data else b"?"

    ways = (flip, lambda data: data[: int(place * len(data))], lambda data: data + b"\0", lambda data: None)
    return draw(st.sampled_from(ways))


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_is_never_trusted(order, data):
    with tempfile.TemporaryDirectory() as place:
        path = interrupted(order, Path(place), data.draw(st.integers(1, len(written(order)))))
        files = sorted(file for file in path.rglob("*.*") if file.name != "job.json")
        for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
            harmed = data.draw(damage())(file.read_bytes())
            file.unlink() if harmed is None else file.write_bytes(harmed)
        go_on(order, path, check(order, path))


@pytest.mark.parametrize(
    ("order", "name", "initial", "rebuilt"),
    [
        ("paper", "masks/layer_001.safetensors", 1, 0),
        ("paper", "weights/layer_000.safetensors", 0, 0),
        ("paper", "saliency/layer_001.json", 2, 1),
        ("paper", "config.json", 2, 2),
        ("paper", "checksums.jsonl", 0, 0),
        ("one-pass", "masks/layer_001.safetensors", 1, 1),
        ("one-pass", "saliency/layer_001.json", 1, 1),
        ("one-pass", "saliency/layer_000.json", 0, 0),
        ("no rebuild", "masks/layer_001.safetensors", 1, 0),
    ],
)
@pytest.mark.parametrize("gone", [True, False])
def test_damage_costs_no_more_than_it_must(order, name, initial, rebuilt, gone, tmp_path):
    path = interrupted(order, tmp_path / "run", len(written(order)))
    data = bytearray((path / name).read_bytes())
    data[len(data) // 20] ^= 1
    (path / name).unlink() if gone else (path / name).write_bytes(data)
    finished = check(order, path)
    assert (finished.initial, finished.rebuilt) == (initial, rebuilt)
    assert (finished.recorded == len(written(order))) == (name == "config.json")


def test_a_file_that_went_back_is_not_trusted(tmp_path):
    """As after a power loss on a disk that lies: the file is a former one, which was right in its time."""
    count = 1 + next(n for n, event in enumerate(written("paper")) if isinstance(event, SubBlockRebuilt))
    path, name = interrupted("paper", tmp_path / "run", count - 1), "masks/layer_000.safetensors"
    former = (path / name).read_bytes()
    list(record(path, stream(written("paper")[: count + 1]), skip=count - 1))
    assert check("paper", path).rebuilt == 1
    (path / name).write_bytes(former)
    finished = check("paper", path)
    assert (finished.initial, finished.rebuilt) == (2, 0)


def test_a_former_version_of_a_line_is_not_an_event(tmp_path):
    path = interrupted("paper", tmp_path / "run", 8)
    lines = (path / "events.jsonl").read_bytes().splitlines(keepends=True)
    (path / "events.jsonl").write_bytes(b"".join([*lines[:4], *lines[5:]]))
    assert check("paper", path).recorded == 4


def test_another_run_is_refused_and_left_as_it_is(tmp_path):
    path = interrupted("paper", tmp_path / "run", 9)
    before, begun = content(path), started("paper")
    others = {
        r"model: .* there, other here": replace(begun, model="other"),
        r"config\.threshold: 0\.5 there, 0\.1 here": replace(begun, config=begun.config | {"threshold": 0.1}),
        r"calibration\.fingerprint: \w+ there, 0 here": replace(
            begun, calibration=begun.calibration | {"fingerprint": "0"}
        ),
        r"modules: 14 of them there, 7 of them here": replace(begun, modules=begun.modules[:7]),
        r"device: cpu there, cuda here": replace(begun, device="cuda:0"),
        r"dtype: float32 there, bfloat16 here": replace(begun, dtype="bfloat16"),
    }
    for message, other in others.items():
        with pytest.raises(UserError, match=message):
            reopen(path, other)
    with pytest.raises(UserError, match="does not exist"):
        reopen(tmp_path / "none", begun)
    assert content(path) == before


def test_the_number_of_a_device_does_not_count(tmp_path):
    path = create(tmp_path / "run", job())
    list(record(path, stream([replace(started("paper"), device="cuda:0")])))
    assert reopen(path, replace(started("paper"), device="cuda:1")).recorded == 1


def test_masks_of_a_layer_come_with_its_values(tmp_path):
    path = interrupted("paper", tmp_path / "run", len(written("paper")))
    stored = load_file(path / "weights" / "layer_001.safetensors")
    for stage, kind in ((Stage.INITIAL, LayerInitialised), (Stage.REBUILT, SubBlockRebuilt)):
        masks, updates = RunDirectory(path).recorded(1, stage)
        events = [event for event in written("paper") if isinstance(event, kind) and event.layer == 1]
        assert same(masks, {name: mask for event in events for name, mask in event.masks.items()})
        assert same(updates, {name: value for event in events for name, value in event.weights.items()})
        assert {f"{stage}/{name}" for name in updates} <= stored.keys()
        assert updates


def test_a_complete_run_is_kept_as_it_is(tmp_path):
    path = interrupted("paper", tmp_path / "run", len(written("paper")))
    before = content(path)
    finished = check("paper", path)
    assert isinstance(finished.events[-1], RunFinished)
    assert (finished.initial, finished.rebuilt) == (LAYERS, LAYERS)
    assert content(path) == before


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.builds(
        JobSpec,
        model=words,
        prune=st.none() | st.just(PruneConfig(Sparsity.parse("2:4"), "wanda", threshold="auto", target="dense-stream")),
        evaluation=st.lists(words, max_size=2).map(tuple),
        prompts=st.lists(words, max_size=2).map(tuple),
        seqlen=st.none() | st.integers(1, 4096),
        run_dir=st.none() | st.just(Path("runs/one")),
        save_model=st.none() | st.just(Path("model")),
        save_data=st.none() | st.just(Path("tokens.npy")),
        cache_dir=st.none() | words,
        trust_remote_code=st.booleans(),
    )
)
def test_a_job_survives_json(spec):
    again = JobSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert type(again.run_dir) is type(spec.run_dir)


def test_a_job_of_another_version_is_refused():
    for data in (job().to_dict() | {"speed": 9}, job().to_dict() | {"prune": job().prune.to_dict() | {"speed": 9}}):
        with pytest.raises(UserError, match=r"does not know \(speed\)"):
            JobSpec.from_dict(data)


def test_the_job_of_a_run_is_found_again(tmp_path):
    path = create(tmp_path / "run", replace(job(), run_dir=tmp_path / "run"))
    path = path.rename(tmp_path / "moved")
    assert read_job(path) == replace(job(), run_dir=path)
    assert difference(path, job()) == []
    other = replace(job(), nsamples=128, prune=replace(job().prune, threshold=0.1), prompts=("the",))
    assert difference(path, other) == [
        "prune.threshold: 0.5 there, 0.1 here",
        "nsamples: 4 there, 128 here",
        "prompts: [] there, ['the'] here",
    ]
    (path / "job.json").write_text((path / "job.json").read_text().replace('"nsamples": 4', '"nsamples": 5'))
    with pytest.raises(UserError, match="is damaged"):
        read_job(path)
    reopen(path, started("paper"))
    with pytest.raises(UserError, match="is damaged"):
        read_job(path)
    (path / "job.json").unlink()
    with pytest.raises(UserError, match=r"has no job\.json"):
        difference(path, job())
    with pytest.raises(UserError, match="does not exist"):
        read_job(tmp_path / "none")


def test_a_disk_that_is_too_small_is_said_before(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "not" / "yet", free // 2)
    with pytest.raises(UserError, match="make room"):
        check_room(tmp_path / "not" / "yet", free * 2)
    assert not (tmp_path / "not").exists()


def test_a_layer_of_one_sub_block_is_redone_from_its_initial_mask(tmp_path):
    """Sub-block by sub-block, its initial mask looks whole when the process dies, but belongs to what is redone."""
    begun = replace(started("paper"), modules=[m for m in started("paper").modules if m["kind"] == "attention"])
    events = [begun, *(e for e in story("one-pass") if "self_attn.q_proj" in getattr(e, "modules", ()))]
    path = create(tmp_path / "run", job())
    list(record(path, stream(events[:-1])))
    finished = reopen(path, begun)
    assert (finished.initial, finished.rebuilt, finished.events) == (1, 1, events[:3])
    assert RunDirectory(path).layers() == [0]
