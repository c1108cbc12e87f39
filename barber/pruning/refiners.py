"""The refiners of a sub-block's masks, under one contract: a Problem and progress events in, a Refined out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from barber.events import Event, Progress
from barber.kernels.dsnot import dsnot
from barber.kernels.one_swap import one_swap
from barber.kernels.scores import wanda
from barber.kernels.statistics import gram, moments
from barber.models.decoder import Masks, Values, assign_values
from barber.pruning import rebuild
from barber.pruning.problem import Problem
from barber.pruning.rebuild import Refined
from barber.pruning.statistics import Sums
from barber.registry import BARBER


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
    assign_values(problem.block.weights, problem.dense)
    for batch in problem.batches:
        record = problem.record(batch)
        sums.add(record.taps)
        problem.settle(batch, record.output.detach())
        yield next(progress)
    problem.ranks.sum(list(sums.values.values()))
    return sums.values


def _refined(problem: Problem, changed: Masks, squares: dict[str, Tensor]) -> Refined:
    """The changed masks, scored by Wanda's score; a weight whose input text never reaches keeps its mask and has none.

    squares: name -> (in,) sums of squared inputs.
    """
    masks = problem.masks | changed
    swaps = sum(int((problem.masks[name] & ~mask).count_nonzero()) for name, mask in masks.items())
    silent = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in masks.items()}
    scores = silent | {name: wanda(problem.dense[name], total) for name, total in squares.items()}
    return Refined(masks, scores, swaps, swaps)


REFINERS: dict[str, Callable[[Problem, Iterator[Progress]], Generator[Event, None, Refined]]] = {
    BARBER: rebuild.barber,
    "one-swap": _by_one_swap,
    "dsnot": _by_dsnot,
}
