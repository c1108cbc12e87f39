"""Refit the kept weights of one sub-block to its target output; pruned weights stay zero.

An addition to LLM-Barber (arXiv 2408.10631), which does not change weights: Adam on the sub-block's error, after the
masks are final. The result is the state with the lowest error on the validation sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from barber.events import Refit
from barber.models.decoder import Masks, Values, assign_values
from barber.models.taps import tapping
from barber.progress import TICK, Steps
from barber.pruning.dense_pass import error_under
from barber.pruning.sub_block_calls import SubBlockCalls, squared_error

EPOCHS = 12  # passes over the train sequences
BATCH = 4  # sequences of a step, over all ranks
RATE = 0.05  # peak rate of Adam, in units of the kept weights' root mean square
BETAS = (0.9, 0.95)


def refit(
    calls: SubBlockCalls, masks: Masks, values: Values, targets: Mapping[int, Tensor]
) -> Steps[tuple[Values, Refit]]:
    """Values name -> (out, in) with the zeros of `masks`, and the refit's errors.

    values: initial ones. targets: batch -> target output. The result has the lowest error on the validation sequences,
    at most that of `values`. If a pass ends with a higher error than that of `values`, or one that is not finite, the
    refit goes back to the best state and continues at a quarter of the rate.
    """
    kept = {name: ~mask for name, mask in masks.items()}
    master = {name: value.float().clone() for name, value in values.items()}
    rate = RATE
    optimiser = _optimiser(master, kept, rate)
    before = yield from error_under(calls, values, targets, calls.stream.validation)
    best, lowest, steps, diverged = values, before, 0, False
    for epoch in range(EPOCHS):
        batches = steps_of(calls)
        for number, step in enumerate(batches):
            share = (epoch + number / len(batches)) / EPOCHS
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * share))
            gradients = {name: torch.zeros_like(value) for name, value in master.items()}
            for batch in step:
                for name, gradient in _gradients(calls, batch, targets).items():
                    gradients[name] += gradient
                yield TICK
            calls.ranks.sum(list(gradients.values()))
            for name, value in master.items():
                value.grad = gradients[name] * kept[name]
            optimiser.step()
            assign_values(calls.block.weights, master)
            steps += 1
        error = yield from error_under(calls, master, targets, calls.stream.validation)
        if error < lowest:
            best, lowest = {name: value.to(values[name].dtype, copy=True) for name, value in master.items()}, error
        if not error <= before:
            rate, diverged = rate / 4, True
            master = {name: value.float().clone() for name, value in best.items()}
            optimiser = _optimiser(master, kept, rate)
    return best, Refit(before, lowest, steps, diverged)


def steps_of(calls: SubBlockCalls) -> list[list[int]]:
    """The train batches of each step."""
    train = calls.stream.train
    size = max(1, BATCH // (calls.ranks.world * max(calls.stream.sizes)))
    return [train[start : start + size] for start in range(0, len(train), size)]


def _optimiser(master: Values, kept: Masks, rate: float) -> torch.optim.Adam:
    """Adam with a rate for each weight matrix, in units of its kept weights' root mean square."""
    groups = []
    for name, value in master.items():
        size = (value.square().sum() / kept[name].sum().clamp_min(1)).sqrt().item()
        groups.append({"params": [value], "peak": rate * size, "lr": rate * size})
    return torch.optim.Adam(groups, betas=BETAS)


def _gradients(calls: SubBlockCalls, batch: int, targets: Mapping[int, Tensor]) -> Values:
    """Gradient of a batch's summed error with respect to the current weights, name -> fp32 (out, in).

    Multiplied by a power of two against underflow in half precision; Adam does not depend on the scale.
    """
    weights, target = calls.block.weights, calls.stream.store.load(targets[batch])
    whole = {weight.name: weight for weight in weights if weight.index is None}
    slices = {weight.name: weight for weight in weights if weight.index is not None}
    parameters = [weight.parameter for weight in whole.values()]
    scale = 2.0 ** round(math.log2(target[0].numel()))
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), tapping(slices, leaves=True) as taps:
            error = squared_error(target, calls.block.replay(calls.call(batch), calls.others(batch)))
            outputs = {id(tap.y): tap.y for of_slice in taps.values() for tap in of_slice}
            found = torch.autograd.grad(
                error * (scale * len(target)), [*parameters, *outputs.values()], materialize_grads=True
            )
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    gradients = {w.name: w.oriented(g).float() for w, g in zip(whole.values(), found, strict=False)}
    of_output = dict(zip(outputs, found[len(parameters) :], strict=True))
    for name, weight in slices.items():  # a fused weight has no gradient of its own, which all its slices would add to
        gradients[name] = torch.zeros_like(weight.view, dtype=torch.float32)
        for tap in taps.get(name, []):
            gradients[name] += _product(tap.own(of_output[id(tap.y)]), tap.own(tap.x.detach()))
    return gradients


def _product(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of a weight, fp32 (out, in), from that of its outputs (..., out) and its inputs (..., in)."""
    flat = gradient.flatten(0, -2)
    return (flat.T @ x.flatten(0, -2).to(flat.dtype)).float()
