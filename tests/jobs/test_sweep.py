"""Sweeps of tiny models: events, tables, resumption after a kill, jobs that fail, and grids that cannot run."""

from __future__ import annotations

import csv
import json
import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

import barber.jobs.sweep as sweep
from barber.cli import main
from barber.errors import UserError
from barber.events import (
    JobPlanned,
    LayerInitialised,
    PerplexityMeasured,
    Progress,
    Stage,
    SweepJobEnded,
    SweepJobStarted,
    SweepPlanned,
)
from barber.job_spec import JobSpec
from barber.jobs import setup
from barber.jobs.grid import GridError, jobs_of
from barber.jobs.job import run_job
from barber.jobs.sweep import RUNS, run_sweep
from barber.models.loading import load
from barber.pruning.distributed import Ranks
from barber.runs.directory import RunDirectory
from tests.support.jobs import recorded, run, same, save_inputs, start
from tests.support.tiny import llama

STAGES = [Stage.DENSE, Stage.INITIAL, Stage.REBUILT]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=2), rows=32)
    llama(seed=1).save_pretrained(folder / "other")
    return folder


def grid(workspace: Path, **settings) -> dict:
    """A small grid; None leaves a setting out."""
    base = {
        "model": str(workspace / "model"), "calibration": str(workspace / "calibration.npy"),
        "evaluation": str(workspace / "evaluation.npy"), "eval_windows": 8, "nsamples": 4, "seqlen": 24,
        "device": "cpu", "method": ["magnitude", "wanda"], "sparsity": "50%", "rebuild": True,
        "granularity": "block", "threshold": 0.3,
    }  # fmt: skip
    return base | settings


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ended(events: Sequence) -> dict[str, str]:
    return {event.name: event.error for event in events if isinstance(event, SweepJobEnded)}


def test_a_sweep_is_the_jobs_one_by_one(workspace, tmp_path):
    jobs = jobs_of(grid(workspace, seed=[0, 1]))
    events = list(run_sweep(jobs, tmp_path / "sweep"))
    assert isinstance(events[0], SweepPlanned)
    assert list(events[0].jobs) == [job.name for job in jobs]
    assert all(seconds > 0 for seconds in events[0].jobs.values())
    assert ended(events) == {job.name: "" for job in jobs}
    assert [event.name for event in events if isinstance(event, SweepJobStarted)] == [job.name for job in jobs]
    for job, row in zip(jobs, table(tmp_path / "sweep"), strict=True):
        alone = {e.stage: e for e in run_job(job.spec) if isinstance(e, PerplexityMeasured)}
        assert row["job"] == job.name
        assert (row["method"], row["seed"]) == (job.spec.prune.method, str(job.spec.seed))
        for stage in STAGES:
            name = f"{alone[stage].dataset} {stage}"
            found = [float(row[name + end]) for end in ("", " low", " high")]
            assert found == [alone[stage].perplexity, alone[stage].low, alone[stage].high]
        assert int(row["zeros"]) * 2 == int(row["weights"])
        assert float(row["seconds"]) > 0
        assert row["status"] == "finished"
    lines = (tmp_path / "sweep" / "results.md").read_text().splitlines()
    assert len(lines) == 2 + len(jobs)


def test_a_model_and_its_dense_perplexity_are_made_once(workspace, tmp_path, monkeypatch):
    """Jobs of two models in turn are run model by model."""
    models = [str(workspace / "model"), str(workspace / "other")]
    loads = []

    load = sweep.load_source
    monkeypatch.setattr(sweep, "load_source", lambda source: loads.append(source.name) or load(source))
    settings = grid(workspace, method=["magnitude", "wanda"]) | {"model": models}
    jobs = jobs_of({name: settings[name] for name in [*(n for n in settings if n != "model"), "model"]})
    assert [job.spec.model for job in jobs] == models * 2
    events = list(run_sweep(jobs, tmp_path / "sweep"))
    assert loads == models
    work = [e for e in events if isinstance(e, Progress) and e.phase == "perplexity dense" and e.done == e.total]
    measured = [e for e in events if isinstance(e, PerplexityMeasured) and e.stage == Stage.DENSE]
    assert (len(work), len(measured)) == (2, 4)
    assert len({event.perplexity for event in measured}) == 2
    planned = [event for event in events if isinstance(event, JobPlanned)]
    assert [event.finished.get("perplexity dense", 0) for event in planned] == [0, 1, 0, 1]


