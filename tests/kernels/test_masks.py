"""Properties of masks and swaps over generated inputs: exact counts, valid patterns, saliency that never falls."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.config import Granularity, Sparsity
from barber.errors import UserError
from barber.kernels.histogram import histogram
from barber.kernels.masks import check_pattern, initial_mask
from barber.kernels.scores import wanda, wandd
from barber.kernels.sparsegpt import Curvature, sparsegpt
from barber.kernels.swap import from_groups, swap_matrices, to_groups

PATTERNS = ["1:2", "2:4", "4:8", "1:4", "3:4", "8:16", "2:3"]
ratios = st.integers(1, 99).map(lambda percent: Sparsity(percent / 100))
sparsities = st.one_of(ratios, st.sampled_from(PATTERNS).map(Sparsity.parse))


@st.composite
def matrices(draw, count: int = 1, m: int = 1):
    """Random (out, in) matrices, one draw in three with many equal values, so that ties matter."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    coarse = draw(st.integers(0, 2)) == 0
    shapes = [(draw(st.integers(1, 9)), m * draw(st.integers(1, 6))) for _ in range(count)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [matrix.round() if coarse else matrix for matrix in made]


@given(st.data(), sparsities, st.sampled_from(["row", "matrix"]))
def test_initial_masks_are_exact(data, sparsity, within):
    (matrix,) = data.draw(matrices(m=sparsity.m or 1))
    scores = matrix.abs()
    mask = initial_mask(scores, sparsity, within)
    rows, width = scores.shape
    if sparsity.m:
        assert bool((mask.unflatten(1, (-1, sparsity.m)).sum(-1) == sparsity.n).all())
        groups = scores.reshape(-1, sparsity.m), mask.reshape(-1, sparsity.m)
    elif within == "row":
        assert mask.sum(1).tolist() == [math.floor(Fraction(str(sparsity.ratio)) * width)] * rows
        groups = scores, mask
    else:
        assert int(mask.sum()) == math.floor(Fraction(str(sparsity.ratio)) * rows * width)
        groups = scores.view(1, -1), mask.view(1, -1)
    for score, pruned in zip(*groups, strict=True):
        if pruned.any() and not pruned.all():
            assert score[pruned].max() <= score[~pruned].min()


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
    """With threshold 1 the rebuilt mask keeps the highest saliencies of each group, whatever it started from."""
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
    """The rule as it reads: pruned by falling, kept by rising saliency, the first of the pairs that gain change places.

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


@given(st.data(), st.sampled_from(Granularity), st.sampled_from([0, 2, 4]))
def test_grouping_is_reversible(data, granularity, m):
    weights = data.draw(matrices(count=3, m=m or 1))
    groups = to_groups(weights, granularity, m)
    back = from_groups(groups, [weight.shape for weight in weights], granularity, m)
    assert all(torch.equal(a, b) for a, b in zip(weights, back, strict=True))
    assert all(group.dim() == 3 for group in groups)
    assert all(group.shape[-1] == m for group in groups if m)


@given(st.data())
def test_wandd_ranks_as_wanda(data):
    (weight,) = data.draw(matrices())
    squares = torch.rand(weight.shape[1]) + 0.1
    torch.testing.assert_close(wanda(weight, squares), wandd(weight, squares))


@given(st.data(), sparsities, st.booleans())
@settings(max_examples=40)
def test_sparsegpt_is_exact(data, sparsity, dead):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    width = 12 * data.draw(st.integers(1, 3)) * (4 if sparsity.m == 16 else 2 if sparsity.m == 8 else 1)
    weight = torch.randn(6, width, generator=generator)
    x = torch.randn(200, width, generator=generator) @ torch.randn(width, width, generator=generator)
    if dead:
        x[:, 1] = 0
    updated, mask = sparsegpt(weight, Curvature.of(x.T @ x), sparsity)
    assert bool((updated[mask] == 0).all())
    if sparsity.m:
        check_pattern(mask, sparsity, "weight")
    else:
        assert int(mask.sum()) == sparsity.count(mask.numel())
    if dead:
        assert torch.equal(updated[:, 1], weight[:, 1].masked_fill(mask[:, 1], 0))


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_sparsegpt_reconstructs_better_than_wanda(pattern):
    generator, sparsity = torch.Generator().manual_seed(0), Sparsity.parse(pattern)
    weight = torch.randn(64, 256, generator=generator)
    x = torch.randn(2000, 256, generator=generator) @ torch.randn(256, 256, generator=generator)
    updated, _ = sparsegpt(weight, Curvature.of(x.T @ x), sparsity)
    mask = initial_mask(wanda(weight, x.square().sum(0)), sparsity, "row")
    error, other = ((x @ (w - weight).T).square().sum() for w in (updated, weight.masked_fill(mask, 0)))
    assert error < 0.8 * other


def test_sparsegpt_counts_per_128_columns():
    weight, x = torch.randn(5, 300), torch.randn(400, 300)
    _, mask = sparsegpt(weight, Curvature.of(x.T @ x), Sparsity(0.37))
    assert [int(part.sum()) for part in mask.split(128, dim=1)] == [236, 236, 81]


def fates(initial: torch.Tensor, rebuilt: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "kept": ~initial & ~rebuilt,
        "pruned": initial & rebuilt,
        "grown": initial & ~rebuilt,
        "cut": ~initial & rebuilt,
    }


@given(st.data(), st.integers(1, 300))
def test_histograms_count_every_weight_once(data, bins):
    (saliency,) = data.draw(matrices())
    saliency = saliency.abs()
    initial, rebuilt = torch.rand_like(saliency) < 0.5, torch.rand_like(saliency) < 0.5
    shown = histogram(saliency, initial, rebuilt, bins)
    assert len(shown["edges"]) == bins + 1
    assert all(left < right for left, right in pairwise(shown["edges"]))
    for fate, where in fates(initial, rebuilt).items():
        assert len(shown[fate]) == bins
        assert sum(shown[fate]) == int((where & (saliency > 0)).sum())
        assert shown["zeros"][fate] == int((where & (saliency == 0)).sum())


@given(st.integers(0, 2**31))
def test_histograms_are_those_of_numpy(seed):
    """Apart from the odd value so near an edge that rounding decides."""
    generator = torch.Generator().manual_seed(seed)
    saliency, one, other = torch.randn(3, 30, 40, generator=generator)
    initial, rebuilt = one < 0, other < 0
    saliency = (saliency * one * other).abs()
    shown = histogram(saliency, initial, rebuilt)
    logs = saliency.double().log10().numpy()
    assert shown["edges"] == pytest.approx(np.linspace(logs.min(), logs.max(), 49), abs=2e-6)
    for fate, where in fates(initial, rebuilt).items():
        expected, _ = np.histogram(logs[where.numpy()], bins=48, range=(logs.min(), logs.max()))
        assert np.abs(expected - shown[fate]).max() <= 1


@pytest.mark.parametrize("saliency", [[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, math.nan, 1e-45, math.inf]])
def test_histograms_of_no_spread_or_no_end(saliency):
    """Half precision has infinite gradients, and zero times infinity is no number: it counts as no saliency."""
    kept = torch.zeros(1, 4, dtype=torch.bool)
    shown = histogram(torch.tensor([saliency]), kept, kept)
    assert all(left < right < math.inf for left, right in pairwise(shown["edges"]))
    assert shown["zeros"]["kept"] == sum(not value > 0 for value in saliency)
    assert sum(shown["kept"]) == sum(value > 0 for value in saliency)


@pytest.mark.parametrize(
    ("text", "words"),
    [("0", "between 0 and 1"), ("1", "between 0 and 1"), ("nan", "between 0 and 1"), ("150%", "between 0 and 1"),
     ("4:2", "n < m"), ("0:4", "n < m"), ("2:0", "n < m"), ("x:y", "cannot be read"), ("", "cannot be read")],
)  # fmt: skip
def test_impossible_sparsities(text, words):
    with pytest.raises(UserError, match=words):
        Sparsity.parse(text)


def test_a_contradictory_ratio_is_refused():
    assert Sparsity(0.5, 2, 4) == Sparsity.parse("2:4")
    with pytest.raises(UserError, match="leave the ratio out"):
        Sparsity(0.6, 2, 4)


def test_counts_take_the_ratio_as_written():
    """0.29 * 100 is 28.999... in floating point; the user asked for 29."""
    assert Sparsity(0.29).count(100) == 29


@given(st.integers(1, 999))
def test_percentages_are_read_as_written(tenths):
    sparsity = Sparsity.parse(f"{tenths / 10}%")
    assert sparsity.count(1000) == tenths
    assert Sparsity.parse(str(sparsity)) == sparsity


def test_histograms_count_beyond_single_precision():
    """fp32 counts stop at 2^24."""
    saliency, kept = torch.ones(2**24 + 5, 1), torch.zeros(2**24 + 5, 1, dtype=torch.bool)
    assert sum(histogram(saliency, kept, kept)["kept"]) == 2**24 + 5
