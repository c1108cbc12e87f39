"""Order statistics of groups of numbers: how many, which value is the k-th, and which are beyond it, ties included."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def ordered(values: Tensor) -> Tensor:
    """The values (groups, n), fp32, of each group in rising order.

    Without their positions: on a CPU numpy sorts numbers alone, torch always their positions, too.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def without_nan(values: Tensor, least: float) -> Tensor:
    """The values, `least` where they are no number; no copy where all are numbers. NaN has no place in an order."""
    if not bool(values.sum().isnan()):  # one look at each; infinities that cancel cost a copy
        return values
    return values.masked_fill(values.isnan(), least)


def number_of(where: Tensor) -> Tensor:
    """How many of each group of bool (groups, n) are True: int64 (groups, 1). Torch's sum would copy them as int64."""
    if where.device.type == "cpu":
        return torch.from_numpy(where.numpy().sum(axis=1, keepdims=True))
    return where.sum(dim=1, keepdim=True)


def beyond(
    values: Tensor, counts: Tensor, bounds: Tensor, where: Tensor | None = None, largest: bool = False
) -> Tensor:
    """Mask (groups, n) of the counts[i] smallest (or largest) values of group i among those in `where`, or all.

    Ties go to the earlier position. counts: int64 (groups, 1). bounds: (groups, 1), the last value that is chosen; any
    where the count is 0.
    """
    reached = values >= bounds if largest else values <= bounds
    reached = reached if where is None else reached.logical_and_(where)
    number = number_of(reached)
    if not torch.equal(number, counts):  # more are equal to the last than there is room for
        ties = (values == bounds).logical_and_(reached)
        many = number_of(ties)
        room = counts - (number - many)
        place = ties.flatten().nonzero()[:, 0]  # group by group; mostly there are few
        group = place // ties.shape[1]
        rank = torch.arange(len(place), device=place.device) - (many.cumsum(0) - many)[group, 0]
        reached = reached.contiguous()
        reached.view(-1)[place[rank >= room[group, 0]]] = False
    return reached.logical_and_(counts > 0)


def smallest_bound(values: Tensor, count: int, spare: bool = False) -> Tensor:
    """The count-th smallest value of each group of (groups, n): (groups, 1). On a CPU it is found by numpy.

    spare: the values are not needed any more, so that they may change places and no copy is made.
    """
    if values.device.type == "cpu":
        moved = values.numpy() if spare else values.numpy().copy()
        moved.partition(count - 1, axis=1)
        return torch.from_numpy(moved[:, count - 1 : count].copy())
    return values.kthvalue(count, dim=1, keepdim=True).values
