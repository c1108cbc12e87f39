"""The block-aware rebuild of one sub-block's masks (LLM-Barber, arXiv 2408.10631).

With a fixed threshold it is the published one. With threshold "auto", every round tries swaps of several sizes in
several granularities, and exact one-swaps, and takes what lowers the error most on sequences that are held out.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain

import torch
from torch import Tensor

from barber.config import Granularity, PruneConfig, Target
from barber.errors import UserError
from barber.events import Event, Progress
from barber.kernels.one_swap import one_swap
from barber.kernels.scores import saliency
from barber.kernels.statistics import gram
from barber.kernels.swap import swap_matrices
from barber.models.decoder import Masks, Values, assign_values
from barber.pruning.problem import Problem
from barber.pruning.statistics import Sums

FRACTIONS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)

GRANULARITIES = (Granularity.BLOCK, Granularity.LAYER, Granularity.OUTPUT)

SWAP, ONE_SWAP, NONE = "swap", "one-swap", ""


@dataclass(frozen=True)
class Candidate:
    """A change of the mask that was judged.

    move: "swap" of a fraction of the gaining pairs in a granularity, "one-swap", or "" for no change. swaps: pairs that
    change places. error: of the sub-block with it, over the sequences that judge.
    """

    move: str
    granularity: str
    fraction: float
    swaps: int
    error: float


@dataclass(frozen=True)
class Round(Candidate):
    """The change that one round chose, the error before it, and all the candidates that were judged."""

    error_before: float
    curve: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Refined:
    """What a refiner gives: masks (True = pruned) and scores, name -> (out, in); candidates and swaps; its rounds.

    scores: what each weight matters to this refiner, as first measured. changed: whether kept weights take their values
    anew, instead of keeping what the initialiser gave them.
    """

    masks: Masks
    scores: Values
    candidates: int
    swaps: int
    rounds: list[Round] = field(default_factory=list)
    changed: bool = True


@dataclass(frozen=True)
class _Proposal:
    """Masks that a round could end with; how they came to be is as in Candidate. candidates: pairs that gain."""

    move: str
    granularity: str
    fraction: float
    masks: Masks
    candidates: int
    swaps: int


def barber(problem: Problem, progress: Iterator[Progress]) -> Generator[Event, None, Refined]:
    """Swap pruned and kept weights of one sub-block by their saliency, for as many rounds as the config allows.

    A single round with a fixed threshold is the published method: its swap stands whatever it does to the error.
    Otherwise a swap must lower the error on the judging sequences; the first round that finds none is the last.
    """
    config, block = problem.config, problem.block
    judged = config.auto or config.most_rounds > 1
    masks, changed = problem.masks, False
    sparse = list(problem.sparse)
    grams = Sums(gram) if config.auto else None
    scores, rounds, candidates, swaps = {}, [], 0, 0
    for number in range(config.most_rounds):
        squares = yield from _gradients(problem, sparse, grams if number == 0 else None, progress)
        if judged and number == 0:
            for batch in problem.judging:
                problem.settle(batch)
                yield next(progress)
            error = problem.initial_error(problem.judging)
        salient = _saliency(problem, squares)
        scores = scores or salient
        best, lowest, curve = None, math.inf, [Candidate(NONE, "", 0.0, 0, error)] if judged else []
        exact = yield from _one_swaps(problem, masks, grams.values if grams else {}, progress)
        for proposal in chain(_swaps(problem, masks, salient), [exact] if exact else []):
            candidates = candidates or proposal.candidates
            if judged:
                reached = yield from _judge(problem, proposal.masks, progress)
                curve.append(Candidate(proposal.move, proposal.granularity, proposal.fraction, proposal.swaps, reached))
            if not judged or reached < min(error, lowest):
                best, lowest = proposal, reached if judged else lowest
        if judged:
            chosen = min(curve, key=lambda candidate: candidate.error) if best else curve[0]
            rounds.append(Round(**asdict(chosen), error_before=error, curve=[asdict(tried) for tried in curve]))
        if best is None:
            break
        masks, changed, swaps = best.masks, True, swaps + best.swaps
        if number + 1 < config.most_rounds:
            error = lowest
            assign_values(block.weights, problem.values(masks))
            for batch in problem.teaching:
                sparse[batch] = problem.place.keep(problem.output(batch))
                yield next(progress)
    return Refined(masks, scores, candidates, swaps, rounds, changed)


def _gradients(
    problem: Problem, sparse: list[Tensor | None], grams: Sums | None, progress: Iterator[Progress]
) -> Generator[Event, None, Values]:
    """Mean squared gradients over the teaching sequences, name -> (out, in) fp32; leaves the sub-block dense.

    sparse: the outputs that the errors are of, by batch, let go of on the way. grams: takes the inputs of each weight,
    if given.
    """
    block = problem.block
    assign_values(block.weights, problem.dense)
    # One row, so that a swap over the whole sub-block need not copy it.
    shapes = {name: mask.shape for name, mask in problem.masks.items()}
    row = torch.zeros(sum(shape.numel() for shape in shapes.values()), device=block.weights[0].view.device)
    parts = row.split([shape.numel() for shape in shapes.values()])
    mean = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    for batch in problem.teaching:
        record = problem.record(batch)
        dense = record.output.detach()
        problem.settle(batch, dense)
        wanted = problem.target(batch) if problem.config.target is Target.DENSE_STREAM else dense
        difference = wanted.float() - problem.place.take(sparse[batch]).float()
        sparse[batch] = None
        record.add_squared_gradients(block, difference, mean)
        if grams:
            grams.add(record.taps)
        del record
        yield next(progress)
    problem.ranks.sum([*mean.values(), *(grams.values.values() if grams else ())])
    sequences = problem.ranks.world * sum(problem.sizes[batch] for batch in problem.teaching)
    return {name: square.div_(sequences) for name, square in mean.items()}


def _saliency(problem: Problem, squared_gradient: Values) -> Values:
    """Saliency of every weight, written over what it is made of. UserError names the weight if one is not finite."""
    combined = problem.combined
    scores = squared_gradient  # in the same memory: it is as large as the sub-block
    for name, square in squared_gradient.items():
        square.copy_(saliency(problem.config.metric, combined[name], square))
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise UserError(
                f"The saliency of {problem.where} {name} is not finite: its activations overflow in this dtype, so "
                "run it in float32 or bfloat16."
            )
    return scores


def _swaps(problem: Problem, masks: Masks, scores: Values) -> Iterator[_Proposal]:
    """Swaps by saliency that a round may choose from; "auto" leaves out sizes that swap as many pairs as the last."""
    config, m = problem.config, problem.config.sparsity.m
    fractions = FRACTIONS if config.auto else (config.threshold,)
    for granularity in GRANULARITIES if config.auto else (config.granularity,):
        last = 0
        swapped = swap_matrices(list(masks.values()), list(scores.values()), fractions, granularity, m)
        for fraction, result in zip(fractions, swapped, strict=True):
            if config.auto and result.swaps == last:
                continue
            last = result.swaps
            new = dict(zip(masks, result.masks, strict=True))
            yield _Proposal(SWAP, str(granularity), fraction, new, result.candidates, result.swaps)


def _one_swaps(
    problem: Problem, masks: Masks, grams: Values, progress: Iterator[Progress]
) -> Generator[Event, None, _Proposal | None]:
    """Exact one-swaps in every row, if any lower the error of the weight's own output."""
    new, combined = dict(masks), problem.combined
    for name, gram_of in grams.items():
        new[name] = one_swap(masks[name], problem.dense[name], combined[name], gram_of, problem.config.sparsity.m)
        yield next(progress)
    moved = sum(int((masks[name] & ~mask).count_nonzero()) for name, mask in new.items())
    return _Proposal(ONE_SWAP, "", 0.0, new, 0, moved) if moved else None


def _judge(problem: Problem, masks: Masks, progress: Iterator[Progress]) -> Generator[Event, None, float]:
    """Mean error over the judging sequences with the weights under these masks."""
    assign_values(problem.block.weights, problem.values(masks))
    errors = {}
    for batch in problem.judging:
        errors[batch] = problem.error(batch)
        yield next(progress)
    return problem.mean(errors)


def steps(fit: int, held: int, config: PruneConfig) -> int:
    """Progress steps of `barber` at most, for so many teaching and judging batches."""
    proposals = len(FRACTIONS) * len(GRANULARITIES) + 1 if config.auto else 1
    if not config.auto and config.most_rounds == 1:
        return fit
    return held + config.most_rounds * (2 * fit + proposals * held)
