"""The table of settings: flags, parser, help and README agree with it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from barber.cli import build_parser
from barber.config import AUTO, PruneConfig, Sparsity
from barber.errors import UserError
from barber.fields import settings_of
from barber.job_spec import JobSpec
from barber.jobs.options import job_from
from barber.registry import DATA_SOURCES, INITIAL_MASKS, METRICS, REFINERS, SELF
from barber.settings import FLAGS, PRUNING, SETTINGS
from scripts.readme_tables import with_tables

ROOT = Path(__file__).parents[1]


def test_every_field_of_a_job_is_a_setting():
    assert list(PRUNING) == [field.name for field in fields(PruneConfig)]
    asked = [field.name for field in fields(JobSpec) if field.name not in ("prune", "evaluation_required")]
    assert list(settings_of(JobSpec)) == asked
    assert all(one.help for one in SETTINGS.values())


def test_every_need_depends_on_settings_and_can_be_met():
    for one in SETTINGS.values():
        assert {name for need in one.needs for name in need.on} <= SETTINGS.keys()
    for entry in (*INITIAL_MASKS.values(), *REFINERS.values()):
        assert set(entry.settings) <= SETTINGS.keys()


def test_choices_are_those_of_the_registry():
    assert list(SETTINGS["method"].choices) == list(INITIAL_MASKS)
    assert list(SETTINGS["refiner"].choices) == list(REFINERS)
    assert list(SETTINGS["metric"].choices) == list(METRICS)
    assert SETTINGS["calibration"].choices.keys() == DATA_SOURCES.keys()
    assert SETTINGS["evaluation"].choices.keys() == DATA_SOURCES.keys() - {SELF}


@pytest.mark.parametrize("name", [name for name, one in SETTINGS.items() if not one.flags])
def test_every_flag_reaches_its_field(name):
    one = SETTINGS[name]
    needed = {"model": "a/b", "sparsity_ratio": 0.5, "prune_barber": True, "zeroshot_tasks": "story_ending"}
    if name != "initial_masks":
        needed["prune_method"] = "sparsegpt"
    samples = {bool: True, int: 5, float: 0.25, Path: Path("x")}
    value = samples.get(one.kind, next(reversed(one.choices), "2GB"))
    job = job_from(needed | {one.flag: value})
    read = getattr(job.prune if name in PRUNING else job, name)
    assert read == one.read(value)
    assert read != one.default or name == "barber"


def test_the_parser_reads_every_flag():
    words = []
    for one in FLAGS:
        sample = next(iter(one.choices), "1") if one.closed else "1"
        words += [f"--{one.flag}"] if one.kind is bool else [f"--{one.flag}", sample]
    read = vars(build_parser().parse_args(words))
    assert list(read) == [one.flag for one in FLAGS]
    assert type(read["nsamples"]) is int
    assert type(read["threshold"]) is str


def test_help_shows_every_flag_without_loading_torch():
    program = (
        "import sys; from barber.cli import build_parser; build_parser().print_help(); sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert all(f"--{one.flag}" in result.stdout for one in FLAGS)
    assert argparse.SUPPRESS not in result.stdout


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"nsamples": 10**8}, "Samples 100000000 is not allowed: give a whole number from 1 to 65536."),
        ({"nsamples": 2.5}, "Samples 2.5 is not allowed"),
        ({"nsamples": "many"}, "Samples 'many' is not a number"),
        ({"seqlen": 10**9}, "Sequence length 1000000000 is not allowed"),
        ({"nsamples": 2**16, "seqlen": 2**16}, "more than 268435456 tokens"),
        ({"eval_windows": 10**8}, "Evaluation windows 100000000 is not allowed"),
        ({"seed": 2**32}, "Seed 4294967296 is not allowed"),
        ({"seed": 10**400}, "Seed 1"),
        ({"zeroshot_limit": 0}, "Limit 0 is not allowed"),
        ({"compute": "int3"}, "Compute 'int3' is unknown"),
        ({"max_memory": "12"}, "Memory limit '12' is not a size"),
        ({"nsamples": 3, "prune": PruneConfig(Sparsity(0.5), threshold=AUTO)}, "got 3: give 4 or more"),
        ({"nsamples": 3, "prune": PruneConfig(Sparsity(0.5), barber=False, reconstruct=True)}, "Reconstruction uses"),
    ],
)
def test_a_job_refuses_impossible_values(wrong, sentence):
    with pytest.raises(UserError) as caught:
        JobSpec(**wrong)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_job_is_read_back_from_json():
    spec = JobSpec(
        prune=PruneConfig("2:4", "wanda", granularity="block", threshold="0.5", rounds=2),
        evaluation="c4, ptb", max_memory="2 gb", run_dir="x", prompts="one, two",
    )  # fmt: skip
    assert (spec.evaluation, spec.max_memory, spec.run_dir) == (("c4", "ptb"), "2GB", Path("x"))
    assert (spec.prompts, spec.prune.threshold, spec.prune.sparsity) == (("one, two",), 0.5, Sparsity.parse("2:4"))
    assert JobSpec.from_dict(spec.to_dict()) == spec
    assert replace(spec, nsamples=4) != spec


def test_the_readme_has_the_current_flags():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert with_tables(readme) == readme, "run python scripts/readme_tables.py"
