"""All settings in one table, in the order of the command line, the form and the README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from barber.config import PruneConfig
from barber.fields import Setting, settings_of
from barber.job_spec import JobSpec

PRUNING = settings_of(PruneConfig)
MODEL = {"model": settings_of(JobSpec)["model"]}
SETTINGS: dict[str, Setting] = MODEL | PRUNING | settings_of(JobSpec)

# Flags of the command line only, which do not change a run.
COMMANDS = (
    Setting(name="save_ppl", flag="save_ppl", help="write the perplexities into this folder", metavar="DIR", kind=Path),
    Setting(
        name="save_zeroshot",
        flag="save_zeroshot",
        help="run zero-shot tasks and write their results into this folder",
        metavar="DIR",
        kind=Path,
    ),
    Setting(
        name="resume",
        flag="resume",
        help="resume the run in this --run_dir; no other flag is needed",
        metavar="DIR",
        kind=Path,
    ),
    Setting(
        name="delete",
        flag="delete",
        help="delete the model that --save_model wrote, after the evaluation",
        kind=bool,
    ),
)

FLAGS: tuple[Setting, ...] = (*(flag for one in SETTINGS.values() for flag in one.flags or (one,)), *COMMANDS)
SHOWN = {one.public: one for one in SETTINGS.values() if one.group is not None}  # by the form, links and the API


def shown(value: object) -> object:
    """A value as the form, the API, links and tables represent it: a number, a boolean, a text or None."""
    if isinstance(value, tuple):
        return ",".join(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def public_values(spec: JobSpec) -> dict[str, object]:
    """The settings of a job by their public names, as shown; without those of the pruning if it does not prune."""
    return {
        one.public: shown(getattr(spec.prune if name in PRUNING else spec, name))
        for name, one in SETTINGS.items()
        if name not in PRUNING or spec.prune
    }


def without_effect(values: Mapping[str, Any]) -> set[str]:
    """Names of the settings that have no effect beside the others. values: of settings, by name."""
    return {name for name in values if SETTINGS[name].unmet(values)}
