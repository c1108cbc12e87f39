"""Layer ratios that differ: layers with more outliers keep more, and the count of the whole model stays exact.

The rule is that of OWL (arXiv 2310.05175); what counts as an outlier is Wanda's score or the saliency of the rebuild.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from barber.calibration import CalibrationSet
from barber.capture import Call, tapping
from barber.config import Allocation, Metric, PruneConfig
from barber.errors import UserError
from barber.events import Event, Progress
from barber.execution import Execution
from barber.initialise import METHODS, Method, check_sums, gather, initialise_weights
from barber.model import Layer, SubBlock, masked
from barber.problem import Values, write
from barber.progress import counting
from barber.scores import saliency, wanda
from barber.stream import Stream, halving
from barber.tape import Tape

OUTLIER = 5.0  # M, as published: an outlier's score is more than M times the mean
BAND = 0.08  # lambda, as published
COSTS = {Allocation.OWL: 2, Allocation.SALIENCY: 6}  # forward passes of one sequence through a layer

Plan = dict[tuple[int, str], int]


def outliers(scores: Sequence[Tensor]) -> int:
    """How many of the scores, tensors of any shape, exceed OUTLIER times the mean of all (OWL, section 3.2)."""
    mean = sum(score.sum(dtype=torch.float64).item() for score in scores) / sum(score.numel() for score in scores)
    return sum(int((score > OUTLIER * mean).count_nonzero()) for score in scores)


def layer_ratios(shares: Sequence[float], ratio: float) -> list[float]:
    """Pruned share of each layer from its share of outliers, as in OWL's published code.

    The kept shares rise with the outliers over a band 2 * BAND wide and have the mean 1 - ratio. As in that code the
    band is not centred where the shares are skewed, so that a layer may be further than BAND from the mean.
    """
    low, width = min(shares), max(shares) - min(shares)
    kept = [2 * BAND * (share - low) / width if width else 0.0 for share in shares]
    mean = math.fsum(kept) / len(kept)
    return [ratio - (more - mean) for more in kept]


def share_out(sizes: Sequence[int], ratios: Sequence[float], total: int) -> list[int]:
    """Integers that sum to `total`, near sizes * ratios, each at least 0 and less than its size.

    One offset is added to all ratios, each clipped to what its matrix allows, until the sum is right; the fractions go
    to the largest remainders, the earlier one where they are equal. Raises UserError if all together cannot hold
    `total` zeros.
    """
    most = [size - 1 for size in sizes]
    if not 0 <= total <= sum(most):
        raise UserError(
            f"{total} of {sum(sizes)} weights cannot be pruned so that each of {len(sizes)} matrices keeps one: give a "
            "lower sparsity."
        )

    def quotas(offset: float) -> list[float]:
        return [
            min(max(size * (ratio + offset), 0.0), float(size - 1)) for size, ratio in zip(sizes, ratios, strict=True)
        ]

    low, high = -1.0 - max(ratios), 1.0 - min(ratios)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(quotas(middle)) <= total else (low, middle)
    exact = quotas(low)
    counts = [math.floor(quota) for quota in exact]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    while missing := total - sum(counts):
        for i in [i for i in order if counts[i] < most[i]][:missing]:
            counts[i] += 1
    return counts


def allocate(execution: Execution, calibration: CalibrationSet, config: PruneConfig) -> Generator[Event, None, Plan]:
    """The zeros of every weight, (layer, name) -> int, as many in all as the uniform run of the method has.

    The layers run with their dense weights, as published, and are dense again when this is done; who stops it on the
    way restores them.
    """
    method, layers, home = METHODS[config.method], execution.view.layers, execution.home
    stream = execution.feed(calibration, config)
    find = _by_owl if config.allocation is Allocation.OWL else _by_saliency
    each = len(stream) * _passes(layers[0], config)
    progress = counting("allocation", each, each * len(layers))
    shares = []
    for layer in layers:
        home.open(layer.index)
        steps = next(progress)(f"layer {layer.index}")
        found = yield from halving([stream], execution.ranks, partial(find, layer, stream, execution, config, steps))
        shares.append(found / sum(weight.view.numel() for weight in layer.weights))
        for batch in range(len(stream)):
            stream.advance(layer, batch)
            yield next(steps)
        home.close(layer.index)
    ratios = layer_ratios(shares, config.sparsity.ratio)
    weights = [(layer, weight) for layer in layers for weight in layer.weights]
    counts = share_out(
        [weight.view.numel() for _, weight in weights],
        [ratios[layer.index] for layer, _ in weights],
        sum(method.zeros(*weight.view.shape, config.sparsity) for _, weight in weights),
    )
    return {(layer.index, weight.name): count for (layer, weight), count in zip(weights, counts, strict=True)}


def _passes(layer: Layer, config: PruneConfig) -> int:
    """Progress steps that a layer takes for each batch."""
    if config.allocation is Allocation.OWL:
        return 2
    return (METHODS[config.method].statistic is not None) + len(layer.sub_blocks) + 1


def _sums(
    layer: Layer, stream: Stream, execution: Execution, method: Method, progress: Iterator[Progress]
) -> Generator[Event, None, Values]:
    """The method's statistic of every weight, name -> tensor, empty for a method without one."""
    sums = gather(method)
    for batch in range(len(stream) if sums else 0):
        with tapping({weight.name: weight.module for weight in layer.weights}) as taps:
            layer.replay(stream.call(layer.index, batch))
        sums.add(taps)
        yield next(progress)
    values = sums.values if sums else {}
    execution.ranks.sum(list(values.values()))
    return values


