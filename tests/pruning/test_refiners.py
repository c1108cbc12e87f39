"""One-swap and DSnoT as tensor functions, on generated inputs and against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.config import Granularity, Sparsity
from barber.kernels.dsnot import CYCLES, SMALL, dsnot
from barber.kernels.masks import initial_mask
from barber.kernels.one_swap import LEAST_GAIN, one_swap
from barber.kernels.swap import swap_matrices


@st.composite
def rows(draw):
    """A weight (out, in), its mask, inputs (tokens, in) and m (0 for unstructured)."""
    m = draw(st.sampled_from([0, 2, 4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    width = (m or 1) * draw(st.integers(1, 3)) * 2
    weight = torch.randn(draw(st.integers(1, 6)), width, generator=generator)
    inputs = torch.randn(draw(st.integers(1, 40)), width, generator=generator) + draw(st.sampled_from([0.0, 0.7]))
    sparsity = Sparsity(0.5, m // 2, m) if m else Sparsity(draw(st.sampled_from([0.25, 0.5, 0.75])))
    return weight, initial_mask(weight.abs(), sparsity, "row"), inputs, m


def row_errors(weight: torch.Tensor, mask: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return (inputs.double() @ weight.masked_fill(~mask, 0).double().T).square().sum(0)


def same_counts(old: torch.Tensor, new: torch.Tensor, m: int) -> bool:
    width = m or old.shape[1]
    return torch.equal(old.unflatten(1, (-1, width)).sum(-1), new.unflatten(1, (-1, width)).sum(-1))


@given(rows())
@settings(max_examples=150)
def test_one_swap_ends_where_no_swap_of_a_row_helps(case):
    weight, mask, inputs, m = case
    refined = one_swap(mask, weight, weight, inputs.T @ inputs, m)
    assert same_counts(mask, refined, m)
    before, after = row_errors(weight, mask, inputs), row_errors(weight, refined, inputs)
    energy = (weight.square() @ inputs.square().sum(0)).double()
    assert bool((after <= before + 1e-4 * energy).all())
    for row in range(len(weight)):
        for grown in refined[row].nonzero().flatten().tolist():
            for cut in (~refined[row]).nonzero().flatten().tolist():
                if m and grown // m != cut // m:
                    continue
                other = refined[row].clone()
                other[grown], other[cut] = False, True
                error = row_errors(weight[row : row + 1], other[None], inputs)[0]
                assert error >= after[row] - (LEAST_GAIN + 1e-4) * energy[row]


def test_one_swap_makes_the_best_swap_first(monkeypatch):
    monkeypatch.setattr("barber.kernels.one_swap.MOST_SWAPS", 1)
    generator = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(5, 12, generator=generator), torch.randn(30, 12, generator=generator)
    mask = initial_mask(weight.abs(), Sparsity(0.5), "row")
    refined = one_swap(mask, weight, weight, inputs.T @ inputs)
    for row in range(5):
        best = row_errors(weight, mask, inputs)[row]
        for grown in mask[row].nonzero().flatten().tolist():
            for cut in (~mask[row]).nonzero().flatten().tolist():
                other = mask[row].clone()
                other[grown], other[cut] = False, True
                best = min(best, row_errors(weight[row : row + 1], other[None], inputs)[0])
        assert row_errors(weight, refined, inputs)[row].item() == pytest.approx(best.item(), rel=1e-4)


def test_one_swap_is_the_same_in_slices(monkeypatch):
    """A large matrix is processed in slices of rows."""
    generator = torch.Generator().manual_seed(5)
    weight, inputs = torch.randn(40, 24, generator=generator), torch.randn(60, 24, generator=generator)
    mask, gram = initial_mask(weight.abs(), Sparsity(0.5), "row"), inputs.T @ inputs
    whole = one_swap(mask, weight, weight, gram)
    assert not torch.equal(whole, mask)
    monkeypatch.setattr("barber.kernels.one_swap.portion", lambda device: 24 * 24)
    assert torch.equal(one_swap(mask, weight, weight, gram), whole)


def test_one_swap_grows_back_the_initialisers_values():
    """Kept weights count with the initialiser's values, pruned ones with their dense values."""
    dense = torch.tensor([[1.0, 2.0, 3.0]])
    values = torch.tensor([[1.0, 5.0, 3.0]])  # the second has a very different value
    mask = torch.tensor([[True, False, False]])
    refined = one_swap(mask, dense, values, torch.eye(3))
    assert refined.tolist() == [[False, True, False]]


def plain_dsnot(weight, mask, inputs, m):
    """DSnoT with plain loops, row by row."""
    mean, variance, squares = inputs.mean(0), inputs.var(0, correction=0), inputs.square().sum(0)
    result = mask.clone()
    for row in range(len(weight)):
        share, moved = weight[row] * mean, set()
        sign = torch.sign(sum((share[i] for i in mask[row].nonzero().flatten()), torch.tensor(0.0)))
        for _ in range(CYCLES):
            error = sum((share[i] for i in result[row].nonzero().flatten()), torch.tensor(0.0))
            pruned = [i for i in range(len(mean)) if result[row, i] and i not in moved]
            if abs(error) <= SMALL or not pruned:
                break
            grow = max(pruned, key=lambda i: sign * share[i] / max(variance[i], torch.finfo().tiny))
            kept = [i for i in range(len(mean)) if not result[row, i] and i not in moved]
            kept = [i for i in kept if (i // m == grow // m if m else share[i] * sign < 0)]
            if not kept:
                break
            cut = min(kept, key=lambda i: weight[row, i].abs() * squares[i].sqrt())
            if torch.sign(error - share[grow] + share[cut]) != sign:
                break
            result[row, grow], result[row, cut] = False, True
            moved |= {grow, cut}
    return result


@given(rows())
@settings(max_examples=150)
def test_dsnot_is_that_of_plain_loops(case):
    weight, mask, inputs, m = case
    mean, squares = inputs.mean(0), inputs.square().sum(0)
    variance = inputs.var(0, correction=0)
    refined = dsnot(mask, weight, mean, variance, squares, m)
    assert same_counts(mask, refined, m)
    assert torch.equal(refined, plain_dsnot(weight, mask, inputs, m))


@given(st.integers(0, 2**31), st.sampled_from(Granularity), st.sampled_from([0, 4]))
def test_several_thresholds_give_the_masks_of_each_alone(seed, granularity, m):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(3, 8, generator=generator), torch.rand(5, 8, generator=generator)]
    sparsity = Sparsity(0.5, 2, 4) if m else Sparsity(0.5)
    masks = [initial_mask(torch.rand(score.shape, generator=generator), sparsity, "matrix") for score in scores]
    thresholds = (0.0, 0.1, 0.5, 1.0)
    together = list(swap_matrices(masks, scores, thresholds, granularity, m))
    for threshold, result in zip(thresholds, together, strict=True):
        (alone,) = swap_matrices(masks, scores, [threshold], granularity, m)
        assert all(torch.equal(a, b) for a, b in zip(result.masks, alone.masks, strict=True))
        assert (result.candidates, result.swaps) == (alone.candidates, alone.swaps)
    assert [result.swaps for result in together] == sorted(result.swaps for result in together)
