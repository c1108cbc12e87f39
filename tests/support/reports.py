"""Recorded runs for reports: a small one with everything, a hostile one, and one as long as that of a large model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from barber.events import (
    Event,
    LayerInitialised,
    Notice,
    PerplexityMeasured,
    RunStarted,
    Stage,
    SubBlockRebuilt,
    TextGenerated,
    ZeroShotMeasured,
)
from barber.jobs.job import run_job
from barber.runs.directory import RunDirectory
from tests.support.interrupted import new_folder
from tests.support.jobs import job, save_inputs
from tests.support.tiny import llama, tokenizer

HOSTILE = "</script><script>document.title='owned'</script><img src=https://evil.example/x onerror=alert(1)>&lt;b&gt;"


@cache
def auto_run() -> RunDirectory:
    """A run with choices, refits, perplexities, texts and an environment."""
    folder = save_inputs(new_folder(), llama(num_hidden_layers=2))
    tokenizer().save_pretrained(folder / "model")
    spec = job(folder, method="wanda", threshold="auto", reconstruct=True)
    list(run_job(replace(spec, run_dir=folder / "run", prompts=("the cat",))))
    return RunDirectory(folder / "run")


def hostile_run(folder: Path) -> RunDirectory:
    """A run in which every text that a visitor or a model may give holds HTML."""

    def changed(event: Event) -> Iterable[Event]:
        match event:
            case RunStarted():
                return [replace(event, model=f"/models/{HOSTILE.replace('/', '')}", dtype=HOSTILE)]
            case PerplexityMeasured():
                return [replace(event, dataset=HOSTILE)]
            case TextGenerated():
                return [replace(event, prompt=HOSTILE, text=HOSTILE)]
        return [event]

    events = [one for event in auto_run().events() for one in changed(event)]
    more = [Notice(HOSTILE), ZeroShotMeasured(Stage.DENSE, HOSTILE, {HOSTILE: 1.0}, {}, 3)]
    return _written(folder, [*events, *more])


def long_run(folder: Path, layers: int) -> RunDirectory:
    """A run of a model with so many layers."""
    events = auto_run().events()
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    first = [event for event in events if isinstance(event, (LayerInitialised, SubBlockRebuilt)) and event.layer == 0]
    others = [e for e in events if not isinstance(e, (RunStarted, LayerInitialised, SubBlockRebuilt))]
    modules = [
        replace(module, layer=layer) for layer in range(layers) for module in started.modules if module.layer == 0
    ]
    repeated = [replace(event, layer=layer) for layer in range(layers) for event in first]
    return _written(folder, [replace(started, modules=modules), *repeated, *others])


def _written(folder: Path, events: Sequence[Event]) -> RunDirectory:
    """A run directory with these events, and the masks of `auto_run`."""
    shutil.copytree(auto_run().path / "masks", folder / "masks")
    started = next(event for event in events if isinstance(event, RunStarted))
    (folder / "config.json").write_text(json.dumps(started.to_dict()))
    (folder / "events.jsonl").write_text("".join(json.dumps(event.to_dict()) + "\n" for event in events))
    return RunDirectory(folder)