def test_the_same_sweep_again_runs_what_is_missing(workspace, tmp_path):
    folder = tmp_path / "sweep"
    first = jobs_of(grid(workspace))
    list(run_sweep(first, folder))
    before = (folder / "results.csv").read_text()
    events = list(run_sweep(first, folder))
    assert [type(event) for event in events] == [SweepPlanned, SweepJobEnded, SweepJobEnded]
    assert set(events[0].jobs.values()) == {0.0}
    assert (folder / "results.csv").read_text() == before
    more = jobs_of(grid(workspace, seed=[0, 1]))
    events = list(run_sweep(more, folder))
    begun = {event.name for event in events if isinstance(event, SweepJobStarted)}
    assert begun == {job.name for job in more} - {job.name for job in first}
    assert len(table(folder)) == 4


def test_a_sweep_that_is_closed_goes_on_where_it_was(workspace, tmp_path):
    jobs = jobs_of(grid(workspace, method="wanda", seed=[0, 1]))
    list(run_sweep(jobs, tmp_path / "whole"))
    folder = tmp_path / "sweep"
    with closing(run_sweep(jobs, folder)) as events:
        for event in events:
            if isinstance(event, LayerInitialised):
                break
    path = folder / RUNS / jobs[0].name
    (kept,) = (event for event in RunDirectory(path).events() if isinstance(event, LayerInitialised))
    list(run_sweep(jobs, folder))
    again = next(event for event in RunDirectory(path).events() if isinstance(event, LayerInitialised))
    assert again.seconds == kept.seconds, "the finished layer was not made again"
    for job in jobs:
        assert same(recorded(folder / RUNS / job.name), recorded(tmp_path / "whole" / RUNS / job.name))


def test_a_job_that_fails_does_not_end_the_sweep(workspace, tmp_path):
    """Another writer has the first job's run directory, and the second one's has another job."""
    folder = tmp_path / "sweep"
    jobs = jobs_of(grid(workspace, method=["magnitude", "wanda", "ria"]))
    paths = [folder / RUNS / job.name for job in jobs]
    list(run_job(replace(jobs[2].spec, run_dir=paths[1])))
    (folder / "sweep.json").write_text("{}")
    paths[0].mkdir(parents=True)
    with FileLock(paths[0] / "run.lock"):
        errors = ended(list(run_sweep(jobs, folder)))
    first, second, third = errors.values()
    assert "is being written by" in first
    assert "has other settings" in second
    assert third == ""
    rows = table(folder)
    assert [row["status"] for row in rows] == ["failed", "failed", "finished"]
    assert [row["error"] for row in rows] == [first, second, ""]
    assert ended(list(run_sweep(jobs, folder)))[jobs[0].name] == "", "it is tried again"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": ["50%", "1:5"]}, "over 5 consecutive inputs"),
        ({"seqlen": 65}, "beyond the 64 positions"),
        ({"evaluation": "nothing.npy"}, "does not exist"),
        ({"calibration": "wikitext3"}, "is unknown"),
        ({"model": "no/folder/here"}, "no/folder/here"),
    ],
)
def test_jobs_that_cannot_run_end_a_sweep_before_it_begins(workspace, tmp_path, settings, words):
    with pytest.raises(GridError, match=words) as caught:
        list(run_sweep(jobs_of(grid(workspace, **settings)), tmp_path / "sweep"))
    assert "\n" not in str(caught.value), "equal sentences of several jobs are one"
    assert not (tmp_path / "sweep").exists()


def test_a_folder_of_something_else_is_left_alone(workspace, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for folder, words in ((tmp_path, "something else than a sweep"), (tmp_path / "precious.txt", "is no folder")):
        with pytest.raises(UserError, match=words):
            list(run_sweep(jobs_of(grid(workspace)), folder))
    assert [place.name for place in tmp_path.iterdir()] == ["precious.txt"]
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "sweep.json.part").write_text("{")
    assert not any(ended(list(run_sweep(jobs_of(grid(workspace, method="magnitude")), begun))).values())


