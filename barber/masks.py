"""Initial masks and the swap rule: pure tensor functions with exact counts.

Masks are boolean, True = pruned. Granularity is a reshape: every function works on (selections, groups, n), where
pruned and kept weights pair up inside a group of n, and a share of the pairs of each selection changes places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from barber.config import Granularity, Sparsity
from barber.errors import UserError


def prune_smallest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest scores in each row of (groups, n); ties go to the earlier position."""
    order = scores.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def initial_mask(scores: Tensor, sparsity: Sparsity, granularity: Granularity) -> Tensor:
    """Mask (out, in) with exactly `sparsity.count` zeros per group: m inputs for n:m, else a row or the matrix."""
    width = sparsity.m or (scores.shape[1] if granularity is Granularity.OUTPUT else scores.numel())
    return prune_smallest(scores.reshape(-1, width), sparsity.count(width)).view(scores.shape)


def to_groups(matrices: Sequence[Tensor], granularity: Granularity, m: int) -> list[Tensor]:
    """Matrices (out, in) of one sub-block as tensors (selections, groups, n), ready for `swap`.

    Without m a group is a whole selection: a row, a column, a matrix, or the sub-block. With m a group is m
    consecutive inputs of one row, and the granularity says which groups share one selection.
    """
    split = [matrix.unflatten(1, (-1, m)) if m else matrix for matrix in matrices]
    if granularity is Granularity.INPUT:
        split = [matrix.transpose(0, 1) for matrix in split]
    match granularity:
        case Granularity.BLOCK:
            joined = torch.cat([matrix.reshape(-1, m) if m else matrix.flatten() for matrix in split])
            return [joined.unsqueeze(0) if m else joined.view(1, 1, -1)]
        case Granularity.LAYER:
            return [matrix.reshape(1, -1, m or matrix.numel()) for matrix in split]
        case _:
            return [matrix if m else matrix.unsqueeze(1) for matrix in split]


def from_groups(
    groups: Sequence[Tensor], shapes: Sequence[torch.Size], granularity: Granularity, m: int
) -> list[Tensor]:
    """The inverse of `to_groups`: matrices of the given (out, in) shapes."""
    if granularity is Granularity.BLOCK:
        parts = groups[0].flatten().split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    if granularity is Granularity.INPUT:
        groups = [group.transpose(0, 1) if m else group.squeeze(1).T for group in groups]
    return [group.reshape(shape) for group, shape in zip(groups, shapes, strict=True)]


@dataclass(frozen=True)
class Pairing:
    """The pruned and kept weights of (selections, groups, n) paired for `exchange`.

    grow, cut: int64 (selections, groups, n), the pruned weights by falling and the kept ones by rising saliency.
    best: int64 (selections, groups * n), the pairs by falling gain. candidates: (selections, 1), pairs that gain.
    """

    grow: Tensor
    cut: Tensor
    best: Tensor
    candidates: Tensor


def pair(mask: Tensor, saliency: Tensor) -> Pairing:
    """Pair the pruned weights that became important with the kept ones that did not (LLM-Barber, arXiv 2408.10631).

    mask, saliency: (selections, groups, n). Only pairs that gain are candidates: as published for unstructured masks;
    the published n:m rule also swaps pairs that lose.
    """
    pruned, grow = saliency.masked_fill(~mask, -torch.inf).sort(dim=-1, descending=True, stable=True)
    kept, cut = saliency.masked_fill(mask, torch.inf).sort(dim=-1, stable=True)
    gain = (pruned - kept).flatten(1)
    candidates = (gain > 0).sum(dim=1, keepdim=True)
    return Pairing(grow, cut, gain.argsort(dim=1, descending=True, stable=True), candidates)


def exchange(mask: Tensor, pairing: Pairing, threshold: float) -> tuple[Tensor, int]:
    """Let the best floor(threshold * candidates) pairs of each selection change places.

    Returns the new mask (selections, groups, n), with as many zeros per group as before, and the number of swaps.
    """
    # As written, to a millionth: 0.29 of 100 candidates are 29, which floating point makes 28.
    share = Fraction(str(threshold)).limit_denominator(10**6)
    swaps = pairing.candidates * share.numerator // share.denominator
    chosen = torch.zeros_like(pairing.best, dtype=torch.bool)
    chosen.scatter_(1, pairing.best, torch.arange(chosen.shape[1], device=mask.device) < swaps)
    chosen = chosen.view(mask.shape)
    swapped = mask.clone()
    swapped.scatter_(-1, pairing.grow, swapped.gather(-1, pairing.grow) & ~chosen)
    swapped.scatter_(-1, pairing.cut, swapped.gather(-1, pairing.cut) | chosen)
    return swapped, int(swaps.sum())


@dataclass(frozen=True)
class Swapped:
    """Masks (out, in) after a swap, one per weight matrix; pairs that gain, and pairs that changed places."""

    masks: list[Tensor]
    candidates: int
    swaps: int


def swap_matrices(
    masks: Sequence[Tensor],
    saliencies: Sequence[Tensor],
    thresholds: Sequence[float],
    granularity: Granularity,
    m: int,
) -> Iterator[Swapped]:
    """The masks of one sub-block after swapping, for each threshold in turn.

    masks, saliencies: one (out, in) per weight matrix. Each threshold is the share of the gaining pairs of a selection
    that change places.
    """
    grouped = to_groups(masks, granularity, m)
    pairings = [pair(*both) for both in zip(grouped, to_groups(saliencies, granularity, m), strict=True)]
    candidates = sum(int(pairing.candidates.sum()) for pairing in pairings)
    shapes = [mask.shape for mask in masks]
    for threshold in thresholds:
        exchanged = [exchange(mask, pairing, threshold) for mask, pairing in zip(grouped, pairings, strict=True)]
        swapped, swaps = zip(*exchanged, strict=True)
        yield Swapped(from_groups(swapped, shapes, granularity, m), candidates, sum(swaps))


def check_pattern(mask: Tensor, sparsity: Sparsity, name: str) -> None:
    """UserError unless every m consecutive inputs of the mask (out, in) hold exactly n zeros; no-op without n:m."""
    if sparsity.m and not bool((mask.unflatten(1, (-1, sparsity.m)).sum(-1) == sparsity.n).all()):
        raise UserError(f"The mask of {name} does not have {sparsity}: give masks of that pattern or name another one.")
