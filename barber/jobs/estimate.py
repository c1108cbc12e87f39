"""Estimate the device memory, host memory, disk space and time of a run before it starts.

Memory is computed from the sizes of layers and activations; time from the number of floating-point operations of the
forward and backward passes and the measured rate of matrix products. Both are estimates: benchmarks/memory.py
--settings compares the memory estimate with runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from barber.config import AUTO_ROUNDS, Allocation, Order, PruneConfig
from barber.pruning.rebuild import FRACTIONS, GRANULARITIES
from barber.pruning.refit import EPOCHS
from barber.registry import BARBER, INITIAL_MASKS

KEPT = 4  # stored activations of all sequences: hidden states, a sub-block's inputs, targets and outputs
WORK = 4  # fp32 tensors the size of a sub-block's weights: squared gradients or saliency, sorted values, masks
REFIT = 5  # additional ones for a refit: weights, two moments, gradients of the step and of the batch
GRAMS = 3  # (in, in) fp32 matrices that "auto" keeps in memory at once
BACKWARD = 1.31  # relative to a forward pass: gradients of all weights, and of the inputs of all linears but the first
PROBE = 1024  # rows and columns of the timed matrix product


@dataclass(frozen=True)
class Model:
    """The sizes of a model that the estimate depends on.

    Attributes:
        layers: number of decoder layers.
        hidden: size of the hidden states.
        layer_parameters: prunable weights of the largest layer.
        block_parameters: prunable weights of the largest sub-block.
        width: largest number of inputs of a weight matrix.
        spread: largest sum of the input and output sizes of the linears of a sub-block, per token.
        other_bytes: bytes of the parameters that are not prunable weights of the layers.
        element: bytes of one number in the dtype of the model.
        idle: prunable weights of the largest layer that one token does not use, of experts that it is not routed to.
        grams: numbers in the gram matrices of the experts of the largest layer, each of which has inputs of its own.
    """

    layers: int
    hidden: int
    layer_parameters: int
    block_parameters: int
    width: int
    spread: int
    other_bytes: int
    element: int
    idle: int = 0
    grams: int = 0


@dataclass(frozen=True)
class Needs:
    """Estimated memory and time of a run.

    Attributes:
        weights: bytes of the weights that are in memory at once.
        activations: bytes of stored activations.
        work: bytes of temporary tensors.
        seconds: duration of pruning.
    """

    weights: int
    activations: int
    work: int
    seconds: float

    @property
    def least(self) -> int:
        """Bytes without stored activations."""
        return self.weights + self.work


def passes(config: PruneConfig, samples: int) -> float:
    """Return the computational cost of a run in forward passes of the calibration set through all layers."""
    method = INITIAL_MASKS.get(config.method)
    first = method.passes if method else 0.0
    first += {Allocation.UNIFORM: 0, Allocation.OWL: 2, Allocation.SALIENCY: 5 + BACKWARD}[config.allocation]
    if not config.refined:
        return first
    train, validation = (part / samples for part in config.split_sizes(samples))
    own = 2 + BACKWARD  # forward passes for initial outputs and dense outputs, and the backward pass
    if config.auto:
        proposals = len(FRACTIONS) * len(GRANULARITIES) + 1
        own = 2 + (config.rounds or AUTO_ROUNDS) * ((2 + BACKWARD) * train + proposals * validation)
    elif config.refiner != BARBER:
        own = 2.0
    elif config.most_rounds > 1:
        own = 2 + config.most_rounds * (2 + BACKWARD + 1)
    if config.reconstruct:
        own += EPOCHS * (train * (2 + BACKWARD) + validation)
    second = own + 1  # plus the forward pass for the final outputs
    return second if config.order is Order.ONE_PASS else first + second


def estimate(
    model: Model, config: PruneConfig, samples: int, seqlen: int, batch: int, rate: float, whole: bool, ranks: int = 1
) -> Needs:
    """Estimate the memory and time of one process of a run.

    batch: sequences of a forward pass. rate: floating-point operations per second. whole: whether all layers are in
    memory, instead of one. ranks: number of processes that share the calibration sequences.
    """
    tokens = samples * seqlen / ranks
    parameters = 2 * model.layers * model.layer_parameters if whole else model.layer_parameters + model.block_parameters
    copies = WORK + REFIT * config.reconstruct
    method = INITIAL_MASKS.get(config.method)
    matrices = max(method.hessians if method else 0, GRAMS if config.auto else 0)
    hessian = 4 * (matrices * model.width**2 + (model.grams if matrices else 0))
    products = 2 * (model.layer_parameters - model.idle)  # per token and layer
    products += 4 * seqlen * model.hidden  # attention reads half
    return Needs(
        weights=model.other_bytes + parameters * model.element,  # dense weights, and the new values of rebuilt layers
        activations=int(KEPT * tokens * model.hidden * model.element),
        work=copies * 4 * model.block_parameters + 3 * batch * seqlen * model.spread * model.element + hessian,
        seconds=passes(config, samples) * model.layers * tokens * products / rate,
    )


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a square matrix product, the best of 4 measurements."""
    matrix = torch.ones(PROBE, PROBE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * PROBE**3 / best
