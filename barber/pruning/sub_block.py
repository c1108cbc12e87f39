"""One layer of a run: each of its sub-blocks gets its initial masks, in one pass, and its final ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from barber.config import Order, PruneConfig, Target
from barber.events import Event, LayerInitialised, Progress, SubBlockRebuilt
from barber.kernels.histogram import histogram, kept_sum
from barber.kernels.scores import magnitude
from barber.memory import peak_memory, reset_peak_memory
from barber.models.decoder import Layer, Masks, State, SubBlock, Values, assign_values, masked
from barber.pruning import rebuild
from barber.pruning.activations import ActivationStream, halving
from barber.pruning.context import PruningContext
from barber.pruning.initial_masks import METHODS, gather, initialise_weights
from barber.pruning.problem import Problem
from barber.pruning.rebuild import Refined
from barber.pruning.refiners import REFINERS
from barber.pruning.refit import EPOCHS, reconstruct
from barber.registry import BARBER


@dataclass(frozen=True)
class Pass:
    """A walk over all sub-blocks, on the stream that the refined ones before it produce.

    initial: layer -> its initial masks and updated weights; None in one pass, where they are made on the way.
    """

    context: PruningContext
    config: PruneConfig
    initial: Callable[[int], State] | None
    zeros: dict | None = None


def refine_layer(
    run: Pass,
    layer: Layer,
    stream: ActivationStream,
    wanted: ActivationStream | None,
    progress: Callable[[str], Iterator[Progress]],
) -> Iterator[Event]:
    """Refine the sub-blocks of an open layer in turn and move the stream on by it.

    The layer's module may hold any weights, and ends with the final ones. wanted: the stream of the dense model, which
    moves on, too, where the sub-blocks are to put out what that one does. progress: place -> events.
    """
    here, streams = f"layer {layer.index}", [stream, wanted] if wanted else [stream]
    provider = run.context.provider
    if wanted:
        assign_values(layer.weights, provider.dense(layer.index, layer.weights))
        yield from halving(
            streams, run.context.ranks, partial(_dense_outputs, layer, stream, wanted, progress(f"{here} dense"))
        )
        for batch in range(len(wanted)):
            wanted.advance(layer, batch)
    for block in layer.sub_blocks:
        dense = provider.dense(layer.index, block.weights)
        yield from halving(
            streams,
            run.context.ranks,
            partial(_refine, run, layer, block, dense, stream, progress(f"{here} {block.kind}")),
        )
        provider.forget(layer.index, dense)
    for batch, step in zip(range(len(stream)), progress(f"{here} output"), strict=False):
        stream.advance(layer, batch, {b: stream.place.take(stream.beside[b][batch]) for b in layer.sub_blocks})
        yield step
    stream.beside.clear()


def _refine(
    run: Pass, layer: Layer, block: SubBlock, dense: Values, stream: ActivationStream, progress: Iterator[Progress]
) -> Generator[Event, None, None]:
    """From the stream in front of the layer to the sub-block's LayerInitialised (in one pass) and SubBlockRebuilt.

    It leaves the sub-block with its final weights and their output beside the stream, and can be begun again.
    """
    started, config, context = time.monotonic(), run.config, run.context
    reset_peak_memory(context.provider.device)
    before = layer.sub_blocks[: layer.sub_blocks.index(block)]

    def others(batch: int) -> dict[SubBlock, Tensor]:
        return {other: stream.place.take(stream.beside[other][batch]) for other in before}

    problem = Problem(
        where=f"layers.{layer.index}",
        block=block,
        config=config,
        place=stream.place,
        ranks=context.ranks,
        dense=dense,
        fit=stream.fit,
        held=stream.held,
        sizes=stream.sizes,
        others=others,
        targets=list(stream.beside.get((block, Target.DENSE_STREAM), [])),
    )
    for batch in problem.batches:
        problem.see(block.record(stream.call(layer.index, batch), others(batch)))
    if run.initial:
        problem.begin(*run.initial(layer.index))
    else:
        yield from _initialise(run, layer.index, problem, 0 if stream.halved else context.record_bytes, progress)
    initialised = _initialised(layer.index, problem, time.monotonic() - started)
    rebuilt = (yield from _rebuild(layer.index, problem, started, progress)) if config.refined else None
    stream.beside.pop(block, None)
    for batch in problem.batches:
        stream.keep(block, batch, problem.final.pop(0) if problem.final else problem.output(batch))
    if not run.initial:
        yield initialised
    if rebuilt:
        yield rebuilt


def _initialise(run: Pass, index: int, problem: Problem, room: int, progress: Iterator[Progress]) -> Iterator[Event]:
    """Initial masks of the sub-block, by what its dense weights see; keeps dense passes for the rebuild.

    room: bytes of passes to keep; none where memory ran out before.
    """
    method, block = METHODS[run.config.method], problem.block
    assign_values(block.weights, problem.dense)
    sums = gather(method)
    for batch in problem.batches if sums else ():
        record = problem.record(batch)
        sums.add(record.taps)
        if run.config.refined and batch in problem.teaching and (room := room - record.nbytes) > 0:
            problem.records[batch] = record
        yield next(progress)
    values = sums.values if sums else {}
    run.context.ranks.sum(list(values.values()))
    problem.begin(*initialise_weights(index, block.weights, method, values, run.config.sparsity, run.zeros))


def _initialised(index: int, problem: Problem, seconds: float) -> LayerInitialised:
    masks = problem.masks
    counts = {name: {"weights": mask.numel(), "zeros": int(mask.count_nonzero())} for name, mask in masks.items()}
    return LayerInitialised(index, counts, seconds, masks=masks, weights=problem.updates)


def _rebuild(
    index: int, problem: Problem, started: float, progress: Iterator[Progress]
) -> Generator[Event, None, SubBlockRebuilt]:
    """Refine a sub-block whose initial masks are known."""
    block, config = problem.block, problem.config
    assign_values(block.weights, problem.initial)
    for batch in problem.batches:
        problem.run_sparse(batch)
        yield next(progress)
    if config.barber:
        refined = yield from REFINERS[config.refiner](problem, progress)
    else:
        scores = {name: magnitude(weight) for name, weight in problem.dense.items()}
        refined = Refined(problem.masks, scores, 0, 0, changed=False)
    if len(problem.errors) < len(problem.batches):
        assign_values(block.weights, problem.dense)
        for batch in problem.batches:
            problem.settle(batch)
            yield next(progress)
    before = problem.initial_error(problem.batches)
    modules = {n: _describe(refined.scores[n], problem.masks[n], refined.masks[n]) for n in problem.masks}
    refined.scores.clear()  # as large as the sub-block
    values = problem.values(refined.masks) if refined.changed else problem.initial
    reconstruction = {}
    if config.reconstruct:
        values, reconstruction = yield from reconstruct(problem, refined.masks, values, progress)
    assign_values(block.weights, values)
    changed = _changed(problem, refined.masks, values)
    del values  # as large as the sub-block
    errors = {}
    for batch in problem.batches:
        errors[batch] = problem.finish(batch)
        yield next(progress)
    return SubBlockRebuilt(
        layer=index,
        sub_block=block.name,
        kind=block.kind,
        error_before=before,
        error_after=problem.mean(errors),
        candidates=refined.candidates,
        swaps=refined.swaps,
        seconds=time.monotonic() - started,
        peak_memory=peak_memory(block.weights[0].view.device),
        modules=modules,
        rounds=[asdict(one) for one in refined.rounds],
        reconstruction=reconstruction,
        masks=refined.masks,
        weights=changed,
    )


def _dense_outputs(
    layer: Layer, stream: ActivationStream, wanted: ActivationStream, progress: Iterator[Progress]
) -> Generator[Event, None, None]:
    """Put what the dense model's sub-blocks put out beside the stream; the layer holds its dense weights."""
    for block in layer.sub_blocks:
        stream.beside.pop((block, Target.DENSE_STREAM), None)
    for batch in range(len(wanted)):
        outputs: dict[SubBlock, Tensor] = {}
        for block in layer.sub_blocks:
            call = block.record(wanted.call(layer.index, batch), outputs)
            with torch.no_grad():
                outputs[block] = block.replay(call, outputs)
            stream.keep((block, Target.DENSE_STREAM), batch, outputs[block])
        yield next(progress)


