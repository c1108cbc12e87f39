"""The block-aware rebuild of one sub-block's masks (LLM-Barber, arXiv 2408.10631).

With a fixed threshold, it is as published. With threshold "auto", each round measures swaps of several fractions and
granularities and exact one-swaps, and chooses the candidate with the lowest error on the validation sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from barber.config import Granularity, PruneConfig
from barber.errors import UserError
from barber.events import Candidate, GainCurve, Round, SwapKind
from barber.kernels.one_swap import one_swap
from barber.kernels.swap import Swapped, swap_matrices
from barber.models.decoder import Masks, Values
from barber.progress import TICK, Steps
from barber.pruning.dense_pass import DensePass, dense_pass, error_under
from barber.pruning.refined import Refined, grown_count
from barber.pruning.sub_block_calls import SubBlockCalls, SubBlockWeights
from barber.registry import METRICS

FRACTIONS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)
POINTS = 1000  # of the curve of gains, at most
GRANULARITIES = (Granularity.BLOCK, Granularity.LAYER, Granularity.OUTPUT)


@dataclass(frozen=True)
class _Proposal:
    """Masks of a possible candidate; fields as in Candidate, number of gaining pairs, and the curve of their gains."""

    swap: SwapKind
    granularity: str
    fraction: float
    masks: Masks
    candidates: int
    swaps: int
    curve: GainCurve | None = None

    def measured(self, error: float) -> Candidate:
        return Candidate(self.swap, self.granularity, self.fraction, self.swaps, error)


def measures(config: PruneConfig) -> bool:
    """Whether swaps are measured on validation sequences; not for a single round with a fixed threshold."""
    return config.auto or config.most_rounds > 1


def train_batches(calls: SubBlockCalls, config: PruneConfig) -> Sequence[int]:
    """The batches that saliency is measured on: all, or with "auto" the train batches."""
    return calls.stream.train if config.auto else calls.batches


def barber(calls: SubBlockCalls, weights: SubBlockWeights, seen: DensePass, config: PruneConfig) -> Steps[Refined]:
    """Swap pruned and kept weights of one sub-block by their saliency, in at most `most_rounds` rounds.

    A single round with a fixed threshold is the published method: its swap is kept even if it raises the error.
    Otherwise a swap must lower the error on the validation sequences; a round without such a swap is the last.

    seen: dense pass with the initial weights on all batches, with gradients, and for "auto" grams, on `train_batches`.
    """
    validation = calls.stream.validation if config.auto else calls.batches
    error = calls.finite_mean({batch: seen.errors[batch] for batch in validation}) if measures(config) else math.nan
    masks, rounds, candidates, swaps = weights.masks, [], 0, 0
    scores: Values = {}
    curve: GainCurve | None = None
    for number in range(config.most_rounds):
        if number:
            train = train_batches(calls, config)
            now, targets = weights.under(masks), seen.targets
            latest = yield from dense_pass(
                calls, weights.dense, now, batches=train, targets=targets, gather_on=train, gradients=True
            )
            squares = latest.squared_gradients
        else:
            squares = seen.squared_gradients
        salient = _saliency(calls, weights, squares, config)
        scores = scores or {n: salient.get(n, torch.zeros_like(m, dtype=torch.float32)) for n, m in masks.items()}
        proposals = _swaps(masks, salient, config, first=not number)
        if seen.statistics:
            proposals = chain(proposals, (yield from _one_swaps(weights, masks, seen.statistics, config)))
        if not measures(config):
            best = next(proposals)
            return Refined(best.masks, scores, best.candidates, best.swaps, curve=best.curve)
        best, lowest, tried = None, error, [Candidate(SwapKind.NONE, "", 0.0, 0, error)]
        for proposal in proposals:
            candidates, curve = candidates or proposal.candidates, curve or proposal.curve
            reached = yield from error_under(calls, weights.under(proposal.masks), seen.targets, validation)
            tried.append(proposal.measured(reached))
            if reached < lowest:
                best, lowest = proposal, reached
        chosen = best.measured(lowest) if best else tried[0]
        rounds.append(Round(**vars(chosen), error_before=error, curve=tried))
        if best is None:
            break
        masks, swaps, error = best.masks, swaps + best.swaps, lowest
    return Refined(masks, scores, candidates, swaps, rounds, curve, changed=masks is not weights.masks)


def _saliency(calls: SubBlockCalls, weights: SubBlockWeights, squares: Values, config: PruneConfig) -> Values:
    """Saliency of every weight, computed in place in `squares` to save memory.

    Raises UserError that names the weight if one is not finite.
    """
    combined, metric = weights.combined, METRICS[config.metric].call
    for name, square in squares.items():
        square.copy_(metric(combined[name], square))
        if not bool(square.isfinite().all()):
            raise UserError(
                f"The saliency of {calls.where} {name} is not finite: its activations overflow in this dtype, so "
                "run the model in float32 or bfloat16."
            )
    return squares


def _swaps(masks: Masks, scores: Values, config: PruneConfig, first: bool) -> Iterator[_Proposal]:
    """Swaps by saliency that a round measures; "auto" skips fractions with the same number of swaps as the last.

    first: whether it is the first round, where the swaps within the first granularity have the curve of gains. Weights
    without a score, which are experts that no token reached, keep their masks.
    """
    scored = [masks[name] for name in scores]
    fractions = FRACTIONS if config.auto else (float(config.threshold),)
    for granularity in GRANULARITIES if config.auto else (config.granularity,):
        last, points = 0, POINTS if first else 0
        first = False
        results = swap_matrices(scored, list(scores.values()), fractions, granularity, config.sparsity.m, points)
        for fraction, result in zip(fractions, results, strict=True):
            if config.auto and result.swaps == last:
                continue
            last = result.swaps
            new = masks | dict(zip(scores, result.masks, strict=True))
            kind, name, curve = SwapKind.BY_SALIENCY, str(granularity), _curve(result)
            yield _Proposal(kind, name, fraction, new, result.candidates, result.swaps, curve)


def _curve(result: Swapped) -> GainCurve | None:
    """The curve of gains as an event has it, with 4 digits."""
    if result.curve is None:
        return None
    ranks, gains = result.curve
    return GainCurve(ranks.tolist(), [float(f"{gain:.4g}") for gain in gains.tolist()])


def _one_swaps(weights: SubBlockWeights, masks: Masks, grams: Values, config: PruneConfig) -> Steps[list[_Proposal]]:
    """Exact one-swaps in every row, if any lowers the error of a weight's output."""
    new, combined = dict(masks), weights.combined
    for name, gram in grams.items():
        new[name] = one_swap(masks[name], weights.dense[name], combined[name], gram, config.sparsity.m)
        yield TICK
    swaps = grown_count(masks, new)
    return [_Proposal(SwapKind.ONE_SWAP, "", 0.0, new, 0, swaps)] if swaps else []


def barber_steps(train: int, validation: int, config: PruneConfig) -> int:
    """Steps of `barber` at most, for numbers of train and validation batches, without the first dense pass."""
    if not measures(config):
        return 0
    proposals = len(FRACTIONS) * len(GRANULARITIES) + 1 if config.auto else 1
    return (config.most_rounds - 1) * train + config.most_rounds * proposals * validation
