"""Exact greedy swaps inside each output row, on the squared error of the weight's own output.

The objective is that of layer-wise pruning, ||(W - V) X||^2 for calibration inputs X and pruned values V. Given X X^T,
the change of the error by the swap of a pruned and a kept weight of one row has a closed form. The best swap is applied
repeatedly until none lowers the error, as in SparseSwaps (arXiv 2512.10922); the shortlist is an addition of Barber.
"""

from __future__ import annotations

import torch
from torch import Tensor

from barber.memory import portion

SHORTLIST = 8  # longer shortlists lower the error little, see benchmarks/layer_error.py
MOST_SWAPS = 256  # swaps of one row at most
LEAST_GAIN = 1e-6  # relative to the squared norm of the row's output: smaller gains are rounding errors
TABLE = 4  # portions of numbers per step: with fewer, the matrix product with the gram has too few rows


@torch.no_grad()
def one_swap(
    mask: Tensor, dense: Tensor, values: Tensor, gram: Tensor, m: int = 0, shortlist: int = SHORTLIST
) -> Tensor:
    """The rebuilt mask (out, in), True = pruned, with the same number of zeros per row (per m consecutive inputs).

    Each swap lowers the row's error. dense: (out, in), the weight that gives the target output. values: (out, in), the
    value of each weight where it is kept, usually the dense one. gram: fp32 (in, in), the sum of x x^T over the inputs
    x. m: with n:m, swaps stay inside m consecutive inputs, and all pairs are compared. shortlist: without m, only so
    many pruned and so many kept weights are compared, those with the smallest errors alone.
    """
    mask, dense, values = mask.clone(), dense.float(), values.float()
    per_row = mask.shape[1] * (m or 1)
    for rows in torch.arange(len(mask), device=mask.device).split(max(1, TABLE * portion(mask.device) // per_row)):
        mask[rows] = _swap_rows(mask[rows], dense[rows], values[rows], gram, m, shortlist)
    return mask


def _swap_rows(mask: Tensor, dense: Tensor, values: Tensor, gram: Tensor, m: int, shortlist: int) -> Tensor:
    """The rebuilt mask of some rows, (rows, in); all arguments but the gram have these rows only.

    The product of (dense - pruned) with the gram is computed once; each swap adds two rows of the gram to it. After
    MOST_SWAPS swaps its rounding error is still that of fp32 sums, far below LEAST_GAIN.
    """
    result, still = mask.clone(), torch.arange(len(mask), device=mask.device)
    least = LEAST_GAIN * dense.square() @ gram.diagonal()
    missing = (dense - values.masked_fill(mask, 0)) @ gram
    alone = values.square() * gram.diagonal()
    for _ in range(MOST_SWAPS):
        change, grown, cut = _best(mask, values, alone, missing, gram, m, shortlist)
        better = change < -least
        if not bool(better.any()):
            break
        if not bool(better.all()):
            still, grown, cut, least = still[better], grown[better], cut[better], least[better]
            mask, values, alone, missing = mask[better], values[better], alone[better], missing[better]
        result[still, grown], result[still, cut] = False, True
        mask = result[still]
        row = torch.arange(len(still), device=mask.device)
        missing.addcmul_(values[row, cut, None], gram[cut]).addcmul_(values[row, grown, None], gram[grown], value=-1)
    return result


def _best(
    mask: Tensor, values: Tensor, alone: Tensor, missing: Tensor, gram: Tensor, m: int, shortlist: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best swap of each row: change of the error (rows,), grown and cut input (rows,).

    alone: (rows, in), the error when only this weight is pruned. missing: (rows, in), see `_swap_rows`.
    """
    pull = values * missing
    grow = torch.add(alone, pull, alpha=-2).masked_fill_(~mask, torch.inf)
    cut = torch.add(alone, pull, alpha=2).masked_fill_(mask, torch.inf)
    if m:
        return _best_in_groups(grow, cut, values, gram, m)
    count = min(shortlist, mask.shape[1])
    grow, grow_at = grow.topk(count, largest=False)
    cut, cut_at = cut.topk(count, largest=False)
    # The change by a pair is `grow` + `cut` plus a cross term with the gram.
    together = values.gather(1, grow_at)[:, :, None] * values.gather(1, cut_at)[:, None, :]
    change = grow[:, :, None] + cut[:, None, :] - 2 * together * gram[grow_at[:, :, None], cut_at[:, None, :]]
    least, place = change.flatten(1).min(dim=1, keepdim=True)
    grown, lost = grow_at.gather(1, place // count), cut_at.gather(1, place % count)
    return least[:, 0], grown[:, 0], lost[:, 0]


def _best_in_groups(grow: Tensor, cut: Tensor, values: Tensor, gram: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `_best`, of all pairs inside m consecutive inputs; grow, cut: (rows, in), the change by each weight alone."""
    meets = gram.unflatten(0, (-1, m)).unflatten(2, (-1, m)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    grow, cut, values = (each.unflatten(1, (-1, m)) for each in (grow, cut, values))
    change = (values[..., :, None] * values[..., None, :]).mul_(meets).mul_(-2)
    change += grow[..., :, None]
    change += cut[..., None, :]
    least, place = change.flatten(1).min(dim=1)
    group, inside = place // m**2 * m, place % m**2
    return least, group + inside // m, group + inside % m
