"""Grids: which jobs they have, by which names, and a sentence for each mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from barber.config import AUTO, PruneConfig, Sparsity
from barber.errors import UserError
from barber.job_spec import JobSpec
from barber.jobs.grid import GridError, axes, jobs_of, read_grid
from barber.jobs.presets import FIRST_LOOK

BASE = {"method": "wanda", "sparsity": "50%"}


def grid(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(text, "utf-8")
    return path


def sentences(settings: dict) -> list[str]:
    with pytest.raises(GridError) as caught:
        jobs_of(settings)
    found = str(caught.value).split("\n")
    assert all(sentence.endswith(".") for sentence in found)
    return found


def test_a_scalar_is_for_all_jobs_and_a_list_an_axis(tmp_path):
    text = "method: [magnitude, wanda]\nsparsity: [50%, 2:4]\nseed: [0, 1, 2]\nnsamples: 8\n"
    jobs = read_grid(grid(tmp_path, text))
    assert len(jobs) == 12
    assert {job.spec.nsamples for job in jobs} == {8}
    found = [(job.spec.prune.method, str(job.spec.prune.sparsity), job.spec.seed) for job in jobs]
    assert found[:4] == [
        ("magnitude", "50%", 0),
        ("magnitude", "50%", 1),
        ("magnitude", "50%", 2),
        ("magnitude", "2:4", 0),
    ]
    assert axes(jobs) == ["sparsity", "method", "seed"]


def test_a_pattern_is_not_read_as_a_number(tmp_path):
    """YAML 1.1 reads 2:4 as 124, and 1:8 as 68."""
    jobs = read_grid(grid(tmp_path, "method: wanda\nsparsity: [2:4, 1:8]\n"))
    assert [job.spec.prune.sparsity for job in jobs] == [Sparsity.parse("2:4"), Sparsity.parse("1:8")]


def test_what_a_grid_does_not_set_has_the_default_of_the_command_line():
    (bundled,), (other,) = jobs_of(BASE), jobs_of(BASE | {"model": "facebook/opt-125m"})
    prune = PruneConfig(Sparsity.parse("50%"), "wanda", barber=False)
    assert bundled.spec == replace(FIRST_LOOK, prune=prune, prompts=())
    assert other.spec == JobSpec("facebook/opt-125m", prune=prune)


def test_combinations_that_differ_in_settings_without_effect_are_one_job():
    settings = BASE | {"rebuild": [False, True], "threshold": [0.1, 0.2, AUTO], "granularity": ["block", "layer"]}
    jobs = jobs_of(settings)
    assert len(jobs) == 1 + 2 * 2 + 1  # no rebuild; two thresholds in two granularities; auto, which has none
    plain, *_, auto = jobs
    assert not plain.spec.prune.barber
    assert not {"threshold", "granularity"} & plain.values.keys()
    assert auto.values["threshold"] == AUTO
    assert "granularity" not in auto.values
    assert axes(jobs) == ["rebuild", "threshold", "granularity"]


def test_values_may_be_python_objects():
    (text,) = jobs_of(BASE | {"rebuild": "true", "threshold": "0.1", "seed": "3", "sparsity": "0.5"})
    (given,) = jobs_of(BASE | {"rebuild": True, "threshold": 0.1, "seed": 3, "sparsity": 0.5, "rounds": None})
    assert text == given


def test_runs_are_further_jobs_with_the_same_axes():
    jobs = jobs_of(BASE | {"seed": [0, 1], "runs": [{"rebuild": True, "threshold": [0.1, AUTO]}, {"sparsity": "70%"}]})
    found = [(str(job.spec.prune), job.spec.seed) for job in jobs]
    assert len(found) == len(set(found)) == 8
    assert sum("rebuilt" in text for text, _ in found) == 4
    assert sum("70%" in text for text, _ in found) == 2


def test_rules_leave_jobs_out():
    settings = {"method": ["magnitude", "wanda"], "sparsity": ["50%", "2:4"], "seed": [0, 1]}
    skipped = jobs_of(
        settings | {"skip": [{"method": "magnitude", "sparsity": ["2:4"]}, {"seed": 1, "method": "wanda"}]}
    )
    found = [(job.spec.prune.method, str(job.spec.prune.sparsity), job.spec.seed) for job in skipped]
    assert found == [("magnitude", "50%", 0), ("magnitude", "50%", 1), ("wanda", "50%", 0), ("wanda", "2:4", 0)]
    kept = jobs_of(settings | {"only": [{"seed": 1, "sparsity": "0.5"}]})
    assert [(job.spec.prune.method, job.spec.seed) for job in kept] == [("magnitude", 1), ("wanda", 1)]
    assert sentences(BASE | {"only": [{"method": "ria"}]}) == [
        "The grid has no jobs: its rules `only` and `skip` leave out all of them."
    ]


def test_a_job_keeps_its_name_when_the_grid_grows():
    (before,) = jobs_of(BASE)
    assert before.name in {job.name for job in jobs_of(BASE | {"seed": [1, 0], "runs": [{"rebuild": True}]})}
    assert before.name.startswith("wanda-50-seed-0-")
    (other,) = jobs_of(BASE | {"nsamples": 12})
    assert other.name != before.name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metod": "wanda"}, "give method"),
        ({"prune_method": "wanda"}, "give method"),
        ({"xyz": 1}, "give one of model, sparsity"),
        ({"run_dir": "out"}, "each job has a run directory"),
        ({"sparsity": ["50%", "120%"]}, "between 0 and 1"),
        ({"sparsity": "3:2"}, "0 < n < m"),
        ({"method": ["wanda", "wandda"]}, "is unknown: choose one of magnitude"),
        ({"nsamples": 0}, "give a whole number from 1"),
        ({"nsamples": []}, "nsamples has no values"),
        ({"nsamples": {"a": 1}}, "is not allowed: give a whole number"),
        ({"seed": [[0, 1], 2]}, "is not allowed: give a whole number"),
        ({"sparsity": [True, "50%"]}, "cannot be read"),
        ({"rebuild": "perhaps"}, "neither on nor off"),
        ({"threshold": 0.1}, "threshold has no effect in any job: it is a setting of the rebuild, which is off"),
        ({"order": "one-pass"}, "order has no effect in any job"),
        ({"allocation": "owl", "sparsity": "2:4"}, "does not allow"),
        ({"runs": {"rebuild": True}}, "is no list of settings"),
        ({"skip": ["wanda"]}, "is no list of settings"),
        ({"seed": list(range(101)), "nsamples": list(range(1, 101))}, "10100 combinations"),
        ({"initial_masks": "run"}, "give one of them"),
        ({"zeroshot_limit": 3}, "zeroshot_limit has no effect in any job"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence(settings, words):
    (sentence,) = sentences(BASE | settings)
    assert words in sentence
    assert "--" not in sentence


def test_all_mistakes_are_told_at_once():
    found = sentences({"metod": "wanda", "seed": -1, "sparsity": ["50%", "0%"]})
    assert len(found) == 4  # and no method
    assert any("names no initial mask" in sentence for sentence in found)
    assert any("gives no sparsity" in sentence for sentence in sentences({"method": "wanda"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no settings"),
        ("- wanda\n", "has no settings"),
        ("method: [wanda\n", "is no YAML"),
        ("method: wanda\nmethod: ria\nsparsity: 50%\n", "method is given twice"),
        ("method: !!python/object/apply:os.system ['true']\nsparsity: 50%\n", "is unknown"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_grid(grid(tmp_path, text))
    with pytest.raises(UserError, match="does not exist"):
        read_grid(tmp_path / "other.yaml")


def test_the_grid_of_the_readme_is_one(tmp_path):
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    jobs = read_grid(grid(tmp_path, text.split("```yaml\n")[1].split("```")[0]))
    assert len(jobs) == 3 * (2 * 3 - 1) * 3
    assert axes(jobs) == ["sparsity", "method", "rebuild", "refiner", "seed"]
