"""Recorded runs that were interrupted after some of their events, and what must remain of them."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from barber.config import PruneConfig, Sparsity
from barber.events import (
    Event,
    LayerInitialised,
    PerplexityMeasured,
    Progress,
    RunStarted,
    Stage,
    StageReached,
    SubBlockRebuilt,
    TextGenerated,
    ZeroShotMeasured,
    ZeroShotSkipped,
)
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.runs.directory import RunDirectory
from barber.runs.packed_masks import read_packed
from barber.runs.recorder import create, record
from barber.runs.resume import Finished, reopen
from tests.support.golden_data import GOLDEN
from tests.support.tiny import llama

ORDERS = ("paper", "one-pass", "no rebuild")
LAYERS = 2
TOKENS = str(GOLDEN / "calibration_tokens.npy")


def new_folder() -> Path:
    """A folder that exists until the tests end."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def job() -> JobSpec:
    """SparseGPT with retained updates, so that weights are stored at both stages."""
    folder = new_folder()
    llama(num_hidden_layers=LAYERS, vocab_size=512).save_pretrained(folder)
    config = PruneConfig(
        Sparsity.parse("50%"), "sparsegpt", granularity="block", threshold=0.5, retain_reconstruction=True
    )
    return JobSpec(model=str(folder), prune=config, calibration=TOKENS, evaluation=(), nsamples=4, seqlen=64)


@cache
def run_events(order: str) -> list[Event]:
    """The events of a real run with their tensors, in an order, and what may be measured at each stage."""
    spec = job() if order != "no rebuild" else replace(job(), prune=replace(job().prune, barber=False))
    events = [event for event in run_job(spec) if type(event).__name__ not in ("JobPlanned", "Notice", "Progress")]
    started = next(event for event in events if isinstance(event, RunStarted))
    layers = [e for e in events if isinstance(e, (LayerInitialised, SubBlockRebuilt))]
    layers = one_pass(layers) if order == "one-pass" else layers
    stages = [Stage.INITIAL, Stage.REBUILT][: sum(isinstance(event, StageReached) for event in events)]
    split = len(layers) if order == "one-pass" else LAYERS
    events_in_order = [*measured(Stage.DENSE), started, Progress("initial mask", 1, 2), *layers[:split]]
    events_in_order += [StageReached(stages[0]), *measured(stages[0]), *layers[split:]]
    for stage in stages[1:]:
        events_in_order += [StageReached(stage), *measured(stage)]
    return [*events_in_order, events[-1]]


def one_pass(layers: list[Event]) -> list[Event]:
    """The same masks, each sub-block rebuilt as soon as it is initialised."""
    ordered = []
    for rebuilt in (event for event in layers if isinstance(event, SubBlockRebuilt)):
        first = next(e for e in layers if isinstance(e, LayerInitialised) and e.layer == rebuilt.layer)
        parts = {
            part: {name: value for name, value in getattr(first, part).items() if name in rebuilt.modules}
            for part in ("modules", "masks", "weights")
        }
        ordered += [replace(first, **parts), rebuilt]
    return ordered


def measured(stage: str) -> list[Event]:
    return [
        PerplexityMeasured(stage, "text", 16, 64, 2.0 + len(stage), 0.1),
        TextGenerated(stage, "the", " ca", done=False),
        TextGenerated(stage, "the", " cat", done=True),
        ZeroShotMeasured(stage, "story_ending", {"acc": 0.5}, {"acc": None}, 4),
        ZeroShotSkipped("piqa", "no data"),
    ]


def written(order: str) -> list[Event]:
    """The events that a run directory contains."""
    return [e for e in run_events(order) if not isinstance(e, Progress) and getattr(e, "done", True)]


def started(order: str) -> RunStarted:
    return next(event for event in run_events(order) if isinstance(event, RunStarted))


def stream(events):
    yield from events


@cache
def whole_run(order: str) -> Path:
    path = create(new_folder(), job())
    list(record(path, stream(run_events(order))))
    return path


def interrupted(order: str, path: Path, count: int) -> Path:
    """A run that was killed after so many events."""
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
    """The content of all files of a run directory except for the checksums."""
    found = {}
    for file in sorted(path.rglob("*.*")):
        if file.suffix == ".safetensors":
            tensors, shapes = read_packed(file)
            found[str(file.relative_to(path))] = (shapes, {key: value.tolist() for key, value in tensors.items()})
        elif file.name != "checksums.jsonl":
            found[str(file.relative_to(path))] = file.read_bytes()
    return found


def check(order: str, path: Path) -> Finished:
    """Reopen a directory; its finished part equals the complete run, and nothing else remains."""
    finished = reopen(path, started(order))
    kept = finished.dense_events + finished.events
    assert kept == written(order)[: len(kept)]
    assert len(kept) == finished.event_count == boundary(order, len(kept))
    assert not finished.events or isinstance(finished.events[0], RunStarted)
    lines = (path / "events.jsonl").read_text().splitlines()
    assert [Event.read(json.loads(line)) for line in lines] == kept
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
                for one, two in zip(run.state(layer, stage), full.state(layer, stage), strict=True):
                    assert same(one, two if layer < count else {})
        histograms = {f"layer_{layer:03}.json" for layer in range(finished.rebuilt)}
        assert {file.name for file in (path / "saliency").iterdir()} == histograms
    return finished


def resume_and_finish(order: str, path: Path, finished: Finished) -> None:
    """Record the rest of the run; the directory then equals that of the complete run."""
    kept = finished.dense_events + finished.events
    rest = written(order)[len(kept) :]
    again = list(record(path, stream([*kept, Progress("rebuild", 1, 2), *rest]), skip=finished.event_count))
    assert [event for event in again if not isinstance(event, Progress)] == written(order)
    assert content(path) == content(whole_run(order))
    assert check(order, path).event_count == len(written(order))
