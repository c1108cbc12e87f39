"""Layer ratios from the share of outliers (OWL, arXiv 2310.05175), and counts that sum exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from barber.errors import UserError

OUTLIER = 5.0  # M, as published: an outlier's score is more than M times the mean
BAND = 0.08  # lambda, as published


def outliers(scores: Sequence[Tensor]) -> int:
    """How many of the scores, tensors of any shape, exceed OUTLIER times the mean of all (OWL, section 3.2)."""
    mean = sum(score.sum(dtype=torch.float64).item() for score in scores) / sum(score.numel() for score in scores)
    return sum(int((score > OUTLIER * mean).count_nonzero()) for score in scores)


def layer_ratios(shares: Sequence[float], ratio: float) -> list[float]:
    """Pruned share of each layer from its share of outliers, as in OWL's published code.

    The kept shares rise with the outliers over a band 2 * BAND wide and have the mean 1 - ratio. As in that
    code, the band is not centred on the mean when the shares are skewed; a layer may then differ from it by more than
    BAND.
    """
    low, width = min(shares), max(shares) - min(shares)
    kept = [2 * BAND * (share - low) / width if width else 0.0 for share in shares]
    mean = math.fsum(kept) / len(kept)
    return [ratio - (more - mean) for more in kept]


def share_out(sizes: Sequence[int], ratios: Sequence[float], total: int) -> list[int]:
    """Integers that sum to `total`, close to sizes * ratios, each at least 0 and less than its size.

    One offset is added to all ratios, and each count is clipped to its bounds, such that the sum is `total`. Rounding
    is by largest remainders; ties go to the earlier one. Raises UserError if `total` exceeds what the bounds allow.
    """
    most = [size - 1 for size in sizes]
    if not 0 <= total <= sum(most):
        raise UserError(
            f"{total} of {sum(sizes)} weights cannot be pruned so that each of {len(sizes)} matrices keeps one: give a "
            "lower sparsity."
        )

    def quotas(offset: float) -> list[float]:
        return [
            min(max(size * (ratio + offset), 0.0), float(size - 1)) for size, ratio in zip(sizes, ratios, strict=True)
        ]

    low, high = -1.0 - max(ratios), 1.0 - min(ratios)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(quotas(middle)) <= total else (low, middle)
    exact = quotas(low)
    counts = [math.floor(quota) for quota in exact]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    while missing := total - sum(counts):
        for i in [i for i in order if counts[i] < most[i]][:missing]:
            counts[i] += 1
    return counts
