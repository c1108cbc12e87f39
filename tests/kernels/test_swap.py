"""Properties of swaps over generated inputs: exact counts, valid patterns, saliency that never falls."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.config import Granularity, Sparsity
from barber.kernels.masks import check_pattern, initial_mask
from barber.kernels.swap import from_groups, swap_matrices, to_groups
from tests.kernels.generated import PATTERNS, matrices, with_nonfinite


@given(
    st.data(),
    st.sampled_from(Granularity),
    st.floats(0, 1, width=32),
    st.one_of(st.just(None), st.sampled_from(PATTERNS)),
)
@settings(max_examples=300)
def test_swaps_keep_counts_and_gain_saliency(data, granularity, threshold, pattern):
    sparsity = Sparsity.parse(pattern) if pattern else Sparsity(0.5)
    weights = data.draw(matrices(count=2, m=sparsity.m or 1))
    saliencies = [weight.abs() * torch.rand_like(weight) for weight in weights]
    masks = [initial_mask(weight.abs(), sparsity, "matrix") for weight in weights]
    (result,) = swap_matrices(masks, saliencies, [threshold], granularity, sparsity.m)
    rebuilt, candidates, swaps = result.masks, result.candidates, result.swaps
    assert 0 <= swaps <= candidates
    assert swaps <= threshold * candidates + 1e-3
    grown = sum(int((old & ~new).sum()) for old, new in zip(masks, rebuilt, strict=True))
    cut = sum(int((~old & new).sum()) for old, new in zip(masks, rebuilt, strict=True))
    assert grown == cut == swaps
    kept = [
        sum(float(s[~m].double().sum()) for s, m in zip(saliencies, which, strict=True)) for which in (masks, rebuilt)
    ]
    assert kept[1] > kept[0] if swaps else kept[1] == kept[0]
    for old, new in zip(masks, rebuilt, strict=True):
        if sparsity.m:
            check_pattern(new, sparsity, "weight")
        elif granularity is Granularity.OUTPUT:
            assert torch.equal(old.sum(1), new.sum(1))
        elif granularity is Granularity.INPUT:
            assert torch.equal(old.sum(0), new.sum(0))
        elif granularity is Granularity.LAYER:
            assert old.sum() == new.sum()


@given(st.data(), st.one_of(st.just(None), st.sampled_from(PATTERNS)))
def test_all_swaps_give_the_best_mask(data, pattern):
    """With threshold 1 the rebuilt mask keeps the largest saliencies of each group, from any initial mask."""
    sparsity = Sparsity.parse(pattern) if pattern else Sparsity(0.5)
    saliency = data.draw(matrices(m=sparsity.m or 1))[0].abs()
    start = initial_mask(torch.rand_like(saliency), sparsity, "matrix")
    (result,) = swap_matrices([start], [saliency], [1.0], Granularity.LAYER, sparsity.m)
    (rebuilt,) = result.masks
    best = initial_mask(saliency, sparsity, "matrix")
    assert math.isclose(saliency[~rebuilt].sum(), saliency[~best].sum(), abs_tol=1e-4)


@given(
    st.data(), st.sampled_from([Granularity.BLOCK, Granularity.LAYER]), st.integers(1, 9), st.sampled_from([1, 1e-4])
)
def test_swaps_are_those_of_sorted_pairs(data, granularity, tenths, spread):
    """The rule as published: pruned by falling, kept by rising saliency, and the first gaining pairs are swapped.

    With a small spread no two saliencies differ in bfloat16, in which the search for the pairs begins.
    """
    saliency = 1 + spread * data.draw(matrices())[0].abs()
    mask = torch.rand_like(saliency) < 0.5
    (result,) = swap_matrices([mask], [saliency], [tenths / 10], granularity, 0)
    flat, new = saliency.flatten(), mask.flatten().clone()
    pruned, kept = (flat.masked_fill(~new, -1).argsort(descending=True, stable=True)[: int(new.sum())],
                    flat.masked_fill(new, 9).argsort(stable=True)[: int((~new).sum())])  # fmt: skip
    candidates = sum(bool(flat[grow] > flat[cut]) for grow, cut in zip(pruned, kept, strict=False))
    swaps = tenths * candidates // 10
    new[pruned[:swaps]], new[kept[:swaps]] = False, True
    assert (result.candidates, result.swaps) == (candidates, swaps)
    assert torch.equal(result.masks[0].flatten(), new)


@given(
    st.data(),
    st.sampled_from(Granularity),
    st.one_of(st.just(None), st.sampled_from(PATTERNS)),
    st.sampled_from([2, 7, 1000]),
)
def test_the_curve_has_the_gains_of_all_pairs(data, granularity, pattern, points):
    """The gains of the pairs that threshold 1 swaps add up to the saliency that it gains."""
    sparsity = Sparsity.parse(pattern) if pattern else Sparsity(0.5)
    weights = data.draw(matrices(count=2, m=sparsity.m or 1))
    saliencies = [weight.abs() * torch.rand_like(weight) for weight in weights]
    masks = [initial_mask(weight.abs(), sparsity, "matrix") for weight in weights]
    few, every = (
        next(swap_matrices(masks, saliencies, [1.0], granularity, sparsity.m, most)) for most in (points, 10**6)
    )
    ranks, gains = every.curve
    assert ranks.tolist() == list(range(1, every.candidates + 1))
    assert torch.equal(gains, gains.sort(descending=True).values)
    kept = [
        sum(float(s[~m].double().sum()) for s, m in zip(saliencies, which, strict=True))
        for which in (masks, every.masks)
    ]
    assert math.isclose(gains.double().sum(), kept[1] - kept[0], abs_tol=1e-4)
    some, chosen = few.curve
    assert len(some) == min(points, every.candidates)
    assert torch.equal(chosen, gains[some - 1])
    assert not len(some) or (int(some[0]), int(some[-1])) == (1, every.candidates)


@given(st.data(), st.sampled_from(Granularity), st.sampled_from([0, 2, 4]))
def test_grouping_is_reversible(data, granularity, m):
    weights = data.draw(matrices(count=3, m=m or 1))
    groups = to_groups(weights, granularity, m)
    back = from_groups(groups, [weight.shape for weight in weights], granularity, m)
    assert all(torch.equal(a, b) for a, b in zip(weights, back, strict=True))
    assert all(group.dim() == 3 for group in groups)
    assert all(group.shape[-1] == m for group in groups if m)


@given(
    st.data(),
    st.sampled_from(Granularity),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.one_of(st.just(None), st.sampled_from(PATTERNS)),
)
@settings(max_examples=300)
def test_swaps_keep_counts_for_any_saliency(data, granularity, threshold, pattern):
    """NaN counts as saliency zero: such a weight may be cut and is never grown."""
    sparsity = Sparsity.parse(pattern) if pattern else Sparsity(0.5)
    weights = data.draw(matrices(count=2, m=sparsity.m or 1))
    masks = [initial_mask(weight.abs(), sparsity, "matrix") for weight in weights]
    saliencies = [data.draw(with_nonfinite(weight)).abs() for weight in weights]
    (result,) = swap_matrices(masks, saliencies, [threshold], granularity, sparsity.m)
    for old, new, saliency in zip(masks, result.masks, saliencies, strict=True):
        assert not bool((old & ~new & saliency.isnan()).any())
        if sparsity.m:
            check_pattern(new, sparsity, "weight")
        elif granularity is not Granularity.BLOCK:
            dim = {Granularity.OUTPUT: 1, Granularity.INPUT: 0}.get(granularity)
            assert torch.equal(old.sum(dim), new.sum(dim))
    grown = sum(int((old & ~new).sum()) for old, new in zip(masks, result.masks, strict=True))
    assert grown == result.swaps <= result.candidates
    assert sum(map(torch.sum, masks)) == sum(map(torch.sum, result.masks))
    zeroed = [saliency.nan_to_num(0.0, posinf=torch.inf) for saliency in saliencies]
    (same,) = swap_matrices(masks, zeroed, [threshold], granularity, sparsity.m)
    assert all(torch.equal(a, b) for a, b in zip(result.masks, same.masks, strict=True))
