"""Read and repair the directory of an interrupted run: its job, and the events and files whose digests match."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError

from barber.atomic_files import digest, draft_json, hasher, reason_and_remedy, write_lines
from barber.errors import UserError
from barber.events import Event, LayerInitialised, RunStarted, Saved, Stage, StageReached, SubBlockRebuilt
from barber.job_spec import JobSpec
from barber.runs.checksums import (
    CHECKSUMS,
    EVENTS,
    JOB,
    LASTING,
    checksum_line,
    commit,
    read_checksums,
    read_verified,
)
from barber.runs.environment import difference
from barber.runs.packed_masks import draft_tensors, read_packed
from barber.runs.recorder import follow

LAYER_FOLDERS = ("masks", "weights", "saliency")

OfLayer = LayerInitialised | SubBlockRebuilt

OF_LAYER = re.compile(r"layer_\d{3,}\.(safetensors|json)")

DRAFT = re.compile(OF_LAYER.pattern + r"\.part|\.tmp\w{6}")  # the latter of the safetensors library

FOLLOWING = ("perplexity.json", "zeroshot.json", "generations.jsonl")  # grow with the events, see record.follow

BEFORE = {"window_start": "none"}  # the value in jobs recorded before this setting existed


@dataclass(frozen=True)
class Finished:
    """The valid part of an interrupted run.

    Attributes:
        events: valid events without tensors, in order, from RunStarted on; empty if the run had not started.
        initial: layers 0..initial-1 have all their initial masks.
        rebuilt: layers 0..rebuilt-1 are final.
        dense_events: valid events before RunStarted (measurements of the dense model).
    """

    events: list[Event]
    initial: int
    rebuilt: int
    dense_events: list[Event] = field(default_factory=list)

    @property
    def event_count(self) -> int:
        """Number of events in the directory, which recorder.record skips."""
        return len(self.dense_events) + len(self.events)


def read_job(path: Path) -> JobSpec:
    """The job of a run directory, with run_dir set to `path`. Raises UserError if it cannot be read."""
    if not (path / JOB).is_file():
        missing = f"has no {JOB}" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {missing}, so it cannot be resumed: give the folder of a run, or begin a new one.")
    return replace(JobSpec.from_dict(BEFORE | read_verified(path, JOB)), run_dir=path)


def job_difference(path: Path, spec: JobSpec) -> list[str]:
    """How a job differs from the recorded one, like "nsamples: 64 there, 128 here"; ignores run_dir."""
    there, here = (replace(job, run_dir=path).absolute().to_dict() for job in (read_job(path), spec))
    return difference(there, here)


def is_saved(path: Path, target: Path) -> bool:
    """Whether a run saved its model to `target` and recorded that."""
    checksums = read_checksums(path)
    events = _read_events(path, _trusted(path, checksums, _current(path, checksums)))
    return Saved("model", str(target)) in events


def reopen(path: Path, started: RunStarted) -> Finished:
    """Remove everything from a run directory that is damaged or incomplete; return the valid part.

    started: the RunStarted event of the run that resumes. Raises UserError, before any change, if it is another run.
    A layer that is incomplete at a stage loses its events and files of that stage. If the process is killed here, the
    next call completes the repair.
    """
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give the folder of the run to be resumed.")
    checksums = read_checksums(path)
    current = _current(path, checksums)
    trusted = _trusted(path, checksums, current)
    events = _read_events(path, trusted)
    recorded = next((event for event in events if isinstance(event, RunStarted)), None)
    if recorded and (found := difference(_identity(recorded), _identity(started))):
        raise UserError(f"The run in {path} was another one ({'; '.join(found)}): resume it with what it began with.")
    events = _without_unfinished_layer(events, started)
    kept = [one for one in checksums if 1 <= one.get("events", 0) <= len(events)]
    needed = {name for one in kept for name in one["files"]} - {EVENTS}
    lasting = [{name: one["files"][name] for name in LASTING if name in one["files"]} for one in checksums]
    verified_lines = [checksum_line(files) for files in lasting if files]
    verified_lines += [checksum_line(one["files"], one["events"]) for one in kept]
    verified_lines += [checksum_line({name: current[name] for name in sorted(needed)})]
    try:
        write_lines(path / EVENTS, trusted[: len(events)])
        write_lines(path / CHECKSUMS, verified_lines)
        _remove(path, events, needed)
        for name in FOLLOWING if recorded else (*FOLLOWING, "config.json"):
            (path / name).unlink(missing_ok=True)
        for event in events:
            follow(path, event)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The run in {path} cannot be resumed {reason_and_remedy(error)}.") from None
    begin = next((index for index, event in enumerate(events) if isinstance(event, RunStarted)), len(events))
    names, done = _names(started), _done(events)
    initial, rebuilt = (
        next((layer for layer in names if done[stage, layer] != names[layer]), len(names))
        for stage in (Stage.INITIAL, Stage.REBUILT)
    )
    return Finished(events[begin:], initial, rebuilt, events[:begin])


def _current(path: Path, checksums: list[dict]) -> dict[str, str]:
    """The present digests of the files named in checksums.jsonl."""
    return {name: digest(path / name) for name in {name for one in checksums for name in one["files"]} - {EVENTS}}


def _read_events(path: Path, lines: Iterable[bytes]) -> list[Event]:
    """The events of valid lines. Raises UserError where another version wrote them."""
    try:
        return [Event.read(json.loads(line)) for line in lines]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"The run in {path} has events that this version does not support: resume it with the version that began "
            "it."
        ) from None


def _trusted(path: Path, checksums: list[dict], current: dict[str, str]) -> list[bytes]:
    """The first lines of events.jsonl whose digests match, as do those of all files of these events.

    current: present digests of the files. A file may have the content of a later event, but not of an earlier one.
    """
    own = {one["events"]: one["files"] for one in checksums if "events" in one}
    reached: dict[str, float] = defaultdict(float)  # file -> the last event whose content it can be
    for one in checksums:
        for name, value in one["files"].items():
            if value == current.get(name):
                reached[name] = max(reached[name], one.get("events", math.inf))
    text = (path / EVENTS).read_bytes() if (path / EVENTS).is_file() else b""
    lines, sofar = text.splitlines(keepends=True), hasher()
    for number, line in enumerate(lines, 1):
        sofar.update(line)
        files = own.get(number, {})
        if files.get(EVENTS) != sofar.hexdigest() or any(reached[name] < number for name in files if name != EVENTS):
            return lines[: number - 1]
    return lines


def _names(started: RunStarted) -> dict[int, set[str]]:
    """The names of the weights of each layer."""
    names: dict[int, set[str]] = defaultdict(set)
    for module in started.modules:
        names[module.layer].add(module.name)
    return names


def _stage(event: OfLayer) -> Stage:
    """The stage that a layer's event belongs to."""
    return Stage.INITIAL if isinstance(event, LayerInitialised) else Stage.REBUILT


