"""The command line of a job, read back by the parser of the command line."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from barber.cli import build_parser
from barber.config import PruneConfig, Sparsity
from barber.job_spec import JobSpec
from barber.jobs.command import command, without_outputs
from barber.jobs.options import job_from
from barber.jobs.presets import FIRST_LOOK, PRUNINGS, preset
from barber.settings import PRUNING


def read_back(spec: JobSpec) -> JobSpec:
    words = shlex.split(command(spec))
    assert words[:2] == ["python", "main.py"]
    return job_from(vars(build_parser().parse_args(words[2:])))


def effective(spec: JobSpec) -> JobSpec:
    """The job with the default of each setting that has no effect."""
    values = {name: getattr(spec.prune, name) for name in PRUNING}
    idle = {name: one.default for name, one in PRUNING.items() if one.unmet(values)}
    return replace(spec, prune=replace(spec.prune, **idle))


@pytest.mark.parametrize("title", PRUNINGS)
@pytest.mark.parametrize("model", ["storyteller", "facebook/opt-125m"])
def test_a_preset_is_the_same_job_on_the_command_line(title, model):
    spec = preset(title, model)
    assert read_back(spec) == effective(spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 3, "nsamples": 12, "stream": True, "max_memory": "2GIB"},
        {"evaluation": (), "calibration": "c4"},
        {"zeroshot_tasks": ("story_ending", "piqa"), "zeroshot_limit": 3},
        {"evaluation": ("c4", "ptb"), "window_start": "bos", "prompts": ('It\'s a "quoted" text; $HOME',)},
    ],
)
def test_the_settings_of_a_job_are_on_the_command_line(changes):
    spec = replace(FIRST_LOOK, **changes)
    assert read_back(spec) == effective(spec)


@pytest.mark.parametrize(
    "prune",
    [
        PruneConfig(Sparsity.parse("33.3%"), "magnitude", barber=False),
        PruneConfig(Sparsity.parse("4:8"), "sparsegpt", retain_reconstruction=True, metric="D", rounds=3),
        PruneConfig(Sparsity.parse("0.5"), "ria", refiner="one-swap", order="one-pass"),
        PruneConfig(Sparsity.parse("0.5"), barber=False, reconstruct=True, target="dense-stream"),
        PruneConfig(Sparsity.parse("2:4"), "masks", threshold="auto", initial_masks="my masks.safetensors"),
    ],
)
def test_every_pruning_is_on_the_command_line(prune):
    spec = replace(FIRST_LOOK, prune=prune)
    assert read_back(spec) == effective(spec)


def test_all_windows_stay_all_windows():
    assert read_back(replace(FIRST_LOOK, eval_windows=None)).eval_windows == 2**16
    assert read_back(replace(JobSpec("gpt2"), prune=FIRST_LOOK.prune)).eval_windows is None


def test_a_dense_job_and_one_without_prompts_are_on_the_command_line():
    assert read_back(JobSpec("gpt2", evaluation=("ptb",))) == JobSpec("gpt2", evaluation=("ptb",))
    assert "--prompt" not in command(replace(FIRST_LOOK, prompts=()))


def test_others_do_not_see_where_a_job_writes():
    places = {"run_dir": Path("/a/run"), "save_model": Path("/a/model"), "save_data": Path("/a/data")}
    spec = replace(FIRST_LOOK, **places, cache_dir="/a/cache", datasets_cache_dir="/a/cache")
    assert "/a/" in command(spec)
    assert without_outputs(spec) == FIRST_LOOK
    assert "/a/" not in command(without_outputs(spec))
