"""Non-uniform layer ratios: layers with more outliers keep more weights; the count of the whole model stays exact.

The rule is that of OWL (arXiv 2310.05175), applied to Wanda's score or to the saliency of the rebuild.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

from barber.config import Allocation, PruneConfig
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Event
from barber.kernels.masks import zero_count
from barber.kernels.ratios import layer_ratios, outliers, share_out
from barber.kernels.scores import wanda, weight_times_gradient
from barber.models.decoder import Layer, assign_values
from barber.progress import Phase, Steps
from barber.pruning.activations import ActivationStream, halving
from barber.pruning.context import PruningContext
from barber.pruning.dense_pass import dense_pass
from barber.pruning.initial_masks import ZeroPlan, check_statistics, initialise
from barber.pruning.statistics import gather_statistic
from barber.pruning.sub_block_calls import SubBlockCalls, SubBlockWeights
from barber.registry import INITIAL_MASKS


def allocate(
    context: PruningContext, calibration: CalibrationSet, config: PruneConfig
) -> Generator[Event, None, ZeroPlan]:
    """Zeros of every weight, (layer, name) -> int; their sum is that of the method with a uniform ratio.

    The layers run with their dense weights, as published, and are dense at the end. A caller that stops it early
    restores the dense weights.
    """
    method, layers, provider = INITIAL_MASKS[config.method], context.view.layers, context.provider
    stream = context.feed(calibration, config)
    count = _COUNTS[config.allocation]
    phase = Phase("allocation", len(stream) * _passes(layers[0], config), len(layers))
    shares = []
    for layer in layers:
        provider.open(layer.index)
        attempt = partial(count, layer, stream, context, config)
        found = yield from phase.follow(layer.index, "", halving([stream], context.ranks, attempt))
        shares.append(found / sum(weight.view.numel() for weight in layer.weights))
        yield from phase.follow(layer.index, "", stream.advance_all(layer))
        provider.close(layer.index)
    ratios = layer_ratios(shares, config.sparsity.ratio)
    weights = [(layer, weight) for layer in layers for weight in layer.weights]
    counts = share_out(
        [weight.view.numel() for _, weight in weights],
        [ratios[layer.index] for layer, _ in weights],
        sum(
            zero_count(rows, columns, config.sparsity, method.within)
            for rows, columns in (weight.view.shape for _, weight in weights)
        ),
    )
    return {(layer.index, weight.name): count for (layer, weight), count in zip(weights, counts, strict=True)}


def _passes(layer: Layer, config: PruneConfig) -> int:
    """Steps of a layer per batch."""
    if config.allocation is Allocation.OWL:
        return 2
    return INITIAL_MASKS[config.method].calibrated + len(layer.sub_blocks) + 1


def _by_owl(layer: Layer, stream: ActivationStream, context: PruningContext, config: PruneConfig) -> Steps[int]:
    """Outliers among Wanda's scores of all weights of the layer (OWL, section 3.2)."""
    sums = yield from gather_statistic(
        "squares", layer.weights, range(len(stream)), _replaying(layer, stream), context.ranks
    )
    reached = [weight for weight in layer.weights if weight.name in sums.values or not weight.is_expert]
    check_statistics(layer.index, reached, sums.values)
    return outliers([wanda(weight.view, sums.values[weight.name]) for weight in reached])


def _by_saliency(layer: Layer, stream: ActivationStream, context: PruningContext, config: PruneConfig) -> Steps[int]:
    """Outliers of the rebuild's saliency in each sub-block, against that sub-block's own mean.

    The error is that of the sub-block under the method's uniform mask, on the dense stream, with all other sub-blocks
    dense: it does not depend on the ratios of earlier layers, which are not known yet.
    """
    assign_values(layer.weights, context.provider.dense(layer.index, layer.weights))  # of an earlier attempt
    batches = range(len(stream))
    made = yield from initialise(layer.index, layer.weights, config, batches, _replaying(layer, stream), context.ranks)
    found = 0
    for block in layer.sub_blocks:
        dense = context.provider.dense(layer.index, block.weights)
        calls = SubBlockCalls.record(layer, block, stream, (), context.ranks)
        pruned = SubBlockWeights.of(dense, made.state, retain=False).initial
        seen = yield from dense_pass(
            calls, dense, pruned, batches=batches, targets={}, gather_on=batches, gradients=True
        )
        scores = {name: weight_times_gradient(dense[name], square) for name, square in seen.squared_gradients.items()}
        for name, score in scores.items():
            if not bool(score.isfinite().all()):
                raise UserError(
                    f"The saliency of layers.{layer.index} {name} is not finite: its activations overflow in this "
                    "dtype, so run the model in float32 or bfloat16."
                )
        found += outliers(list(scores.values()))
    return found


def _replaying(layer: Layer, stream: ActivationStream) -> Callable[[int], object]:
    """Runs the layer on a batch of the stream."""
    return lambda batch: layer.replay(stream.call(layer.index, batch))


_COUNTS = {Allocation.OWL: _by_owl, Allocation.SALIENCY: _by_saliency}
