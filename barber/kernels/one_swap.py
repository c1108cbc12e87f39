"""Exact greedy swaps inside each output row, on the squared error of the weight's own output.

The objective is the one of layer-wise pruning, ||(W - V) X||^2 over the calibration inputs X, for pruned values V.
With X X^T known, what the swap of a pruned and a kept weight of one row does to it is a closed form, so the best swap
can be found and repeated until none helps. Such refinement is the idea of SparseSwaps ("Tractable LLM Pruning Mask
Refinement at Scale", 2025); the shortlist is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from barber.memory import portion

SHORTLIST = 64  # weights of either side that are tried in pairs: the best ones alone
MOST_SWAPS = 64  # of one row
LEAST_GAIN = 1e-6  # of the row's output energy: smaller gains are rounding
TABLE = 4  # portions of a table of pairs: fewer, and rows are too few for the product with the gram


@torch.no_grad()
def one_swap(mask: Tensor, dense: Tensor, values: Tensor, gram: Tensor, m: int = 0) -> Tensor:
    """The mask (out, in), True = pruned, after swaps that each lower the row's error; as many zeros per row (per m).

    dense: what the outputs should come from. values: what a weight is where it is kept, mostly dense again. Both
    (out, in). gram: fp32 (in, in), the sum of x x^T over the inputs x. m: swaps stay inside m consecutive inputs.
    """
    mask, dense, values = mask.clone(), dense.float(), values.float()
    shortlist = m * m if m else min(SHORTLIST, mask.shape[1]) ** 2
    per_row = shortlist * (mask.shape[1] // m if m else 1)
    for rows in torch.arange(len(mask), device=mask.device).split(max(1, TABLE * portion(mask.device) // per_row)):
        least = LEAST_GAIN * dense[rows].square() @ gram.diagonal()
        for _ in range(MOST_SWAPS):
            change, grow, cut = _best(mask[rows], dense[rows], values[rows], gram, m)
            better = change < -least
            if not bool(better.any()):
                break
            rows, grow, cut, least = rows[better], grow[better], cut[better], least[better]
            mask[rows, grow], mask[rows, cut] = False, True
    return mask


def _best(mask: Tensor, dense: Tensor, values: Tensor, gram: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The swap of each row that changes its error most for the better: change (rows,), grown and cut input (rows,)."""
    pull = 2 * values * ((dense - values.masked_fill(mask, 0)) @ gram)
    own = values.square() * gram.diagonal()
    grow = (own - pull).masked_fill(~mask, torch.inf)
    cut = (own + pull).masked_fill(mask, torch.inf)
    if m:
        indices = torch.arange(mask.shape[1], device=mask.device).view(1, -1, m).expand(len(mask), -1, m)
        grow_at = cut_at = indices
        grow, cut = grow.unflatten(1, (-1, m)), cut.unflatten(1, (-1, m))
    else:
        count = min(SHORTLIST, mask.shape[1])
        grow, grow_at = grow.unsqueeze(1).topk(count, largest=False)
        cut, cut_at = cut.unsqueeze(1).topk(count, largest=False)
    # (rows, groups, grown, cut): alone, each changes the error by `grow` and `cut`; together they meet in the gram.
    rows = torch.arange(len(mask), device=mask.device)[:, None, None]
    together = values[rows, grow_at][..., :, None] * values[rows, cut_at][..., None, :]
    change = grow[..., :, None] + cut[..., None, :] - 2 * together * gram[grow_at[..., :, None], cut_at[..., None, :]]
    least, place = change.flatten(1).min(dim=1)
    width = change.shape[-1]
    grown = grow_at.flatten(1).gather(1, (place // width)[:, None]).squeeze(1)
    group, inside = place // width**2, place % width
    return least, grown, cut_at.flatten(1).gather(1, (group * width + inside)[:, None]).squeeze(1)
