"""A job in one line."""

from __future__ import annotations

from pathlib import Path

from barber.config import Allocation, PruneConfig
from barber.job_spec import JobSpec
from barber.registry import BARBER, DATA_SOURCES, INITIAL_MASKS, REFINERS


def describe(spec: JobSpec) -> str:
    """The title of a job's result: model, method, pattern, rebuild, data and seed."""
    prune = spec.prune
    parts = [Path(spec.model).name, f"{INITIAL_MASKS[prune.method].title} {prune.sparsity}"]
    if prune.allocation is not Allocation.UNIFORM:
        parts.append(f"layers {prune.allocation.label}")
    parts.append(f"rebuilt by {_rebuild(prune)}" if prune.barber else "no rebuild")
    parts += ["kept weights refitted"] if prune.reconstruct else []
    if prune.needs_calibration:
        source = DATA_SOURCES.get(spec.calibration)
        parts.append(f"{spec.nsamples} sequences of {source.title if source else Path(spec.calibration).name}")
    return " · ".join([*parts, f"seed {spec.seed}"])


def _rebuild(prune: PruneConfig) -> str:
    if prune.refiner != BARBER:
        return REFINERS[prune.refiner].title
    return "Barber, swaps by validation error" if prune.auto else f"Barber, threshold {prune.threshold:g}"
