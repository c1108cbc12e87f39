"""The refinement of sub-blocks: every attention and MLP gets its final mask, by the refiner of the config.

Refiners share one contract: a Problem in; a Refined out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from barber import rebuild
from barber.config import Order, PruneConfig, Refiner, Target
from barber.dsnot import dsnot
from barber.events import Event, LayerInitialised, Progress, SubBlockRebuilt
from barber.execution import Execution
from barber.initialise import METHODS, gather, initialise_weights
from barber.memory import peak_memory, reset_peak_memory
from barber.model import Layer, SubBlock
from barber.one_swap import one_swap
from barber.problem import Masks, Problem, Values, write
from barber.rebuild import Refined
from barber.reconstruct import EPOCHS, reconstruct
from barber.scores import histogram, magnitude, wanda
from barber.statistics import Sums, gram, moments
from barber.stream import Stream, halving

TAPE_BYTES = 2**30  # of dense forward passes that are kept until the masks are known, rather than made again

State = tuple[Masks, Values]  # masks, True = pruned, and the values that are not the dense ones under them, by name


@dataclass(frozen=True)
class Pass:
    """A walk over all sub-blocks, on the stream that the refined ones before it produce.

    initial: layer -> its initial masks and updated weights; None in one pass, where they are made on the way.
    """

    execution: Execution
    config: PruneConfig
    initial: Callable[[int], State] | None
    zeros: dict | None = None


def refine_layer(
    run: Pass, layer: Layer, stream: Stream, wanted: Stream | None, progress: Callable[[str], Iterator[Progress]]
) -> Iterator[Event]:
    """Refine the sub-blocks of an open layer in turn and move the stream on by it.

    The layer's module may hold any weights, and ends with the final ones. wanted: the stream of the dense model, which
    moves on, too, where the sub-blocks are to put out what that one does. progress: place -> events.
    """
    here, streams = f"layer {layer.index}", [stream, wanted] if wanted else [stream]
    dense = run.execution.home.dense(layer)
    if wanted:
        write(layer.weights, dense)
        yield from halving(streams, partial(_dense_outputs, layer, stream, wanted, progress(f"{here} dense")))
        for batch in range(len(wanted)):
            wanted.advance(layer, batch)
    if run.initial:
        masks, updates = run.initial(layer.index)
        layer.put(dense, masks, updates)
    for block in layer.sub_blocks:
        yield from halving(
            streams, partial(_refine, run, layer, block, dense, stream, progress(f"{here} {block.kind}"))
        )
    for batch, step in zip(range(len(stream)), progress(f"{here} output"), strict=False):
        stream.advance(layer, batch, {b: stream.place.take(stream.beside[b][batch]) for b in layer.sub_blocks})
        yield step
    stream.beside.clear()


def _refine(
    run: Pass, layer: Layer, block: SubBlock, dense: Values, stream: Stream, progress: Iterator[Progress]
) -> Iterator[Event]:
    """From the stream in front of the layer to the sub-block's LayerInitialised (in one pass) and SubBlockRebuilt.

    It leaves the sub-block with its final weights and their output beside the stream, and can be begun again.
    """
    started, config, execution = time.monotonic(), run.config, run.execution
    reset_peak_memory(execution.home.device)
    before = layer.sub_blocks[: layer.sub_blocks.index(block)]

    def others(batch: int) -> dict[SubBlock, Tensor]:
        return {other: stream.place.take(stream.beside[other][batch]) for other in before}

    problem = Problem(
        where=f"layers.{layer.index}",
        block=block,
        config=config,
        place=stream.place,
        ranks=execution.ranks,
        dense={weight.name: dense[weight.name] for weight in block.weights},
        fit=stream.fit,
        held=stream.held,
        sizes=stream.sizes,
        others=others,
        targets=list(stream.beside.get((block, Target.DENSE_STREAM), [])),
    )
    for batch in problem.batches:
        problem.see(block.record(stream.call(layer.index, batch), others(batch)))
    if run.initial:
        masks, updates = run.initial(layer.index)
        problem.begin({n: masks[n] for n in problem.dense}, {n: updates[n] for n in problem.dense if n in updates})
    else:
        yield from _initialise(run, layer.index, problem, 0 if stream.halved else TAPE_BYTES, progress)
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
    write(block.weights, problem.dense)
    sums = gather(method)
    for batch in problem.batches if sums else ():
        tape = problem.record(batch)
        sums.add(tape.taps)
        if run.config.refined and batch in problem.teaching and (room := room - tape.nbytes) > 0:
            problem.tapes[batch] = tape
        yield next(progress)
    values = sums.values if sums else {}
    run.execution.ranks.sum(list(values.values()))
    problem.begin(*initialise_weights(index, block.weights, method, values, run.config.sparsity, run.zeros))


def _initialised(index: int, problem: Problem, seconds: float) -> LayerInitialised:
    counts = {name: {"weights": mask.numel(), "zeros": int(mask.sum())} for name, mask in problem.masks.items()}
    return LayerInitialised(index, counts, seconds, masks=problem.masks, weights=problem.updates)


def _rebuild(
    index: int, problem: Problem, started: float, progress: Iterator[Progress]
) -> Generator[Event, None, SubBlockRebuilt]:
    """Refine a sub-block whose initial masks are known."""
    block, config = problem.block, problem.config
    write(block.weights, problem.initial)
    for batch in problem.batches:
        problem.run_sparse(batch)
        yield next(progress)
    if config.barber:
        refined = yield from REFINERS[config.refiner](problem, progress)
    else:
        scores = {name: magnitude(weight) for name, weight in problem.dense.items()}
        refined = Refined(problem.masks, problem.initial, scores, 0, 0)
    if len(problem.errors) < len(problem.batches):
        write(block.weights, problem.dense)
        for batch in problem.batches:
            problem.settle(batch)
            yield next(progress)
    before = problem.initial_error(problem.batches)
    values, reconstruction = refined.values, {}
    if config.reconstruct:
        values, reconstruction = yield from reconstruct(problem, refined.masks, values, progress)
    write(block.weights, values)
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
        modules={n: _describe(refined.scores[n], problem.masks[n], refined.masks[n]) for n in problem.masks},
        rounds=[asdict(one) for one in refined.rounds],
        reconstruction=reconstruction,
        masks=refined.masks,
        weights={n: v for n, v in values.items() if not v.equal(problem.dense[n].masked_fill(refined.masks[n], 0))},
    )


def _dense_outputs(layer: Layer, stream: Stream, wanted: Stream, progress: Iterator[Progress]) -> Iterator[Event]:
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


def _by_one_swap(problem: Problem, progress: Iterator[Progress]) -> Generator[Event, None, Refined]:
    """Exact one-swaps in every row, for the inputs that the dense sub-block has."""
    grams = yield from _watch_dense(problem, Sums(gram), progress)
    m, combined = problem.config.sparsity.m, problem.combined
    masks = {n: one_swap(problem.masks[n], problem.dense[n], combined[n], total, m) for n, total in grams.items()}
    return _refined(problem, masks, {name: total.diagonal() for name, total in grams.items()})


def _by_dsnot(problem: Problem, progress: Iterator[Progress]) -> Generator[Event, None, Refined]:
    """DSnoT in every row, for the inputs that the dense sub-block has."""
    seen = yield from _watch_dense(problem, Sums(moments), progress)
    masks, m = {}, problem.config.sparsity.m
    for name, (count, total, squares) in seen.items():
        mean = total / count
        variance = squares / count - mean.square()
        masks[name] = dsnot(problem.masks[name], problem.dense[name], mean, variance, squares, m)
    return _refined(problem, masks, {name: squares for name, (_, _, squares) in seen.items()})


def _watch_dense(problem: Problem, sums: Sums, progress: Iterator[Progress]) -> Generator[Event, None, Values]:
    """Sums over the inputs that the weights of the dense sub-block have, of all ranks; sets missing targets."""
    write(problem.block.weights, problem.dense)
    for batch in problem.batches:
        tape = problem.record(batch)
        sums.add(tape.taps)
        problem.settle(batch, tape.output.detach())
        yield next(progress)
    problem.ranks.sum(list(sums.values.values()))
    return sums.values


def _refined(problem: Problem, changed: Masks, squares: dict[str, Tensor]) -> Refined:
    """The changed masks, scored by Wanda's score; a weight whose input text never reaches keeps its mask and has none.

    squares: name -> (in,) sums of squared inputs.
    """
    masks = problem.masks | changed
    swaps = sum(int((problem.masks[name] & ~mask).sum()) for name, mask in masks.items())
    silent = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in masks.items()}
    scores = silent | {name: wanda(problem.dense[name], total) for name, total in squares.items()}
    return Refined(masks, problem.values(masks), scores, swaps, swaps)


REFINERS: dict[Refiner, Callable[[Problem, Iterator[Progress]], Generator[Event, None, Refined]]] = {
    Refiner.BARBER: rebuild.barber,
    Refiner.ONE_SWAP: _by_one_swap,
    Refiner.DSNOT: _by_dsnot,
}


def steps(fit: int, held: int, config: PruneConfig) -> int:
    """Progress steps of one sub-block at most, for so many batches (or sequences) that teach and that judge."""
    every = fit + held if config.holds_out else fit
    own = rebuild.steps(fit, held, config) if config.refiner is Refiner.BARBER else every
    first = every if config.order is Order.ONE_PASS else 0
    return first + 2 * every + own * config.barber + EPOCHS * every * config.reconstruct


def _describe(scores: Tensor, initial: Tensor, rebuilt: Tensor) -> dict:
    """What became of one weight matrix, JSON-able."""
    return {
        "weights": rebuilt.numel(),
        "zeros": int(rebuilt.sum()),
        "grown": int((initial & ~rebuilt).sum()),
        "cut": int((~initial & rebuilt).sum()),
        "saliency_before": scores[~initial].sum(dtype=torch.float64).item(),
        "saliency_after": scores[~rebuilt].sum(dtype=torch.float64).item(),
        "histogram": histogram(scores, initial, rebuilt),
    }