def test_a_model_that_is_read_layer_by_layer_gives_the_same(workspace, tmp_path):
    settings = grid(workspace, method="wanda", seed=[0, 1])
    for name, more in (("whole", {}), ("streamed", {"stream": True})):
        events = list(run_sweep(jobs_of(settings | more), tmp_path / name))
        assert not any(ended(events).values())
    whole, streamed = (table(tmp_path / name) for name in ("whole", "streamed"))
    for one, other in zip(whole, streamed, strict=True):
        for name in one:
            if name.endswith(tuple(STAGES)):
                assert math.isclose(float(one[name]), float(other[name]), rel_tol=1e-5)


@pytest.mark.process
def test_a_killed_sweep_is_resumed_by_the_same_command(workspace, tmp_path):
    settings = grid(workspace, nsamples=32, threshold="auto", rounds=1, granularity=None)
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
    folder, whole = tmp_path / "sweep", tmp_path / "whole"
    assert run("sweep", str(file), "--output", str(whole)).returncode == 0
    names = list(json.loads((whole / "sweep.json").read_text())["jobs"])
    process = start("sweep", str(file), "--output", str(folder))
    second = folder / RUNS / names[1] / "events.jsonl"
    while not (second.exists() and "LayerInitialised" in second.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "killed before it ended"
    assert [row["status"] for row in table(folder)] == ["finished", "waiting"]
    result = run("sweep", str(file), "--output", str(folder))
    assert result.returncode == 0, result.stderr
    assert "1 of them finished before" in result.stderr
    assert f"1/2 {names[0]}: finished" in result.stderr
    assert (folder / "results.md").read_text() in result.stdout
    for name in names:
        assert same(recorded(folder / RUNS / name), recorded(whole / RUNS / name))
    measured = [name for name in table(whole)[0] if name.endswith(tuple(STAGES))]
    for one, other in zip(table(whole), table(folder), strict=True):
        assert [one[name] for name in measured] == [other[name] for name in measured]


def test_the_command_tells_all_mistakes_and_which_jobs_failed(workspace, tmp_path, capsys):
    file, folder = tmp_path / "grid.yaml", tmp_path / "sweep"
    file.write_text("metod: wanda\nsparsity: 0%\nmethod: wanda\n")
    assert main(["sweep", str(file), "--output", str(folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") and line.endswith(".") for line in lines)
    assert not folder.exists()
    file.write_text(yaml.safe_dump(grid(workspace)))
    assert main(["sweep", str(file), "--output", str(folder)]) == 0
    (job, _) = jobs_of(grid(workspace))
    (folder / RUNS / job.name / "job.json").write_text("{}")
    (folder / RUNS / job.name / "events.jsonl").unlink()
    assert main(["sweep", str(file), "--output", str(folder)]) == 2
    assert "error: 1 of 2 jobs failed" in capsys.readouterr().err


def test_the_flags_without_a_command_stay_as_they_are(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--prune_barber" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    assert "GRID.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["sweep"])
    assert ended.value.code == 2


def test_a_lent_dense_perplexity_is_of_the_same_windows(workspace):
    """Another number of windows is measured again."""
    job = JobSpec(
        model=str(workspace / "model"), evaluation=(str(workspace / "evaluation.npy"),), eval_windows=4, seqlen=24
    )
    dense: dict = {}
    found = [
        next(event for event in run_job(spec, dense=dense) if isinstance(event, PerplexityMeasured))
        for spec in (job, replace(job, eval_windows=8), job)
    ]
    assert len(dense) == 2
    assert found[0] is found[2]
    assert found[0].perplexity != found[1].perplexity


def test_a_lent_model_counts_as_memory_that_its_job_may_use(workspace, monkeypatch):
    """It is a part of what the job needs, and no longer of what is free."""
    free = 2**30
    monkeypatch.setattr(setup.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    spec = JobSpec(model=str(workspace / "model"), device="cpu")
    loaded = load(spec.model, "cpu")
    size = sum(parameter.nbytes for parameter in loaded.model.parameters())
    for lent, expected in ((None, free), (loaded, free + size)):
        with ExitStack() as stack:
            assert setup.set_up_job(spec, lent, Ranks(), stack, False).limit == int(setup.HEADROOM * expected)
