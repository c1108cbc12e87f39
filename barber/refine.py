"""The second pass over the model: every attention and MLP sub-block gets its final mask, by the refiner of the config.

Refiners share one contract: a Problem in, the sub-block holding its initial weights; a Refined out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from barber import rebuild
from barber.capture import watching
from barber.config import PruneConfig, Refiner, Target
from barber.dsnot import dsnot
from barber.events import Event, Progress, SubBlockRebuilt
from barber.memory import peak_memory, reset_peak_memory
from barber.model import DecoderView, DenseWeights, Layer
from barber.one_swap import add_gram, one_swap
from barber.problem import Masks, Problem, hold_out, output, write
from barber.rebuild import Refined
from barber.reconstruct import EPOCHS, reconstruct
from barber.scores import histogram, magnitude, wanda
from barber.stream import Stream

See = Callable[[str, Tensor], None]


def refine_model(
    view: DecoderView, stream: Stream, dense: DenseWeights, masks: dict[int, Masks], config: PruneConfig
) -> Iterator[Event]:
    """Refine every sub-block in turn, on the stream that the refined ones before it produce.

    stream: in front of the first layer. masks: layer -> (name -> initial mask (out, in)). The model holds its initial
    weights, and ends with the final ones.
    """
    wanted = stream.fork() if config.target is Target.DENSE_STREAM else None
    fit, held = hold_out(len(stream), config)
    budget = steps(len(stream), config)
    total = sum(budget * len(layer.sub_blocks) + (2 if wanted else 1) * len(stream) for layer in view.layers)
    done = 0
    for layer in view.layers:
        targets = {block.name: [] for block in layer.sub_blocks}
        if wanted:
            progress = _progress(done, len(stream), total, f"layer {layer.index} dense")
            targets = yield from _dense_outputs(layer, wanted, dense, progress)
            done += len(stream)
        for block in layer.sub_blocks:
            progress = _progress(done, budget, total, f"layer {layer.index} {block.kind}")
            # Not bound to a name here, so that its activations end with it.
            yield from _refine_sub_block(
                layer.index,
                Problem(
                    where=f"layers.{layer.index}",
                    block=block,
                    config=config,
                    masks={weight.name: masks[layer.index][weight.name] for weight in block.weights},
                    dense={weight.name: dense[layer.index, weight.name] for weight in block.weights},
                    initial={weight.name: weight.view.clone() for weight in block.weights},
                    fit=fit,
                    held=held,
                    targets=targets.pop(block.name),
                ),
                stream,
                progress,
            )
            done += budget
        progress = _progress(done, len(stream), total, f"layer {layer.index} output")
        for sequence in range(len(stream)):
            stream.advance(layer.index, sequence)
            yield next(progress)
        done += len(stream)


def _refine_sub_block(layer: int, problem: Problem, stream: Stream, progress: Iterator[Progress]) -> Iterator[Event]:
    """From the stream in front of the layer to the sub-block's SubBlockRebuilt."""
    started, block, config = time.monotonic(), problem.block, problem.config
    reset_peak_memory(block.weights[0].view.device)
    for sequence in range(len(stream)):
        problem.see(block.record(stream.call(layer, sequence)))
        yield next(progress)
    if config.barber:
        refined = yield from REFINERS[config.refiner](problem, progress)
    else:
        scores = {name: magnitude(weight) for name, weight in problem.dense.items()}
        refined = Refined(problem.masks, problem.initial, scores, 0, 0)
    if len(problem.errors) < len(stream):
        write(block, problem.dense)
        for sequence in range(len(stream)):
            problem.aim(sequence)
            yield next(progress)
    before = problem.initial_error(range(len(stream)))
    values, reconstruction = refined.values, {}
    if config.reconstruct:
        values, reconstruction = yield from reconstruct(problem, refined.masks, values, progress)
    write(block, values)
    after = 0.0
    for sequence in range(len(stream)):
        after += problem.error(sequence) / len(stream)
        yield next(progress)
    yield SubBlockRebuilt(
        layer=layer,
        sub_block=block.name,
        kind=block.kind,
        error_before=before,
        error_after=after,
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


def _dense_outputs(
    layer: Layer, stream: Stream, dense: DenseWeights, progress: Iterator[Progress]
) -> Generator[Event, None, dict[str, list[Tensor]]]:
    """What the dense model's sub-blocks put out, name -> one tensor per sequence; moves its stream on by the layer."""
    sparse = {weight.name: weight.view.clone() for weight in layer.weights}
    outputs = {block.name: [] for block in layer.sub_blocks}
    _set(layer, {weight.name: dense[layer.index, weight.name] for weight in layer.weights})
    for sequence in range(len(stream)):
        for block in layer.sub_blocks:
            outputs[block.name].append(output(block, block.record(stream.call(layer.index, sequence))))
        stream.advance(layer.index, sequence)
        yield next(progress)
    _set(layer, sparse)
    return outputs


def _set(layer: Layer, values: dict[str, Tensor]) -> None:
    for block in layer.sub_blocks:
        write(block, values)


def _by_one_swap(problem: Problem, progress: Iterator[Progress]) -> Generator[Event, None, Refined]:
    """Exact one-swaps in every row, for the inputs that the dense sub-block has."""
    grams: dict[str, Tensor] = {}
    yield from _watch_dense(problem, partial(add_gram, grams), progress)
    m, combined = problem.config.sparsity.m, problem.combined
    masks = {n: one_swap(problem.masks[n], problem.dense[n], combined[n], gram, m) for n, gram in grams.items()}
    return _refined(problem, masks, {name: gram.diagonal() for name, gram in grams.items()})


def _by_dsnot(problem: Problem, progress: Iterator[Progress]) -> Generator[Event, None, Refined]:
    """DSnoT in every row, for the inputs that the dense sub-block has."""
    moments: dict[str, tuple[float, Tensor, Tensor]] = {}

    def see(name: str, x: Tensor) -> None:
        new = (len(x), x.float().sum(0), x.float().square().sum(0))
        moments[name] = tuple(a + b for a, b in zip(moments.get(name, (0, 0, 0)), new, strict=True))

    yield from _watch_dense(problem, see, progress)
    masks = {}
    for name, (count, total, squares) in moments.items():
        mean = total / count
        variance = squares / count - mean.square()
        masks[name] = dsnot(
            problem.masks[name], problem.dense[name], mean, variance, squares, problem.config.sparsity.m
        )
    return _refined(problem, masks, {name: squares for name, (_, _, squares) in moments.items()})


def _watch_dense(problem: Problem, see: See, progress: Iterator[Progress]) -> Iterator[Event]:
    """Run the dense sub-block on every sequence, with `see` at the inputs of its weights; sets missing targets."""
    write(problem.block, problem.dense)
    watch = {weight.name: weight.module for weight in problem.block.weights}
    for sequence, call in enumerate(problem.calls):
        with watching(watch, see):
            dense = output(problem.block, call)
        problem.settle(sequence, dense)
        yield next(progress)


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


def steps(sequences: int, config: PruneConfig) -> int:
    """Progress steps of one sub-block at most: how often one of the sequences goes through it."""
    fit, held = map(len, hold_out(sequences, config))
    own = rebuild.steps(fit, held, config) if config.refiner is Refiner.BARBER else sequences
    return 2 * sequences + own * config.barber + EPOCHS * sequences * config.reconstruct


def _progress(done: int, steps: int, total: int, where: str) -> Iterator[Progress]:
    """Progress events of at most `steps` steps after `done`; what takes longer stays there."""
    last = done + steps
    while True:
        done = min(done + 1, last)
        yield Progress("rebuild", done, total, where)


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
