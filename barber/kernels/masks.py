"""Masks with exact counts from scores, as pure tensor functions. Masks are boolean, True = pruned.

NaN counts as the smallest score, so that counts are exact for any scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from barber.config import Sparsity
from barber.errors import UserError
from barber.kernels.order_statistics import beyond, smallest_bound, without_nan
from barber.registry import MATRIX, ROW

BLOCK_COLUMNS = 128  # columns of a block in which SparseGPT compares scores, as published
SMALL_GROUP = 64  # up to this size, groups are sorted with positions; larger groups only need the k-th value


def prune_smallest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest scores in each row of (groups, n); ties go to the earlier position."""
    scores = without_nan(scores, -torch.inf)
    if count == 0 or scores.shape[1] <= SMALL_GROUP:
        order = scores.argsort(dim=1, stable=True)[:, :count]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    bounds = smallest_bound(scores, count)
    return beyond(scores, torch.full_like(bounds, count, dtype=torch.int64), bounds)


def initial_mask(scores: Tensor, sparsity: Sparsity, within: str, zeros: int | None = None) -> Tensor:
    """Mask (out, in) of the smallest scores with exactly `sparsity.count` zeros per group.

    within: what a group is: "row" or "matrix"; for n:m always m consecutive inputs. zeros: number of
    pruned weights of the whole mask, in place of the count by an unstructured sparsity.
    """
    if zeros is None:
        width = sparsity.m or (scores.shape[1] if within == ROW else scores.numel())
        return prune_smallest(scores.reshape(-1, width), sparsity.count(width)).view(scores.shape)
    if within == ROW:
        return smallest_by_row(scores, zeros)
    return prune_smallest(scores.reshape(1, -1), zeros).view(scores.shape)


def zero_count(rows: int, columns: int, sparsity: Sparsity, within: str) -> int:
    """Number of pruned weights of a matrix (rows, columns); within: the groups of registry.InitialMask."""
    if within == ROW:
        return rows * sparsity.count(columns)
    if within == MATRIX:
        return sparsity.count(rows * columns)
    whole, rest = divmod(columns, BLOCK_COLUMNS)
    return whole * sparsity.count(rows * BLOCK_COLUMNS) + sparsity.count(rows * rest)


def check_pattern(mask: Tensor, sparsity: Sparsity, name: str) -> None:
    """UserError unless every m consecutive inputs of the mask (out, in) have exactly n zeros; no check without n:m."""
    if sparsity.m and not bool((mask.unflatten(1, (-1, sparsity.m)).sum(-1) == sparsity.n).all()):
        raise UserError(f"The mask of {name} does not have {sparsity}: give masks of that pattern or another sparsity.")


def smallest_by_row(scores: Tensor, zeros: int) -> Tensor:
    """Mask of `zeros` small scores of (out, in): equally many per row, the rest where the next score is smallest."""
    each, more = divmod(zeros, len(scores))
    scores = without_nan(scores, -torch.inf)
    order = scores.argsort(dim=1, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if more:
        following = order[:, each]
        rows = scores.gather(1, following[:, None])[:, 0].argsort(stable=True)[:more]
        mask[rows, following[rows]] = True
    return mask
