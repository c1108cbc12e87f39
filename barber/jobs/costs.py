"""Computational cost of the phases of a job, for the estimate of the remaining time."""

from __future__ import annotations

from barber.config import Order
from barber.data.token_sets import EvaluationSet
from barber.events import Stage
from barber.job_spec import JobSpec
from barber.pruning.allocation import COSTS
from barber.pruning.sub_block import sub_block_steps
from barber.registry import INITIAL_MASKS

REBUILD_COST = 1.5  # cost of one step of a sub-block's rebuild, in forward passes of one sequence through a layer
ZERO_SHOT_SAMPLES = 500  # assumed number of items of a task without a limit


def costs(spec: JobSpec, layers: int, evaluations: list[EvaluationSet]) -> dict[str, float]:
    """Return phase -> cost, in forward passes of one sequence through one layer, for the remaining time."""
    stages = [Stage.DENSE]
    found: dict[str, float] = {}
    if spec.prune:
        stages += [Stage.INITIAL, Stage.REBUILT] if spec.prune.refined else [Stage.INITIAL]
    windows = sum(len(data.tokens) for data in evaluations)
    for stage in stages:
        if stage == Stage.INITIAL:
            found["allocation"] = layers * spec.nsamples * COSTS.get(spec.prune.allocation, 0)
            method = INITIAL_MASKS.get(spec.prune.method)
            if spec.prune.order is Order.PAPER:
                found["initial mask"] = layers * (2 * spec.nsamples if method and method.calibrated else 1)
            else:  # the initial masks and the rebuild are computed in one pass, before either stage is evaluated
                found["rebuild"] = _rebuild_cost(spec, layers)
        if stage == Stage.REBUILT and spec.prune.order is Order.PAPER:
            found["rebuild"] = _rebuild_cost(spec, layers)
        found[f"perplexity {stage}"] = layers * windows
        found[f"text {stage}"] = layers * len(spec.prompts)
        found[f"zero-shot {stage}"] = layers * len(spec.zeroshot_tasks) * (spec.zeroshot_limit or ZERO_SHOT_SAMPLES)
    return {phase: cost for phase, cost in found.items() if cost}


def _rebuild_cost(spec: JobSpec, layers: int) -> float:
    train, validation = spec.prune.split_sizes(spec.nsamples)
    return layers * REBUILD_COST * sub_block_steps(train, validation, spec.prune)