def _by_owl(
    layer: Layer, stream: Stream, execution: Execution, config: PruneConfig, progress: Iterator[Progress]
) -> Generator[Event, None, int]:
    """Outliers among Wanda's scores of all weights of the layer (OWL, section 3.2)."""
    sums = yield from _sums(layer, stream, execution, METHODS["wanda"], progress)
    check_sums(layer.index, layer.weights, sums)
    return outliers([wanda(weight.view, sums[weight.name]) for weight in layer.weights])


def _by_saliency(
    layer: Layer, stream: Stream, execution: Execution, config: PruneConfig, progress: Iterator[Progress]
) -> Generator[Event, None, int]:
    """Outliers of the rebuild's saliency in each sub-block, against that sub-block's own mean.

    The error of a sub-block is that of the method's uniform mask on the dense stream, every other sub-block dense: no
    ratio of an earlier layer, which is not known yet, has a part in it.
    """
    method = METHODS[config.method]
    write(layer.weights, execution.home.dense(layer.index, layer.weights))  # whatever an attempt before this one left
    sums = yield from _sums(layer, stream, execution, method, progress)
    masks, updates = initialise_weights(layer.index, layer.weights, method, sums, config.sparsity)
    found = 0
    for block in layer.sub_blocks:
        dense = execution.home.dense(layer.index, block.weights)
        pruned = {name: masked(updates.get(name, value), masks[name]) for name, value in dense.items()}
        total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in dense.items()}
        for batch in range(len(stream)):
            _add_gradients(block, stream.call(layer.index, batch), dense, pruned, total)
            yield next(progress)
        execution.ranks.sum(list(total.values()))
        for name, value in total.items():
            if not bool(value.isfinite().all()):
                raise UserError(
                    f"The saliency of layers.{layer.index} {name} is not finite: its activations overflow in this "
                    "dtype, so run it in float32 or bfloat16."
                )
        sequences = execution.ranks.world * sum(stream.sizes)
        found += outliers([saliency(Metric.WD, dense[name], total[name] / sequences) for name in dense])
    return found


def _add_gradients(block: SubBlock, layer_call: Call, dense: Values, pruned: Values, total: Values) -> None:
    """Add the squared gradients of a batch's errors to `total`, (out, in) fp32; leaves the sub-block dense.

    dense, pruned, total: name -> (out, in).
    """
    call = block.record(layer_call)
    write(block.weights, pruned)
    with torch.no_grad():
        sparse = block.replay(call)
    write(block.weights, dense)
    tape = Tape.record(block, call)
    tape.add_squared_gradients(block, tape.output.detach().float() - sparse.float(), total)
