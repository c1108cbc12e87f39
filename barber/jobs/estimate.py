"""What a run will take, before it begins: memory on the device and the host, disk, and time.

Memory is counted from the sizes of layers and activations; time from the arithmetic of forward and backward passes and
the measured rate of matrix products. Both are estimates: benchmarks/memory.py --settings holds the first against runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from barber.config import AUTO_ROUNDS, Allocation, Order, PruneConfig
from barber.pruning.rebuild import FRACTIONS, GRANULARITIES
from barber.pruning.refit import EPOCHS
from barber.registry import BARBER, INITIAL_MASKS

KEPT = 4  # activations of all sequences that wait at once: hidden states, a sub-block's inputs, targets and outputs
WORK = 4  # fp32 copies of a sub-block's weights at work: squared gradients or saliency, sorted values, masks
REFIT = 5  # more of them for a refit: weights, two moments, gradients of the step and of the batch
GRAMS = 3  # matrices (in, in) in fp32 that "auto" holds at a time
BACKWARD = 1.31  # of a forward pass: gradients of all weights, and of the inputs of all linears but the first
PROBE = 1024  # rows and columns of the matrix product that is timed


@dataclass(frozen=True)
class Model:
    """The sizes of a model that matter. Bytes are those of its dtype.

    layer_parameters, block_parameters: prunable weights of a layer, and of its largest sub-block; width: the largest
    number of inputs of a weight; spread: numbers that the linears of the largest sub-block take and give, a token.
    other_bytes: what lies outside the layers.
    """

    layers: int
    hidden: int
    layer_parameters: int
    block_parameters: int
    width: int
    spread: int
    other_bytes: int
    element: int


@dataclass(frozen=True)
class Needs:
    """weights: bytes of weights that are held at a time; activations: of activations that wait; work: of what comes and
    goes; seconds of the pruning.
    """

    weights: int
    activations: int
    work: int
    seconds: float

    @property
    def least(self) -> int:
        """Bytes without waiting activations."""
        return self.weights + self.work


def passes(config: PruneConfig, samples: int) -> float:
    """Forward passes of the calibration set through all layers that the arithmetic of a run is worth."""
    method = INITIAL_MASKS.get(config.method)
    first = method.passes if method else 0.0
    first += {Allocation.UNIFORM: 0, Allocation.OWL: 2, Allocation.SALIENCY: 5 + BACKWARD}[config.allocation]
    if not config.refined:
        return first
    train, validation = (part / samples for part in config.split_sizes(samples))
    own = 2 + BACKWARD  # initial outputs, dense outputs, gradients
    if config.auto:
        proposals = len(FRACTIONS) * len(GRANULARITIES) + 1
        own = 2 + (config.rounds or AUTO_ROUNDS) * ((2 + BACKWARD) * train + proposals * validation)
    elif config.refiner != BARBER:
        own = 2.0
    elif config.most_rounds > 1:
        own = 2 + config.most_rounds * (2 + BACKWARD + 1)
    if config.reconstruct:
        own += EPOCHS * (train * (2 + BACKWARD) + validation)
    second = own + 1  # and the final outputs
    return second if config.order is Order.ONE_PASS else first + second


def estimate(
    model: Model, config: PruneConfig, samples: int, seqlen: int, batch: int, rate: float, whole: bool, ranks: int = 1
) -> Needs:
    """The needs of one process of a run.

    batch: sequences of a forward pass. rate: floating-point operations a second. whole: whether all layers are in
    memory, instead of one. ranks: the processes that share the sequences.
    """
    tokens = samples * seqlen / ranks
    parameters = 2 * model.layers * model.layer_parameters if whole else model.layer_parameters + model.block_parameters
    copies = WORK + REFIT * config.reconstruct
    method = INITIAL_MASKS.get(config.method)
    matrices = max(method.hessians if method else 0, GRAMS if config.auto else 0)
    hessian = matrices * 4 * model.width**2
    products = 2 * model.layer_parameters + 4 * seqlen * model.hidden  # a token and layer; attention reads half of them
    return Needs(
        weights=model.other_bytes + parameters * model.element,  # dense ones, and the new values of what was refined
        activations=int(KEPT * tokens * model.hidden * model.element),
        work=copies * 4 * model.block_parameters + 3 * batch * seqlen * model.spread * model.element + hessian,
        seconds=passes(config, samples) * model.layers * tokens * products / rate,
    )


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, the best of a few."""
    matrix = torch.ones(PROBE, PROBE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * PROBE**3 / best
