"""The job of a run directory: another job is refused, its own is resumed, and a complete run is not changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from barber.atomic_files import check_room
from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import (
    LayerInitialised,
    RunFinished,
    Stage,
    SubBlockRebuilt,
)
from barber.job_spec import JobSpec
from barber.runs.directory import RunDirectory
from barber.runs.recorder import create, record
from barber.runs.resume import job_difference, read_job, reopen
from tests.support.interrupted import (
    LAYERS,
    check,
    content,
    interrupted,
    job,
    run_events,
    same,
    started,
    stream,
    written,
)

pytestmark = pytest.mark.slow


def test_another_run_is_refused_and_not_changed(tmp_path):
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
    assert reopen(path, replace(started("paper"), device="cuda:1")).event_count == 1


def test_masks_of_a_layer_come_with_its_values(tmp_path):
    path = interrupted("paper", tmp_path / "run", len(written("paper")))
    stored = load_file(path / "weights" / "layer_001.safetensors")
    for stage, kind in ((Stage.INITIAL, LayerInitialised), (Stage.REBUILT, SubBlockRebuilt)):
        masks, updates = RunDirectory(path).state(1, stage)
        events = [event for event in written("paper") if isinstance(event, kind) and event.layer == 1]
        assert same(masks, {name: mask for event in events for name, mask in event.masks.items()})
        assert same(updates, {name: value for event in events for name, value in event.weights.items()})
        assert {f"{stage}/{name}" for name in updates} <= stored.keys()
        assert updates


def test_a_complete_run_is_not_changed(tmp_path):
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
        model=words.filter(str.strip),
        prune=st.none() | st.just(PruneConfig(Sparsity.parse("2:4"), "wanda", threshold="auto", target="dense-stream")),
        evaluation=st.lists(words, max_size=2).map(tuple),
        prompts=st.lists(words, max_size=2).map(tuple),
        seqlen=st.none() | st.integers(2, 4096),
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


def test_the_job_of_a_run_is_read_back(tmp_path):
    path = create(tmp_path / "run", replace(job(), run_dir=tmp_path / "run"))
    path = path.rename(tmp_path / "moved")
    assert read_job(path) == replace(job(), run_dir=path)
    assert job_difference(path, job()) == []
    other = replace(job(), nsamples=128, prune=replace(job().prune, threshold=0.1), prompts=("the",))
    assert job_difference(path, other) == [
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
        job_difference(path, job())
    with pytest.raises(UserError, match="does not exist"):
        read_job(tmp_path / "none")


def test_a_full_disk_is_reported_before_the_work(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "not" / "yet", free // 2)
    with pytest.raises(UserError, match="make room"):
        check_room(tmp_path / "not" / "yet", free * 2)
    assert not (tmp_path / "not").exists()


def test_a_layer_of_one_sub_block_is_redone_from_its_initial_mask(tmp_path):
    """In one pass, the layer's initial masks are complete when the process is killed, but the layer is repeated."""
    begun = replace(started("paper"), modules=[m for m in started("paper").modules if m.kind == "attention"])
    events = [begun, *(e for e in run_events("one-pass") if "self_attn.q_proj" in getattr(e, "modules", ()))]
    path = create(tmp_path / "run", job())
    list(record(path, stream(events[:-1])))
    finished = reopen(path, begun)
    assert (finished.initial, finished.rebuilt, finished.events) == (1, 1, events[:3])
    assert RunDirectory(path).layers() == [0]
