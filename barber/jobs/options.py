"""From the flags that were given to a JobSpec, with the published defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from barber import console
from barber.bundled import STORYTELLER
from barber.config import AUTO, PruneConfig, Refiner, Sparsity
from barber.errors import UserError
from barber.evaluation.zero_shot import PUBLISHED_TASKS
from barber.job_spec import JobSpec
from barber.jobs.presets import FIRST_LOOK
from barber.runs.directory import RunDirectory

BARBER_FLAGS = ("prune_metric", "prune_granularity", "threshold", "rounds")

REBUILD_FLAGS = (*BARBER_FLAGS, "retain_reconstruction", "refiner")

CONFIG_FLAGS = (*REBUILD_FLAGS, "target", "allocation", "reconstruct", "order")

PRUNING_FLAGS = {"sparsity_ratio", "sparsity_type", "prune_method", "prune_barber", "initial_masks", *CONFIG_FLAGS}

SPEC_FLAGS = {
    "model", "nsamples", "seqlen", "seed", "device", "dtype", "calibration", "eval_windows", "run_dir", "save_model",
    "save_data", "cache_dir", "datasets_cache_dir", "trust_remote_code", "stream", "max_memory",
    "compute",
}  # fmt: skip


def job_from(given: dict[str, Any]) -> JobSpec:
    """The job that the given flags ask for (name -> value, only those given).

    The bundled model brings its own data, and its preset pruning where no pruning flag is given; any other model takes
    the published defaults, and without a pruning flag only its dense weights are evaluated.
    """
    given = {name: _home(value) if name in ("model", "initial_masks") else value for name, value in given.items()}
    base = FIRST_LOOK if given.get("model", STORYTELLER) == STORYTELLER else JobSpec()
    changes = {name: value for name, value in given.items() if name in SPEC_FLAGS}
    if PRUNING_FLAGS & given.keys():
        changes["prune"] = _prune_config(given)
    if "eval_data" in given:
        changes["evaluation"] = _names(given["eval_data"], "--eval_data")
    if "prompt" in given:
        changes["prompts"] = (given["prompt"],)
    if "save_zeroshot" in given or "zeroshot_tasks" in given:
        changes["zeroshot_tasks"] = _names(given.get("zeroshot_tasks", ",".join(PUBLISHED_TASKS)), "--zeroshot_tasks")
    if given.get("limit", 1) < 1:
        raise UserError(f"--limit {given['limit']} is not allowed: give 1 or more items per task.")
    changes["zeroshot_limit"] = given.get("limit")
    if given.get("delete") and "save_model" not in given:
        raise UserError("--delete removes the folder that --save_model writes: give --save_model too, or leave it out.")
    return replace(base, **changes)


def _home(path: str) -> str:
    return str(console.path(path)) if path.startswith("~") else path


def _names(text: str, flag: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UserError(f"{flag} {text!r} names nothing: give one name, or several with commas between.")
    return names


def _prune_config(given: dict[str, Any]) -> PruneConfig:
    masks, rebuild = given.get("initial_masks"), given.get("prune_barber", False)
    alone = [flag for flag in REBUILD_FLAGS if flag in given and not rebuild]
    if alone:
        raise UserError(f"--{alone[0]} is a setting of the rebuild, which was not asked: add --prune_barber.")
    if "target" in given and not (rebuild or given.get("reconstruct")):
        raise UserError("--target is a setting of the rebuild and of --reconstruct: add one of them.")
    foreign = [
        flag for flag in BARBER_FLAGS if flag in given and given.get("refiner", Refiner.BARBER) != Refiner.BARBER
    ]
    if foreign:
        raise UserError(f"--{foreign[0]} is a setting of the refiner barber, not of {given['refiner']}: leave it out.")
    if masks and "prune_method" in given:
        raise UserError("--initial_masks and --prune_method both name an initial mask: give one of them.")
    sparsity = _sparsity(given)
    if not masks and "prune_method" not in given:
        raise UserError(
            "No initial mask was chosen: add --prune_method magnitude, wanda, wandd, sparsegpt, ria or random."
        )
    names = {"prune_metric": "metric", "prune_granularity": "granularity"}
    if given.get("threshold") == AUTO and "prune_granularity" in given:
        raise UserError("--threshold auto chooses the granularity itself: leave --prune_granularity out.")
    return PruneConfig(
        sparsity=sparsity,
        method="masks" if masks else given["prune_method"],
        barber=rebuild,
        initial_masks=masks,
        **{names.get(flag, flag): given[flag] for flag in CONFIG_FLAGS if flag in given} | _threshold(given),
    )


def _threshold(given: dict[str, Any]) -> dict[str, Any]:
    """The threshold as a number, or "auto" as it is."""
    if given.get("threshold", AUTO) == AUTO:
        return {}
    try:
        return {"threshold": float(given["threshold"])}
    except ValueError:
        raise UserError(
            f"Threshold {given['threshold']!r} is not a number: give one from 0 to 1, like 0.1, or auto."
        ) from None


def _sparsity(given: dict[str, Any]) -> Sparsity:
    """n:m sets the ratio by itself; Sparsity refuses a ratio that contradicts it."""
    kind, ratio = given.get("sparsity_type", "unstructured"), given.get("sparsity_ratio")
    if kind != "unstructured":
        pattern = Sparsity.parse(kind) if ":" in kind else None
        if pattern is None:
            raise UserError(f"Sparsity type {kind!r} is unknown: give unstructured, or n:m like 2:4.")
        return pattern if ratio is None else Sparsity(ratio, pattern.n, pattern.m)
    if ratio == 0:
        raise UserError(
            "--sparsity_ratio 0 prunes nothing: give a number between 0 and 1, or no pruning flag at all to measure "
            "the dense model."
        )
    if ratio is not None:
        return Sparsity(ratio)
    if given.get("initial_masks"):
        if Path(given["initial_masks"]).is_file():
            raise UserError(
                f"The pattern of the masks in {given['initial_masks']} is unknown: add the sparsity ratio or type."
            )
        return RunDirectory(given["initial_masks"]).sparsity
    raise UserError("No sparsity was given: add --sparsity_ratio between 0 and 1, or --sparsity_type n:m like 2:4.")
