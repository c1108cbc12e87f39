"""Layer ratios that differ: layers with more outliers keep more, and the count of the whole model stays exact.

The rule is that of OWL (arXiv 2310.05175); what counts as an outlier is Wanda's score or the saliency of the rebuild.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial

import torch

from barber.config import Allocation, PruneConfig
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Event, Progress
from barber.kernels.ratios import layer_ratios, outliers, share_out
from barber.kernels.scores import saliency, wanda
from barber.models.decoder import Layer, SubBlock, Values, assign_values, masked
from barber.models.replay import Call, tapping
from barber.progress import counting
from barber.pruning.activations import ActivationStream, halving
from barber.pruning.context import PruningContext
from barber.pruning.gradients import ForwardRecord
from barber.pruning.initial_masks import METHODS, Method, check_sums, gather, initialise_weights

COSTS = {Allocation.OWL: 2, Allocation.SALIENCY: 6}  # forward passes of one sequence through a layer

Plan = dict[tuple[int, str], int]


def allocate(context: PruningContext, calibration: CalibrationSet, config: PruneConfig) -> Generator[Event, None, Plan]:
    """The zeros of every weight, (layer, name) -> int, as many in all as the uniform run of the method has.

    The layers run with their dense weights, as published, and are dense again when this is done; who stops it on the
    way restores them.
    """
    method, layers, provider = METHODS[config.method], context.view.layers, context.provider
    stream = context.feed(calibration, config)
    find = _by_owl if config.allocation is Allocation.OWL else _by_saliency
    each = len(stream) * _passes(layers[0], config)
    progress = counting("allocation", each, each * len(layers))
    shares = []
    for layer in layers:
        provider.open(layer.index)
        steps = next(progress)(f"layer {layer.index}")
        found = yield from halving([stream], context.ranks, partial(find, layer, stream, context, config, steps))
        shares.append(found / sum(weight.view.numel() for weight in layer.weights))
        for batch in range(len(stream)):
            stream.advance(layer, batch)
            yield next(steps)
        provider.close(layer.index)
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
    layer: Layer, stream: ActivationStream, context: PruningContext, method: Method, progress: Iterator[Progress]
) -> Generator[Event, None, Values]:
    """The method's statistic of every weight, name -> tensor, empty for a method without one."""
    sums = gather(method)
    for batch in range(len(stream) if sums else 0):
        with tapping({weight.name: weight.module for weight in layer.weights}) as taps:
            layer.replay(stream.call(layer.index, batch))
        sums.add(taps)
        yield next(progress)
    values = sums.values if sums else {}
    context.ranks.sum(list(values.values()))
    return values


def _by_owl(
    layer: Layer, stream: ActivationStream, context: PruningContext, config: PruneConfig, progress: Iterator[Progress]
) -> Generator[Event, None, int]:
    """Outliers among Wanda's scores of all weights of the layer (OWL, section 3.2)."""
    sums = yield from _sums(layer, stream, context, METHODS["wanda"], progress)
    check_sums(layer.index, layer.weights, sums)
    return outliers([wanda(weight.view, sums[weight.name]) for weight in layer.weights])


def _by_saliency(
    layer: Layer, stream: ActivationStream, context: PruningContext, config: PruneConfig, progress: Iterator[Progress]
) -> Generator[Event, None, int]:
    """Outliers of the rebuild's saliency in each sub-block, against that sub-block's own mean.

    The error of a sub-block is that of the method's uniform mask on the dense stream, every other sub-block dense: no
    ratio of an earlier layer, which is not known yet, has a part in it.
    """
    method = METHODS[config.method]
    assign_values(
        layer.weights, context.provider.dense(layer.index, layer.weights)
    )  # whatever an attempt before this one left
    sums = yield from _sums(layer, stream, context, method, progress)
    masks, updates = initialise_weights(layer.index, layer.weights, method, sums, config.sparsity)
    found = 0
    for block in layer.sub_blocks:
        dense = context.provider.dense(layer.index, block.weights)
        pruned = {name: masked(updates.get(name, value), masks[name]) for name, value in dense.items()}
        total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in dense.items()}
        for batch in range(len(stream)):
            _add_gradients(block, stream.call(layer.index, batch), dense, pruned, total)
            yield next(progress)
        context.ranks.sum(list(total.values()))
        for name, value in total.items():
            if not bool(value.isfinite().all()):
                raise UserError(
                    f"The saliency of layers.{layer.index} {name} is not finite: its activations overflow in this "
                    "dtype, so run it in float32 or bfloat16."
                )
        sequences = context.ranks.world * sum(stream.sizes)
        found += outliers([saliency("WD", dense[name], total[name] / sequences) for name in dense])
    return found


def _add_gradients(block: SubBlock, layer_call: Call, dense: Values, pruned: Values, total: Values) -> None:
    """Add the squared gradients of a batch's errors to `total`, (out, in) fp32; leaves the sub-block dense.

    dense, pruned, total: name -> (out, in).
    """
    call = block.record(layer_call)
    assign_values(block.weights, pruned)
    with torch.no_grad():
        sparse = block.replay(call)
    assign_values(block.weights, dense)
    record = ForwardRecord.record(block, call)
    record.add_squared_gradients(block, record.output.detach().float() - sparse.float(), total)
