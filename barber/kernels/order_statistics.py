"""Order statistics of groups of numbers: counts, k-th smallest values, and masks of the k smallest with ties."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def ordered(values: Tensor) -> Tensor:
    """The values (groups, n), fp32, of each group in ascending order.

    Without positions: on a CPU, numpy sorts values alone, while torch also sorts their positions.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def without_nan(values: Tensor, least: float) -> Tensor:
    """The values with `least` in place of NaN, which has no order; not copied if there is no NaN."""
    if not bool(values.sum().isnan()):  # NaN makes the sum NaN; so do opposite infinities, which cost a needless copy
        return values
    return values.masked_fill(values.isnan(), least)


def number_of(where: Tensor) -> Tensor:
    """Count of True in each group of bool (groups, n): int64 (groups, 1). Torch's sum would copy the bools as int64."""
    if where.device.type == "cpu":
        return torch.from_numpy(where.numpy().sum(axis=1, keepdims=True))
    return where.sum(dim=1, keepdim=True)


def beyond(
    values: Tensor, counts: Tensor, bounds: Tensor, where: Tensor | None = None, largest: bool = False
) -> Tensor:
    """Mask (groups, n) of the counts[i] smallest (or largest) values of group i among those in `where`, or all.

    Ties go to the earlier position. counts: int64 (groups, 1). bounds: (groups, 1), the last value that is chosen;
    arbitrary where the count is 0.
    """
    reached = values >= bounds if largest else values <= bounds
    reached = reached if where is None else reached.logical_and_(where)
    number = number_of(reached)
    if not torch.equal(number, counts):  # more values equal the bound than the count allows
        ties = (values == bounds).logical_and_(reached)
        many = number_of(ties)
        room = counts - (number - many)
        place = ties.flatten().nonzero()[:, 0]  # group by group, since few groups have ties
        group = place // ties.shape[1]
        rank = torch.arange(len(place), device=place.device) - (many.cumsum(0) - many)[group, 0]
        reached = reached.contiguous()
        reached.view(-1)[place[rank >= room[group, 0]]] = False
    return reached.logical_and_(counts > 0)


def smallest_bound(values: Tensor, count: int, spare: bool = False) -> Tensor:
    """The count-th smallest value of each group of (groups, n): (groups, 1). On a CPU by numpy.

    spare: the values may be reordered in place, which saves a copy.
    """
    if values.device.type == "cpu":
        moved = values.numpy() if spare else values.numpy().copy()
        moved.partition(count - 1, axis=1)
        return torch.from_numpy(moved[:, count - 1 : count].copy())
    return values.kthvalue(count, dim=1, keepdim=True).values
