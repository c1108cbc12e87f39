"""One-swap updates its products after each swap: the swaps are those of recomputed products."""

from __future__ import annotations

import pytest
import torch

from barber.config import Sparsity
from barber.kernels.masks import initial_mask
from barber.kernels.one_swap import LEAST_GAIN, MOST_SWAPS, SHORTLIST, one_swap


def case(seed: int, rows: int, width: int, sparsity: Sparsity):
    """A weight, a random mask and the gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    x = torch.randn(4 * width, width, generator=generator) @ torch.randn(width, width, generator=generator)
    gram = x.T @ x
    return weight, initial_mask(torch.rand(rows, width, generator=generator), sparsity, "row"), gram


def plain(mask, weight, gram, m):
    """Swap by swap in double precision: all pairs of the shortlists, with recomputed products."""
    mask, weight, gram = mask.clone(), weight.double(), gram.double()
    for row in range(len(mask)):
        least = LEAST_GAIN * weight[row].square() @ gram.diagonal()
        for _ in range(MOST_SWAPS):
            pruned = mask[row]
            pull = 2 * weight[row] * (gram @ (weight[row] * pruned))
            own = weight[row].square() * gram.diagonal()
            grow, cut = (own - pull).masked_fill(~pruned, torch.inf), (own + pull).masked_fill(pruned, torch.inf)
            change = grow[:, None] + cut - 2 * weight[row, :, None] * weight[row] * gram
            if m:
                group = torch.arange(len(pruned)) // m
                change = change.masked_fill(group[:, None] != group, torch.inf)
            else:
                tried = torch.full_like(change, torch.inf)
                at = grow.topk(SHORTLIST, largest=False).indices[:, None]
                to = cut.topk(SHORTLIST, largest=False).indices
                tried[at, to] = change[at, to]
                change = tried
            if not change.min() < -least:
                break
            grown, lost = divmod(int(change.argmin()), len(pruned))
            mask[row, grown], mask[row, lost] = False, True
    return mask


@pytest.mark.parametrize("pattern", ["30%", "50%", "2:4"])
@pytest.mark.parametrize("seed", range(3))
def test_swaps_are_those_of_recomputed_products(pattern, seed):
    """Row by row over hundreds of swaps; a gain at the limit may be rounded to either side."""
    sparsity = Sparsity.parse(pattern)
    weight, mask, gram = case(seed, 12, 96, sparsity)
    refined, expected = one_swap(mask, weight, weight, gram, sparsity.m), plain(mask, weight, gram, sparsity.m)
    assert int((mask & ~refined).sum()) > 100
    assert int((refined != expected).any(1).sum()) <= 1


def test_the_shortlist_loses_little():
    """Short shortlists reduce the error nearly as much as long ones."""
    weight, mask, gram = case(0, 64, 256, Sparsity(0.5))

    def error(kept: torch.Tensor) -> float:
        missing = weight * kept
        return float(((missing @ gram) * missing).sum())

    short, long = (error(one_swap(mask, weight, weight, gram, shortlist=length)) for length in (SHORTLIST, 64))
    assert error(mask) - short > 0.97 * (error(mask) - long)


def test_rounding_stays_small_over_all_swaps():
    """The rounding error of the products after all swaps, against the smallest gain that counts."""
    weight, mask, gram = case(1, 16, 320, Sparsity(0.5))
    refined = one_swap(mask, weight, weight, gram)
    assert int((mask & ~refined).sum(1).max()) > 64
    assert int((mask & ~refined).sum(1).max()) < MOST_SWAPS, "rows end because no swap lowers the error"
    again = one_swap(refined, weight, weight, gram)
    assert int((again != refined).any(1).sum()) <= 1
