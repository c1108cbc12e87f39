"""Initial masks and the swap rule: pure tensor functions with exact counts.

Masks are boolean, True = pruned. Granularity is a reshape: every function works on (selections, groups, n), where
pruned and kept weights pair up inside a group of n, and a share of the pairs of each selection changes places.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def swap(mask: Tensor, saliency: Tensor, threshold: float) -> tuple[Tensor, int, int]:
    """Let pruned weights that became important change places with kept ones that did not (LLM-Barber).

    mask, saliency: (selections, groups, n). In each group the pruned weights by falling saliency pair with the kept
    ones by rising saliency; the pairs that gain are candidates, and of each selection's candidates the best
    floor(threshold * candidates) are swapped. As published for unstructured masks; the published n:m rule also swaps
    pairs that lose. Returns the new mask, with as many zeros per group as before, the number of candidates and the
    number of swaps.
    """
    pruned, grow = saliency.masked_fill(~mask, -torch.inf).sort(dim=-1, descending=True, stable=True)
    kept, cut = saliency.masked_fill(mask, torch.inf).sort(dim=-1, stable=True)
    gain = (pruned - kept).flatten(1)
    candidates = (gain > 0).sum(dim=1, keepdim=True)
    # As written, to a millionth: 0.29 of 100 candidates are 29, which floating point makes 28.
    share = Fraction(str(threshold)).limit_denominator(10**6)
    swaps = candidates * share.numerator // share.denominator
    best = gain.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(gain, dtype=torch.bool)
    chosen.scatter_(1, best, torch.arange(gain.shape[1], device=gain.device) < swaps)
    chosen = chosen.view(mask.shape)
    rebuilt = mask.clone()
    rebuilt.scatter_(-1, grow, rebuilt.gather(-1, grow) & ~chosen)
    rebuilt.scatter_(-1, cut, rebuilt.gather(-1, cut) | chosen)
    return rebuilt, int(candidates.sum()), int(swaps.sum())


def swap_matrices(
    masks: Sequence[Tensor], saliencies: Sequence[Tensor], threshold: float, granularity: Granularity, m: int
) -> tuple[list[Tensor], int, int]:
    """`swap` over the (out, in) matrices of one sub-block: the new masks, candidates and swaps."""
    groups = zip(to_groups(masks, granularity, m), to_groups(saliencies, granularity, m), strict=True)
    swapped, candidates, swaps = zip(*(swap(mask, saliency, threshold) for mask, saliency in groups), strict=True)
    rebuilt = from_groups(swapped, [mask.shape for mask in masks], granularity, m)
    return rebuilt, sum(candidates), sum(swaps)


def check_pattern(mask: Tensor, sparsity: Sparsity, name: str) -> None:
    """UserError unless every m consecutive inputs of the mask (out, in) hold exactly n zeros; no-op without n:m."""
    if sparsity.m and not bool((mask.unflatten(1, (-1, sparsity.m)).sum(-1) == sparsity.n).all()):
        raise UserError(f"The mask of {name} does not have {sparsity}: give masks of that pattern or name another one.")
