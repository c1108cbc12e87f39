"""Histograms of saliency, by whether each weight was kept, pruned, grown or cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from barber.memory import portion


def kept_sum(scores: Tensor, mask: Tensor) -> float:
    """Sum of the finite scores (out, in) where the mask is False, in double precision."""
    size = portion(scores.device)
    parts = zip(scores.flatten().split(size), mask.flatten().split(size), strict=True)
    return float(sum((part * ~pruned).sum(dtype=torch.float64) for part, pruned in parts))


def histogram(saliency: Tensor, initial: Tensor, rebuilt: Tensor, bins: int = 48) -> dict[str, Any]:
    """Histogram of the log10 saliency of one weight matrix, for kept, pruned, grown and cut weights.

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
    # Uniform bins need no search. One bincount covers all fates: in each, 0 is saliency zero, else 1 + the bin.
    place = place.sub_(low).mul_(1 / width).clamp_(0, bins - 1).to(torch.int16).add_(1).mul_(positive)
    place.add_(initial, alpha=2 * (bins + 1)).add_(rebuilt, alpha=bins + 1)
    # In portions, since bincount converts the indices to int64.
    parts = place.flatten().split(portion(place.device))
    counts = sum(part.bincount(minlength=4 * (bins + 1)) for part in parts)
    kept, cut, grown, pruned = counts.view(4, bins + 1).tolist()
    fates = {"kept": kept, "pruned": pruned, "grown": grown, "cut": cut}
    return {
        "edges": [round(low + i * width, 6) for i in range(bins + 1)],
        "zeros": {fate: count[0] for fate, count in fates.items()},
        **{fate: count[1:] for fate, count in fates.items()},
    }
