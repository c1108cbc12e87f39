"""One sub-block of a run: initial masks (in one pass only), rebuild and refit."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from barber.config import Order, PruneConfig, Target
from barber.events import Histogram, LayerInitialised, MaskCounts, ModuleChange, SubBlockRebuilt
from barber.kernels.histogram import histogram, kept_sum
from barber.memory import peak_memory, reset_peak_memory
from barber.models.decoder import Layer, State, SubBlock, assign_values
from barber.progress import TICK, Steps
from barber.pruning.activations import ActivationStream
from barber.pruning.context import PruningContext
from barber.pruning.dense_pass import dense_pass
from barber.pruning.gradients import ForwardRecord
from barber.pruning.initial_masks import InitialMasks, ZeroPlan, initialise
from barber.pruning.rebuild import barber_steps, train_batches
from barber.pruning.refiners import needs_of, refine
from barber.pruning.refit import EPOCHS, refit
from barber.pruning.sub_block_calls import SubBlockCalls, SubBlockWeights, squared_error
from barber.registry import BARBER, INITIAL_MASKS


@dataclass(frozen=True)
class SubBlockResult:
    """Events of a sub-block, each None if the step was not part of the run.

    Attributes:
        initialised: its initial masks, with the masks and values as payload.
        rebuilt: its final masks, with the masks and values as payload.
    """

    initialised: LayerInitialised | None
    rebuilt: SubBlockRebuilt | None


def refine_sub_block(
    context: PruningContext,
    config: PruneConfig,
    layer: Layer,
    block: SubBlock,
    stream: ActivationStream,
    initial: State | None,
    plan: ZeroPlan | None,
) -> Steps[SubBlockResult]:
    """Make a sub-block's initial masks if `initial` is None, and its final masks. The layer must be open.

    stream: at the layer's input, with the outputs of the sub-blocks before this one; this one's is added. The sub-block
    ends with its final weights. The work can be restarted from the stream.
    """
    started = time.monotonic()
    reset_peak_memory(context.provider.device)
    dense = context.provider.dense(layer.index, block.weights)
    before = layer.sub_blocks[: layer.sub_blocks.index(block)]
    calls = SubBlockCalls.record(layer, block, stream, before, context.ranks)
    records: dict[int, ForwardRecord] = {}
    initialised = None
    if initial is None:
        assign_values(block.weights, dense)
        record_bytes = context.record_bytes if config.refined and not stream.halved else 0
        made = yield from _initialise(calls, layer, config, plan, record_bytes, records)
        initial, initialised = made.state, initialised_event(layer.index, made, time.monotonic() - started)
    weights = SubBlockWeights.of(dense, initial, config.retain_reconstruction)
    stream.outputs.pop(block, None)
    if not config.refined:
        assign_values(block.weights, weights.initial)
        for batch in calls.batches:
            stream.save_output(block, batch, calls.output(batch))
            yield TICK
        return SubBlockResult(initialised, None)
    targets = dict(enumerate(stream.outputs.get((block, Target.DENSE_STREAM), [])))
    seen = yield from dense_pass(
        calls,
        dense,
        weights.initial,
        batches=calls.batches,
        targets=targets,
        records=records,
        **needs_of(calls, config),
    )
    error_before = calls.finite_mean(seen.errors)
    refined = yield from refine(calls, weights, seen, config)
    modules = {n: _change(refined.scores[n], weights.masks[n], refined.masks[n]) for n in dense}
    refined.scores.clear()  # as large as the sub-block
    values = weights.under(refined.masks) if refined.changed else weights.initial
    reached = None
    if config.reconstruct:
        values, reached = yield from refit(calls, refined.masks, values, seen.targets)
    assign_values(block.weights, values)
    has_new_values = weights.updates or config.reconstruct
    changed = weights.changed(refined.masks, values) if has_new_values else {}
    del values  # as large as the sub-block
    errors = {}
    for batch in calls.batches:
        output = calls.output(batch)
        errors[batch] = squared_error(stream.store.load(seen.targets[batch]), output)
        stream.save_output(block, batch, output)
        yield TICK
    rebuilt = SubBlockRebuilt(
        layer=layer.index,
        sub_block=block.name,
        kind=block.kind,
        error_before=error_before,
        error_after=calls.mean(errors),
        candidates=refined.candidates,
        swaps=refined.swaps,
        seconds=time.monotonic() - started,
        peak_memory=peak_memory(context.provider.device),
        modules=modules,
        rounds=refined.rounds,
        refit=reached,
        curve=refined.curve,
        masks=refined.masks,
        weights=changed,
    )
    return SubBlockResult(initialised, rebuilt)


def _initialise(
    calls: SubBlockCalls,
    layer: Layer,
    config: PruneConfig,
    plan: ZeroPlan | None,
    record_bytes: int,
    records: dict[int, ForwardRecord],
) -> Steps[InitialMasks]:
    """Initial masks from inputs of the sub-block's dense weights.

    record_bytes: memory for forward records that are kept for the rebuild, in `records`.
    """
    train = train_batches(calls, config) if config.barber and config.refiner == BARBER else ()

    def run(batch: int) -> None:
        nonlocal record_bytes
        if record_bytes <= 0 or batch not in train:
            calls.output(batch)
            return
        record = calls.forward(batch)
        record_bytes -= record.nbytes
        if record_bytes > 0:
            records[batch] = record

    return (yield from initialise(layer.index, calls.block.weights, config, calls.batches, run, calls.ranks, plan))


def dense_outputs(layer: Layer, stream: ActivationStream, dense_stream: ActivationStream) -> Steps[None]:
    """Store the outputs of the dense model's sub-blocks in `stream`; the layer must have its dense weights."""
    for block in layer.sub_blocks:
        stream.outputs.pop((block, Target.DENSE_STREAM), None)
    for batch in range(len(dense_stream)):
        outputs: dict[SubBlock, Tensor] = {}
        for block in layer.sub_blocks:
            call = block.record(dense_stream.call(layer.index, batch), outputs)
            with torch.no_grad():
                outputs[block] = block.replay(call, outputs)
            stream.save_output((block, Target.DENSE_STREAM), batch, outputs[block])
        yield TICK


