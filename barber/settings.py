"""All settings in one table, in the order of the command line, the form and the README."""

from __future__ import annotations

from pathlib import Path

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
