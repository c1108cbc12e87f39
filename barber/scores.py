"""Saliency scores of weights: pure functions on (out, in) tensors, all in fp32."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor

from barber.config import Metric
from barber.memory import portion

RIA_POWER = 0.5  # of the input's norm, as published


def magnitude(weight: Tensor) -> Tensor:
    """|W|, (out, in)."""
    return weight.float().abs()


def wanda(weight: Tensor, squares: Tensor) -> Tensor:
    """|W| * ||x||, (out, in) (Wanda, arXiv 2306.11695, eq. 1).

    squares: (in,) sums of squared inputs over all calibration tokens.
    """
    return weight.float().abs() * squares.sqrt()


def wandd(weight: Tensor, squares: Tensor) -> Tensor:
    """Wanda in derivative form, (out, in): |W| times the square root of half the second derivative of ||W x||^2 by W.

    That derivative is 2 * sum x^2 for every row, so the score is Wanda's; the published code gets there by another way.
    """
    return wanda(weight, squares)


def ria(weight: Tensor, squares: Tensor) -> Tensor:
    """(|W| / row sum of |W| + |W| / column sum of |W|) * ||x||^0.5, (out, in) (RIA, Zhang et al., ICLR 2024).

    squares: (in,) sums of squared inputs over all calibration tokens. In a row or column of zeros alone the share is 0.
    """
    size, tiny = weight.float().abs(), torch.finfo(torch.float32).tiny
    shares = size / size.sum(1, keepdim=True).clamp_min(tiny) + size / size.sum(0).clamp_min(tiny)
    return shares * squares.sqrt().pow(RIA_POWER)


def random(weight: Tensor, name: str) -> Tensor:
    """Uniform in [0, 1), (out, in), whatever the weight holds: the control. The name is the seed, on every device."""
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(name.encode()).digest()[:4]))
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def saliency(metric: Metric, weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """Saliency of the rebuild, (out, in) (LLM-Barber, arXiv 2408.10631).

    squared_gradient: (out, in), mean over the calibration sequences of the squared gradient of the sub-block's error.
    """
    if metric is Metric.W:
        return weight.float().abs()
    gradient = squared_gradient.float().sqrt()
    return gradient if metric is Metric.D else weight.float().abs() * gradient


def kept_sum(scores: Tensor, mask: Tensor) -> float:
    """Sum of the finite scores (out, in) where the mask is False, in double precision."""
    size = portion(scores.device)
    parts = zip(scores.flatten().split(size), mask.flatten().split(size), strict=True)
    return sum((part * ~pruned).sum(dtype=torch.float64) for part, pruned in parts).item()


def histogram(saliency: Tensor, initial: Tensor, rebuilt: Tensor, bins: int = 48) -> dict:
    """log10 saliency of one weight matrix, binned by what became of each weight.

    saliency: (out, in); initial, rebuilt: bool (out, in), True = pruned. Returns JSON-able: `edges`, bins + 1 values of
    log10 saliency; for "kept", "pruned", "grown", "cut" the counts per bin; `zeros`, fate -> the number of its weights
    with saliency zero, which a logarithm cannot show.
    """
    limits, positive = torch.finfo(torch.float32), saliency > 0
    place = saliency.float().clamp(limits.tiny, limits.max).log10_()
    if bool(positive.all()):
        low, high = (bound.item() for bound in place.aminmax())
    else:
        zero = ~positive
        low, high = place.masked_fill_(zero, torch.inf).min().item(), place.masked_fill_(zero, -torch.inf).max().item()
    low, high = (low, high) if high >= low else (-1.0, 0.0)
    width = max(high - low, 1e-3) / bins
    # Uniform edges need no search, and one count does for all: 0 for saliency zero, else 1 + the bin, fate by fate.
    place = place.sub_(low).mul_(1 / width).clamp_(0, bins - 1).to(torch.int16).add_(1).mul_(positive)
    place.add_(initial, alpha=2 * (bins + 1)).add_(rebuilt, alpha=bins + 1)
    # Part by part, since counting makes int64 of them.
    parts = place.flatten().split(portion(place.device))
    counts = sum(part.bincount(minlength=4 * (bins + 1)) for part in parts)
    kept, cut, grown, pruned = counts.view(4, bins + 1).tolist()
    fates = {"kept": kept, "pruned": pruned, "grown": grown, "cut": cut}
    return {
        "edges": [round(low + i * width, 6) for i in range(bins + 1)],
        "zeros": {fate: count[0] for fate, count in fates.items()},
        **{fate: count[1:] for fate, count in fates.items()},
    }
