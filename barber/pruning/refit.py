"""Re-fit the kept weights of one sub-block to its target output; what is pruned stays zero.

Outside the paper, which promises masks without new weights: an option after the mask. Adam on the sub-block's own
error, and the best state by the error on the sequences that are held out.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from barber.events import Event, Progress
from barber.models.decoder import Masks, Values, assign_values
from barber.pruning.problem import Problem, squared_error

EPOCHS = 12  # passes over the teaching sequences

BATCH = 4  # sequences of a step, on all ranks together

RATE = 0.05  # of Adam at its peak, in units of the kept weights' root mean square

BETAS = (0.9, 0.95)


def reconstruct(
    problem: Problem, masks: Masks, values: Values, progress: Iterator[Progress]
) -> Generator[Event, None, tuple[Values, dict]]:
    """Values name -> (out, in) with the zeros of `masks`, and what was reached (see events.SubBlockRebuilt).

    values: where to begin. Targets of all sequences must be known. The best state by the sequences held out stands, so
    the result is never worse than `values` there; a pass that ends worse than the beginning (or not finite) goes back
    to the best state and on at a quarter of the rate.
    """
    kept = {name: ~mask for name, mask in masks.items()}
    master = {name: value.float().clone() for name, value in values.items()}
    rate = RATE
    optimiser = _optimiser(master, kept, rate)
    assign_values(problem.block.weights, values)
    before = yield from _held_error(problem, progress)
    best, lowest, steps, diverged = values, before, 0, False
    size = max(1, BATCH // (problem.ranks.world * max(problem.sizes)))
    batches = [problem.fit[start : start + size] for start in range(0, len(problem.fit), size)]
    for epoch in range(EPOCHS):
        for number, step in enumerate(batches):
            share = (epoch + number / len(batches)) / EPOCHS
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * share))
            gradients = {name: torch.zeros_like(value) for name, value in master.items()}
            for batch in step:
                for name, gradient in _gradients(problem, batch).items():
                    gradients[name] += gradient
                yield next(progress)
            problem.ranks.sum(list(gradients.values()))
            for name, value in master.items():
                value.grad = gradients[name] * kept[name]
            optimiser.step()
            assign_values(problem.block.weights, master)
            steps += 1
        error = yield from _held_error(problem, progress)
        if error < lowest:
            best, lowest = {name: value.to(values[name].dtype, copy=True) for name, value in master.items()}, error
        if not error <= before:
            rate, diverged = rate / 4, True
            master = {name: value.float().clone() for name, value in best.items()}
            optimiser = _optimiser(master, kept, rate)
    return best, {"error_before": before, "error_after": lowest, "steps": steps, "diverged": diverged}


def _optimiser(master: Values, kept: Masks, rate: float) -> torch.optim.Adam:
    """Adam with a rate for each weight matrix, in units of its kept weights' root mean square."""
    groups = []
    for name, value in master.items():
        size = (value.square().sum() / kept[name].sum().clamp_min(1)).sqrt().item()
        groups.append({"params": [value], "peak": rate * size, "lr": rate * size})
    return torch.optim.Adam(groups, betas=BETAS)


def _gradients(problem: Problem, batch: int) -> dict[str, Tensor]:
    """Gradient of the summed error of a batch by the weights that the sub-block has now, name -> fp32 (out, in).

    Times a power of two, since half-precision gradients underflow without; Adam does not look at the size.
    """
    parameters, target = [weight.parameter for weight in problem.block.weights], problem.target(batch)
    scale = 2.0 ** round(math.log2(target[0].numel()))
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            error = squared_error(target, problem.block.replay(problem.call(batch), problem.others(batch)))
            gradients = torch.autograd.grad(error * (scale * len(target)), parameters, materialize_grads=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return {w.name: w.oriented(g).float() for w, g in zip(problem.block.weights, gradients, strict=True)}


def _held_error(problem: Problem, progress: Iterator[Progress]) -> Generator[Event, None, float]:
    errors = {}
    for batch in problem.held:
        errors[batch] = problem.error(batch)
        yield next(progress)
    return problem.mean(errors)
