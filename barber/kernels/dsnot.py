"""DSnoT (arXiv 2310.08915): swaps in each output row until the row's mean error is small."""

from __future__ import annotations

import torch
from torch import Tensor

CYCLES = 50  # swaps of one row at most, as published
SMALL = 0.1  # a row with a smaller mean error is not changed, as published


def dsnot_by_moments(mask: Tensor, dense: Tensor, values: Tensor, moments: Tensor, m: int = 0) -> Tensor:
    """`dsnot` of a weight (out, in) whose inputs have these moments (3, in): count, sum and sum of squares.

    values: not used, since DSnoT computes with dense values; refiners share one signature.
    """
    count, total, squares = moments
    mean = total / count
    return dsnot(mask, dense, mean, squares / count - mean.square(), squares, m)


@torch.no_grad()
def dsnot(mask: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, squares: Tensor, m: int = 0) -> Tensor:
    """The rebuilt mask (out, in), True = pruned, with the same number of zeros in each row (each m consecutive inputs).

    weight: (out, in), dense. mean, variance, squares: (in,) fp32, mean, variance and sum of squares of each input over
    the calibration tokens. The error of a row is the sum of w * mean(x) over its pruned weights. Each cycle grows the
    pruned weight that reduces this error most relative to the input's variance (eq. 5 of arXiv 2310.08915). It then
    cuts the kept weight of the smallest Wanda score among those that also reduce it (eq. 6; for n:m among
    all of the group, as in the published code). A row stops when its error is small or would change sign.
    """
    mask, weight = mask.clone(), weight.float()
    share = weight * mean
    largest = torch.finfo(torch.float32).max
    growth = (share / variance.clamp_min(torch.finfo(torch.float32).tiny)).clamp(-largest, largest)
    wanda = weight.abs() * squares.sqrt()
    moved = torch.zeros_like(mask)
    rows = torch.arange(len(mask), device=mask.device)
    sign = share.masked_fill(~mask, 0).sum(1).sign()
    for _ in range(CYCLES):
        gone, way = mask[rows], sign[rows, None]
        error = share[rows].masked_fill(~gone, 0).sum(1)
        grow = (growth[rows] * way).masked_fill(~gone | moved[rows], -torch.inf).max(dim=1)
        free = ~gone & ~moved[rows]
        if m:
            free &= torch.arange(mask.shape[1], device=mask.device) // m == grow.indices[:, None] // m
        else:
            free &= share[rows] * way < 0
        cut = wanda[rows].masked_fill(~free, torch.inf).min(dim=1)
        here = torch.arange(len(rows), device=mask.device)
        after = error - share[rows][here, grow.indices] + share[rows][here, cut.indices]
        goes_on = (error.abs() > SMALL) & grow.values.isfinite() & cut.values.isfinite() & (after.sign() == sign[rows])
        if not bool(goes_on.any()):
            break
        rows, grown, cut_at = rows[goes_on], grow.indices[goes_on], cut.indices[goes_on]
        mask[rows, grown], mask[rows, cut_at] = False, True
        moved[rows, grown] = moved[rows, cut_at] = True
    return mask