def sub_block_steps(train: int, validation: int, config: PruneConfig) -> int:
    """Steps of one sub-block at most, for numbers of train and validation batches (or sequences)."""
    every = train + validation if config.uses_validation else train
    steps = every  # the final outputs
    if config.order is Order.ONE_PASS and INITIAL_MASKS[config.method].calibrated:
        steps += every
    if config.refined:
        steps += every  # the dense pass
    if config.barber and config.refiner == BARBER:
        steps += barber_steps(train, validation, config)
    if config.reconstruct:
        steps += validation + EPOCHS * (train + validation)
    return steps


def initialised_event(layer: int, made: InitialMasks, seconds: float) -> LayerInitialised:
    """The event for initial masks of weights of a layer."""
    counts = {name: MaskCounts(mask.numel(), int(mask.count_nonzero())) for name, mask in made.masks.items()}
    return LayerInitialised(layer, counts, seconds, list(made.starved), masks=made.masks, weights=made.updates)


def _change(scores: Tensor, initial: Tensor, rebuilt: Tensor) -> ModuleChange:
    """The change of one weight matrix by the rebuild; all tensors (out, in)."""
    binned = Histogram.from_dict(histogram(scores, initial, rebuilt))
    total = {fate: sum(binned.of(fate)) + zeros for fate, zeros in binned.zeros.items()}
    return ModuleChange(
        weights=rebuilt.numel(),
        zeros=total["pruned"] + total["cut"],
        grown=total["grown"],
        cut=total["cut"],
        saliency_before=kept_sum(scores, initial),
        saliency_after=kept_sum(scores, rebuilt),
        histogram=binned,
    )
