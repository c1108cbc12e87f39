"""The command line that does the same as a job."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from barber.bundled import STORYTELLER
from barber.config import MASKS, PruneConfig
from barber.job_spec import MOST_SEQUENCES, JobSpec
from barber.jobs.presets import FIRST_LOOK
from barber.settings import PRUNING, SETTINGS

ALL = {"eval_windows": MOST_SEQUENCES}  # the number that means the same as None, where the bundled model has a default


def command(spec: JobSpec) -> str:
    """Return the command line of a job: main.py with each setting that is not the default, quoted for a shell.

    A setting without effect is left out, and of several prompts all but the first. spec has a sequence length, see
    `forecast.settled`: the command line cannot unset the default of the bundled model.
    """
    words = ["--model", spec.model, *(_pruning(spec.prune) if spec.prune else ["--sparsity_ratio", "0"])]
    base = FIRST_LOOK if spec.model == STORYTELLER else JobSpec()
    for name in SETTINGS:
        if name in PRUNING or name in ("model", "evaluation"):
            continue
        words += _flag(name, getattr(spec, name), getattr(base, name))
    words += ["--eval_data", ",".join(spec.evaluation) or "none"]  # named, so that missing data are an error
    return shlex.join(["python", "main.py", *words])


def without_outputs(spec: JobSpec) -> JobSpec:
    """Return the job without what it writes and where it keeps downloads: what others may read of it."""
    outputs = ("run_dir", "save_model", "save_data", "cache_dir", "datasets_cache_dir")
    return replace(spec, **dict.fromkeys(outputs))


def _pruning(prune: PruneConfig) -> list[str]:
    """The words of a pruning."""
    pattern, given = prune.sparsity, prune.method == MASKS
    words = [] if given else ["--prune_method", prune.method]
    words += ["--sparsity_type", str(pattern)] if pattern.m else ["--sparsity_ratio", f"{pattern.ratio:.12g}"]
    usual = PruneConfig(pattern, barber=False)
    values = {name: getattr(prune, name) for name in PRUNING}
    for name in PRUNING:
        if name not in ("sparsity", "method") and not PRUNING[name].unmet(values):
            words += _flag(name, getattr(prune, name), getattr(usual, name))
    return words


def _flag(name: str, value: Any, usual: Any) -> list[str]:
    """The words of a setting; none where it has its usual value."""
    value = ALL.get(name) if value is None and usual is not None else value
    if value in (usual, None, ()):
        return []
    flag = f"--{SETTINGS[name].flag}"
    if value is True:
        return [flag]
    if name == "prompts":
        return [flag, value[0]]
    return [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
