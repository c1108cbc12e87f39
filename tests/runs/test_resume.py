"""A run directory after a kill or damage: remaining data is valid, and the resumed run has the same results.

Copies of the directory before each file operation stand for every point at which a process can be killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.events import (
    SubBlockRebuilt,
)
from barber.runs.recorder import create, record
from barber.runs.resume import read_job, reopen
from tests.support.interrupted import (
    ORDERS,
    boundary,
    check,
    interrupted,
    job,
    resume_and_finish,
    run_events,
    started,
    stream,
    written,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """Replace fsync, which takes minutes in total on some disks; its calls still count as file operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def kill_points(monkeypatch, path: Path, copies: Path, work) -> list[Path]:
    """Copies of a directory from before each file operation of `work`."""
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
def test_a_run_can_be_killed_at_every_file_operation(order, tmp_path, monkeypatch):
    path, counts = tmp_path / "run", []
    create(path, job())
    found = kill_points(monkeypatch, path, tmp_path / "copies", lambda: list(record(path, stream(run_events(order)))))
    assert len(found) > 4 * len(written(order))
    for copy in found:
        lines = (copy / "events.jsonl").read_bytes().count(b"\n") if (copy / "events.jsonl").exists() else 0
        finished = check(order, copy)
        assert finished.event_count == boundary(order, lines), "no finished layer is repeated"
        assert read_job(copy) == replace(job(), run_dir=copy)
        if not counts or counts[-1] != finished.event_count:
            resume_and_finish(order, copy, finished)
        counts.append(finished.event_count)
    assert len(set(counts)) > 10


@pytest.mark.parametrize("order", ORDERS)
def test_reopening_can_be_killed_too(order, tmp_path, monkeypatch):
    for count in range(0, len(written(order)) + 1, 3):
        path, copies = tmp_path / f"run{count}", tmp_path / f"copies{count}"
        interrupted(order, path, count)
        with (path / "checksums.jsonl").open("ab") as torn:
            torn.write(b'{"files": {"masks/lay')
        found = kill_points(monkeypatch, path, copies, lambda path=path: reopen(path, started(order)))
        assert len(found) > 3
        for copy in found:
            assert check(order, copy).event_count == boundary(order, count)
        resume_and_finish(order, found[-2], check(order, found[-2]))


@st.composite
def damage(draw):
    """A kind of damage: bytes -> bytes, or None for a lost file."""
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
def test_a_damaged_file_is_never_used(order, data):
    with tempfile.TemporaryDirectory() as place:
        path = interrupted(order, Path(place), data.draw(st.integers(1, len(written(order)))))
        files = sorted(file for file in path.rglob("*.*") if file.name != "job.json")
        for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
            harmed = data.draw(damage())(file.read_bytes())
            file.unlink() if harmed is None else file.write_bytes(harmed)
        resume_and_finish(order, path, check(order, path))


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
def test_damage_discards_no_more_than_necessary(order, name, initial, rebuilt, gone, tmp_path):
    path = interrupted(order, tmp_path / "run", len(written(order)))
    data = bytearray((path / name).read_bytes())
    data[len(data) // 20] ^= 1
    (path / name).unlink() if gone else (path / name).write_bytes(data)
    finished = check(order, path)
    assert (finished.initial, finished.rebuilt) == (initial, rebuilt)
    assert (finished.event_count == len(written(order))) == (name == "config.json")


def test_an_earlier_version_of_a_file_is_not_used(tmp_path):
    """As after a power loss on a disk that ignores fsync: the file has an earlier valid content."""
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
    assert check("paper", path).event_count == 4
