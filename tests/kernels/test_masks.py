"""Initial masks of generated scores: exact counts and valid patterns for any scores."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from barber.config import Sparsity
from barber.errors import UserError
from barber.kernels.masks import initial_mask, prune_smallest, smallest_by_row
from tests.kernels.generated import matrices, sparsities, with_nonfinite


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


@given(st.data(), sparsities, st.sampled_from(["row", "matrix"]))
def test_initial_masks_are_exact_for_any_scores(data, sparsity, within):
    """NaN counts as the smallest score."""
    (matrix,) = data.draw(matrices(m=sparsity.m or 1))
    scores = data.draw(with_nonfinite(matrix))
    mask = initial_mask(scores, sparsity, within)
    width = sparsity.m or (scores.shape[1] if within == "row" else scores.numel())
    assert bool((mask.view(-1, width).sum(1) == sparsity.count(width)).all())
    assert torch.equal(mask, initial_mask(scores.nan_to_num(-torch.inf, torch.inf, -torch.inf), sparsity, within))


@given(st.data(), st.integers(60, 200))
def test_large_groups_and_rows_are_exact_for_any_scores(data, columns):
    """Groups above SMALL_GROUP take another code path, and counts given for one weight a third."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    scores = data.draw(with_nonfinite(torch.rand(3, columns, generator=generator)))
    zeros = data.draw(st.integers(0, columns))
    assert prune_smallest(scores, zeros).sum(1).tolist() == [zeros] * 3
    assert int(smallest_by_row(scores, 3 * columns - 1).sum()) == 3 * columns - 1


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