def _done(events: Iterable[Event]) -> dict[tuple[Stage, int], set[str]]:
    """(stage, layer) -> names of the weights that have their mask of that stage."""
    done: dict[tuple[Stage, int], set[str]] = defaultdict(set)
    for event in events:
        if isinstance(event, OfLayer):
            done[_stage(event), event.layer] |= event.modules.keys()
    return done


def _without_unfinished_layer(events: list[Event], started: RunStarted) -> list[Event]:
    """The first events, up to the first layer that is incomplete at a stage.

    Where sub-blocks are rebuilt before the whole model is initialised, a layer is complete with both of its stages.
    """
    names = _names(started)
    while True:
        done = _done(events)
        half = {key for key, found in done.items() if found != names[key[1]]}
        reached = any(isinstance(event, StageReached) and event.stage == Stage.INITIAL for event in events)
        if not reached and any(stage == Stage.REBUILT for stage, _ in done):
            half |= {(Stage.INITIAL, layer) for _, layer in done if done.get((Stage.REBUILT, layer)) != names[layer]}
        ends = [
            index
            for index, event in enumerate(events)
            if isinstance(event, OfLayer) and (_stage(event), event.layer) in half
        ]
        if not ends:
            return events
        events = events[: ends[0]]


def _remove(path: Path, events: list[Event], needed: set[str]) -> None:
    """Remove drafts, files and keys that belong to no event."""
    keys: dict[str, set[str]] = defaultdict(set)  # "layer_000" -> "initial/<name>", "rebuilt/<name>"
    for (stage, layer), names in _done(events).items():
        keys[f"layer_{layer:03}"] |= {f"{stage}/{name}" for name in names}
    for name in (*LASTING, *FOLLOWING, EVENTS, CHECKSUMS, "config.json"):
        (path / f"{name}.part").unlink(missing_ok=True)
    files = [file for folder in LAYER_FOLDERS for file in sorted((path / folder).glob("*"))]
    for draft in [file for file in files if DRAFT.fullmatch(file.name)]:
        draft.unlink()
    for place in [file for file in files if OF_LAYER.fullmatch(file.name)]:
        name, wanted = place.relative_to(path).as_posix(), keys[place.stem]
        if name not in needed:
            place.unlink()
        elif place.suffix == ".json":
            histograms = json.loads(place.read_text("utf-8"))
            if extra := {key for key in histograms if f"{Stage.REBUILT}/{key}" not in wanted}:
                draft_json(place, {key: value for key, value in histograms.items() if key not in extra})
                commit(path, [name])
        else:
            tensors, shapes = read_packed(place)
            if extra := tensors.keys() - wanted:
                kept = {key: value for key, value in tensors.items() if key not in extra}
                draft_tensors(place, kept, {key: shape for key, shape in shapes.items() if key in kept})
                commit(path, [name])


def _identity(started: RunStarted) -> dict:
    """The fields that must be equal for a run to resume another; JSON-able. The index of a device does not count."""
    return json.loads(json.dumps(started.to_dict())) | {"device": started.device.partition(":")[0]}
