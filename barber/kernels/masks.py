"""Masks with exact counts from scores, as pure tensor functions. Masks are boolean, True = pruned.

A score that is no number counts as the least, so that counts are exact whatever the scores hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from barber.config import Granularity, Sparsity
from barber.errors import UserError
from barber.kernels.order_statistics import beyond, smallest_bound, without_nan

SMALL_GROUP = 64  # groups of so many or fewer are sorted with their positions; in larger ones the values are enough


def prune_smallest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest scores in each row of (groups, n); ties go to the earlier position."""
    scores = without_nan(scores, -torch.inf)
    if count == 0 or scores.shape[1] <= SMALL_GROUP:
        order = scores.argsort(dim=1, stable=True)[:, :count]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    bounds = smallest_bound(scores, count)
    return beyond(scores, torch.full_like(bounds, count, dtype=torch.int64), bounds)


def initial_mask(scores: Tensor, sparsity: Sparsity, granularity: Granularity) -> Tensor:
    """Mask (out, in) with exactly `sparsity.count` zeros per group: m inputs for n:m, else a row or the matrix."""
    width = sparsity.m or (scores.shape[1] if granularity is Granularity.OUTPUT else scores.numel())
    return prune_smallest(scores.reshape(-1, width), sparsity.count(width)).view(scores.shape)


def check_pattern(mask: Tensor, sparsity: Sparsity, name: str) -> None:
    """UserError unless every m consecutive inputs of the mask (out, in) hold exactly n zeros; no-op without n:m."""
    if sparsity.m and not bool((mask.unflatten(1, (-1, sparsity.m)).sum(-1) == sparsity.n).all()):
        raise UserError(f"The mask of {name} does not have {sparsity}: give masks of that pattern or name another one.")


def smallest_by_row(scores: Tensor, zeros: int) -> Tensor:
    """Mask of `zeros` small scores of (out, in): as many in each row, and one more where the row's next is smallest."""
    each, more = divmod(zeros, len(scores))
    scores = without_nan(scores, -torch.inf)
    order = scores.argsort(dim=1, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if more:
        following = order[:, each]
        rows = scores.gather(1, following[:, None])[:, 0].argsort(stable=True)[:more]
        mask[rows, following[rows]] = True
    return mask
