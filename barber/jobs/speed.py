"""How fast a device computes, measured in a moment with the model of a job, for the estimate of its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from barber.evaluation.perplexity import losses_of
from barber.jobs.estimate import Model
from barber.kernels.order_statistics import ordered
from barber.memory import is_out_of_memory
from barber.models.decoder import Layer
from barber.models.products import slow_dtypes
from barber.pruning.activation_store import ActivationStore
from barber.pruning.activations import ActivationStream
from barber.pruning.context import PruningContext
from barber.registry import Work

PROBE = 1024  # rows and columns of the timed matrices
HEAD_TOKENS = 128  # of the timed output layer
LAUNCHES = 256  # timed small operations
LAYER_LAUNCHES = 40  # operations of a decoder layer, about


@dataclass(frozen=True)
class Speed:
    """Seconds of the parts of a job.

    Attributes:
        layer: a forward pass of one sequence through one decoder layer, the mean over the layers.
        token: a forward pass of one token alone through such a layer.
        head: the output layer and the loss of one sequence.
        opening: reading a layer from disk; 0 if all layers are in memory.
        product: a multiplication and addition of an fp32 matrix product.
        sort: sorting, for each of many numbers.
        launch: an operation on a small tensor.
    """

    layer: float
    token: float
    head: float
    opening: float
    product: float
    sort: float
    launch: float

    def of(self, work: Work, rows: int, columns: int) -> float:
        """Seconds of work on one weight (rows, columns)."""
        products = columns**2 * (work.products * rows + work.cubes * columns)
        operations = work.launches * columns + work.calls
        return work.sorts * rows * columns * self.sort + products * self.product + operations * self.launch


def measure_speed(context: PruningContext, tokens: Tensor, batch: int, head: bool) -> Speed:
    """Measure the speed with the model's first layer on the first sequences of `tokens` (sequences, seqlen).

    batch: sequences of a forward pass, fewer if memory runs out. head: whether the output layer is needed.
    """
    while True:
        try:
            return _measure(context, tokens, batch, head)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch == 1:
                raise
        batch //= 2  # outside the handler, since its traceback keeps tensors in memory


def _measure(context: PruningContext, tokens: Tensor, batch: int, head: bool) -> Speed:
    view, provider = context.view, context.provider
    modules = [layer.module for layer in view.layers]
    stream = ActivationStream(view.model, modules, ActivationStore(provider.device), provider.open, context.compute)
    first, shapes = view.layers[0], [sum(w.view.numel() for w in layer.weights) for layer in view.layers]
    for part in (tokens[:batch], tokens[:1, :1], tokens[:1, :HEAD_TOKENS]):
        stream.feed(part)
    opening = seconds(provider.device, lambda: provider.open(0), times=1)
    mean = sum(shapes) / len(shapes) / max(shapes[0], 1)
    whole, single = (
        mean * seconds(provider.device, partial(_forward, first, stream, at)) for at in (0, len(stream) - 2)
    )
    provider.close(0)
    last, length = len(stream) - 1, min(tokens.shape[1], HEAD_TOKENS)
    logits = seconds(provider.device, partial(_losses, stream, last, tokens[:1, :length])) if head else 0.0
    rates = _rates(provider.device, torch.float32)
    return Speed(
        layer=whole / stream.sizes[0],
        token=single,
        head=logits * tokens.shape[1] / length,
        opening=opening,
        product=rates.product,
        sort=rates.sort,
        launch=rates.launch,
    )


def assume_speed(model: Model, device: torch.device, dtype: torch.dtype, seqlen: int) -> Speed:
    """The speed for a model of which only the sizes are known, from the speed of matrix products in its dtype."""
    rates = _rates(device, torch.float32)
    slow = device.type == "cpu" and dtype in slow_dtypes()
    product = rates.product if slow else _rates(device, dtype).product
    attention = seqlen * model.hidden  # a multiplication for each score and each sum, half of them masked
    return Speed(
        layer=seqlen * (model.layer_parameters + attention) * product,
        token=model.layer_parameters * product + LAYER_LAUNCHES * rates.launch,
        head=seqlen * model.other_bytes / model.element * product,
        opening=0.0,
        product=rates.product,
        sort=rates.sort,
        launch=rates.launch,
    )


@dataclass(frozen=True)
class _Rates:
    """Seconds of the parts of a computation: fields as in Speed, for products in one dtype."""

    product: float
    sort: float
    launch: float


@cache
def _rates(device: torch.device, dtype: torch.dtype) -> _Rates:
    matrix = torch.rand(PROBE, PROBE, device=device)
    factor, small = matrix.to(dtype), torch.zeros(1, device=device)
    return _Rates(
        product=seconds(device, lambda: factor @ factor, times=4) / PROBE**3,
        sort=seconds(device, lambda: ordered(matrix)) / matrix.numel(),
        launch=seconds(device, lambda: [small.add_(1) for _ in range(LAUNCHES)]) / LAUNCHES,
    )


def _forward(layer: Layer, stream: ActivationStream, batch: int) -> Tensor:
    return layer.replay(stream.call(layer.index, batch))


def _losses(stream: ActivationStream, batch: int, tokens: Tensor) -> list[float]:
    logits = stream.logits(batch)
    return losses_of(logits, tokens.to(logits.device))


def seconds(device: torch.device, work: Callable[[], object], times: int = 2) -> float:
    """Wall time of some work, the least of a few measurements."""
    best = float("inf")
    for _ in range(times):
        started = _now(device)
        work()
        best = min(best, _now(device) - started)
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
