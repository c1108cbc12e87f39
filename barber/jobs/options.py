"""From the flags that were given to a JobSpec, with the published defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from barber import console
from barber.bundled import STORYTELLER
from barber.config import MASKS, PruneConfig, Sparsity
from barber.errors import UserError
from barber.evaluation.zero_shot import PUBLISHED_TASKS
from barber.job_spec import JobSpec
from barber.jobs.presets import FIRST_LOOK
from barber.registry import INITIAL_MASKS
from barber.runs.directory import RunDirectory
from barber.runs.masks_file import masks_in_file
from barber.settings import FLAGS, PRUNING, SETTINGS

PUBLISHED_EVALUATION = ("wikitext2", "ptb", "c4")  # what the published --save_ppl measures


def job_from(given: dict[str, Any]) -> JobSpec:
    """The job of the given flags (name -> value, only those given).

    The bundled model brings its own data, and its preset pruning where no pruning flag is given; any other model takes
    the published defaults, and without a pruning flag only its dense weights are evaluated. So are those of any model
    with --sparsity_ratio 0, as published.
    """
    for flag in FLAGS:
        if given.get(flag.flag) == "":
            raise UserError(f"--{flag.flag} is empty: give {flag.allowed}, or leave it out.")
    values = {name: expand_home(given[one.flag]) for name, one in SETTINGS.items() if one.flag in given}
    if "save_zeroshot" in given:
        values.setdefault("zeroshot_tasks", PUBLISHED_TASKS)
    base = FIRST_LOOK if values.get("model", STORYTELLER) == STORYTELLER else JobSpec()
    required = "evaluation" in values
    if "save_ppl" in given and base is not FIRST_LOOK:
        values.setdefault("evaluation", PUBLISHED_EVALUATION)
    if given.get("delete") and "save_model" not in given:
        raise UserError("--delete removes the folder that --save_model writes: give --save_model too, or leave it out.")
    pruning = {name: values.pop(name) for name in PRUNING if name in values}
    asked = bool(pruning or {"sparsity_ratio", "sparsity_type"} & given.keys())
    dense = _is_dense(given)
    if asked and not dense:
        pruning = {"barber": False} | pruning
        _check_initial_mask(pruning)
    _refuse_without_effect(values if dense else pruning | values)
    if dense:
        values["prune"] = None
    elif asked:
        method = {"method": MASKS} if "initial_masks" in pruning else {}
        values["prune"] = PruneConfig(_sparsity(given), **pruning | method)
    return replace(base, **values, evaluation_required=required)


def without_pruning(given: dict[str, Any]) -> str:
    """The sentence for --sparsity_ratio 0 among the flags, which names those that do nothing then; else ""."""
    if not _is_dense(given):
        return ""
    idle = [f"--{SETTINGS[name].flag}" for name in PRUNING if SETTINGS[name].flag in given]
    idle += ["--calibration"] if "calibration" in given else []
    named = f", and {', '.join(idle)} {'do' if len(idle) > 1 else 'does'} nothing" if idle else ""
    return f"The dense model is measured, since --sparsity_ratio 0 prunes nothing{named}."


def with_flags(job: JobSpec, given: dict[str, Any]) -> JobSpec:
    """A recorded job with the flags that were given once more; what was not given stays as it is."""
    values = {
        name: expand_home(given[one.flag]) for name, one in SETTINGS.items() if one.flag in given and name != "run_dir"
    }
    if "save_zeroshot" in given and not job.zeroshot_tasks:
        values.setdefault("zeroshot_tasks", PUBLISHED_TASKS)
    pruning = {name: values.pop(name) for name in PRUNING if name in values}
    if "initial_masks" in pruning:
        pruning["method"] = MASKS
    elif "method" in pruning:
        pruning["initial_masks"] = None
    ratio = job.prune.sparsity.ratio
    if "sparsity_type" in given or given.get("sparsity_ratio", ratio) != ratio:
        known = {"sparsity_ratio": ratio} if given.get("sparsity_type") == "unstructured" else {}
        pruning["sparsity"] = _sparsity(known | given)
    return replace(job, **values, prune=replace(job.prune, **pruning))


def _is_dense(given: dict[str, Any]) -> bool:
    """Whether the flags ask for a ratio of 0, without an n:m pattern, which has a ratio of its own."""
    return given.get("sparsity_ratio") == 0 and given.get("sparsity_type", "unstructured") == "unstructured"


def expand_home(value: Any) -> Any:
    """A path with ~ expanded; every other value as it is."""
    return str(console.path(value)) if isinstance(value, str) and value.startswith("~") else value


def _check_initial_mask(pruning: dict[str, Any]) -> None:
    if "initial_masks" in pruning and "method" in pruning:
        raise UserError("--initial_masks and --prune_method both name an initial mask: give one of them.")
    if "initial_masks" not in pruning and "method" not in pruning:
        *names, last = INITIAL_MASKS
        raise UserError(f"No initial mask was chosen: add --prune_method {', '.join(names)} or {last}.")


def _refuse_without_effect(values: dict[str, Any]) -> None:
    """UserError for a setting that does not apply beside the others. values: those given, by name."""
    method = {"method": MASKS} if "initial_masks" in values else {}
    all_values = {name: one.default for name, one in SETTINGS.items()} | values | method
    for name in values:
        if need := SETTINGS[name].unmet(all_values):
            raise UserError(f"--{SETTINGS[name].flag} {need.otherwise.format(**all_values)}.")


def _sparsity(given: dict[str, Any]) -> Sparsity:
    """n:m sets the ratio by itself; Sparsity refuses a ratio that contradicts it."""
    kind, ratio = given.get("sparsity_type", "unstructured"), given.get("sparsity_ratio")
    if kind != "unstructured":
        pattern = Sparsity.parse(kind) if ":" in kind else None
        if pattern is None:
            raise UserError(f"Sparsity type {kind!r} is unknown: give unstructured, or n:m like 2:4.")
        return pattern if ratio is None else Sparsity(ratio, pattern.n, pattern.m)
    if ratio is not None:
        return Sparsity(ratio)
    if given.get("initial_masks"):
        place = Path(expand_home(given["initial_masks"]))
        exported = masks_in_file(place) if place.is_file() else None
        if place.is_file() and not exported:
            raise UserError(
                f"The pattern of the masks in {given['initial_masks']} is unknown: add the sparsity ratio or type."
            )
        return exported.pattern if exported else RunDirectory(place).sparsity
    raise UserError("No sparsity was given: add --sparsity_ratio between 0 and 1, or --sparsity_type n:m like 2:4.")