def steps(fit: int, held: int, config: PruneConfig) -> int:
    """Progress steps of one sub-block at most, for so many batches (or sequences) that teach and that judge."""
    every = fit + held if config.uses_validation else fit
    own = rebuild.steps(fit, held, config) if config.refiner == BARBER else every
    first = every if config.order is Order.ONE_PASS else 0
    return first + 2 * every + own * config.barber + EPOCHS * every * config.reconstruct


def _changed(problem: Problem, masks: Masks, values: Values) -> Values:
    """The values that are not the dense ones under the masks; only a re-fit and a method with updates make any."""
    if not (problem.updates or problem.config.reconstruct):
        return {}
    return {n: v for n, v in values.items() if not v.equal(masked(problem.dense[n], masks[n]))}


def _describe(scores: Tensor, initial: Tensor, rebuilt: Tensor) -> dict:
    """What became of one weight matrix, JSON-able."""
    binned = histogram(scores, initial, rebuilt)
    fates = {fate: sum(binned[fate]) + zeros for fate, zeros in binned["zeros"].items()}
    return {
        "weights": rebuilt.numel(),
        "zeros": fates["pruned"] + fates["cut"],
        "grown": fates["grown"],
        "cut": fates["cut"],
        "saliency_before": kept_sum(scores, initial),
        "saliency_after": kept_sum(scores, rebuilt),
        "histogram": binned,
    }
