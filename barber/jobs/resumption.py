"""Open the directory that a job's run is recorded in: a new one, or that of an interrupted run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from barber.data.hub import tokenizer_fingerprint
from barber.data.token_sets import CalibrationSet, EvaluationSet
from barber.events import Event
from barber.job_spec import JobSpec
from barber.jobs.setup import JobSetup
from barber.pruning.prune import describe
from barber.runs import recorder, resume
from barber.runs.environment import check_inputs, describe_environment, describe_inputs


def open_recording(
    spec: JobSpec,
    setup: JobSetup,
    calibration: CalibrationSet | None,
    evaluations: Sequence[EvaluationSet],
    resumed: bool,
) -> list[Event]:
    """Create the run directory, or repair that of an interrupted run; return its valid events.

    Raises UserError if the model or the texts differ from those of the interrupted run.
    """
    folder, ranks = setup.folder, setup.context.ranks
    started = describe(setup.context, calibration, spec.prune)
    inputs = _inputs(spec, setup, evaluations) if resumed or (spec.run_dir and ranks.writes) else {}
    if not resumed:
        recorder.create(folder, spec, describe_environment(started, spec.seed, inputs) if inputs else None)
        return []
    if not ranks.writes:  # works in a copy of the directory that the first rank has repaired
        ranks.wait()
        shutil.copytree(spec.run_dir, folder)
    check_inputs(folder, spec.model, inputs)
    finished = resume.reopen(folder, started)
    if ranks.writes:
        ranks.wait()
    return [*finished.dense_events, *finished.events]


def _inputs(spec: JobSpec, setup: JobSetup, evaluations: Sequence[EvaluationSet]) -> dict[str, Any]:
    """Hashes of the run's inputs; only the first rank evaluates."""
    tokenizer, context = setup.loaded.tokenizer, setup.context
    inputs = describe_inputs(
        context.provider,
        context.view,
        [(data.dataset, data.tokens) for data in evaluations],
        tokenizer_fingerprint(tokenizer) if tokenizer else None,
        spec.prune.initial_masks,
    )
    return {name: value for name, value in inputs.items() if context.ranks.writes or name != "evaluation"}
