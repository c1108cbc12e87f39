"""Open the directory that a job's run is recorded in: a new one, or that of a run which was begun before."""

from __future__ import annotations

import shutil

from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Event
from barber.job_spec import JobSpec
from barber.jobs.setup import JobSetup
from barber.pruning.prune import describe
from barber.runs import recorder, resume
from barber.runs.directory import RunDirectory
from barber.runs.environment import model_hash


def open_recording(spec: JobSpec, setup: JobSetup, calibration: CalibrationSet | None, resumed: bool) -> list[Event]:
    """Make the run directory, or put one in order that was begun before; the events that it keeps.

    Raises UserError where the model is not the one that the run was begun with.
    """
    folder, ranks = setup.folder, setup.context.ranks
    if not resumed:
        recorder.create(folder, spec)
        return []
    if not ranks.writes:  # goes on in a copy of what the first rank has put in order
        ranks.wait()
        shutil.copytree(spec.run_dir, folder)
    before = RunDirectory(folder).environment if (folder / "config.json").exists() else {}
    if before and before["model_hash"] != model_hash(setup.context.provider, setup.context.view):
        raise UserError(
            f"{spec.model} does not have the weights that the run in {folder} was begun with: give back that model, or "
            "start a new run."
        )
    finished = resume.reopen(folder, describe(setup.context, calibration, spec.prune))
    if ranks.writes:
        ranks.wait()
    return [*finished.before, *finished.events]
