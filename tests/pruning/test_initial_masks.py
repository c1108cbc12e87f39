"""RIA, the random control, and a given count for one weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.config import Sparsity
from barber.kernels.masks import check_pattern, prune_smallest, smallest_by_row, zero_count
from barber.kernels.scores import random, ria
from barber.kernels.sparsegpt import InverseHessian, sparsegpt
from barber.kernels.statistics import STATISTICS
from barber.pruning.initial_masks import mask_of
from barber.registry import INITIAL_MASKS


def matrix(data, rows: int = 9, columns: int = 12) -> torch.Tensor:
    """A random matrix (out, in), one draw in three with many equal values and zeros."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    made = torch.randn(data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns)), generator=generator)
    return made.round() if data.draw(st.integers(0, 2)) == 0 else made


@given(st.data())
def test_ria_is_the_formula_of_the_paper(data):
    """Against plain loops; a row or a column of zeros has the score zero."""
    weight = matrix(data)
    squares = torch.rand(weight.shape[1]) * 9
    if data.draw(st.booleans()):
        weight[:, 0] = 0
    if data.draw(st.booleans()):
        weight[0] = 0
    scores = ria(weight, squares)
    size = [[abs(value) for value in row] for row in weight.tolist()]
    for i, row in enumerate(size):
        for j, value in enumerate(row):
            column = sum(other[j] for other in size)
            share = value / sum(row) + value / column if value else 0
            assert scores[i, j].item() == pytest.approx(share * squares[j].item() ** 0.5**2, rel=1e-5)


def test_ria_compares_the_whole_matrix():
    """As the published code does by default: one row can lose more than another."""
    weight, squares = torch.tensor([[1.0, 1.0, 1.0, 1.0], [9.0, 0.1, 0.1, 0.1]]), torch.ones(4)
    mask, _ = mask_of(weight, INITIAL_MASKS["ria"], squares, "weight", Sparsity(0.38))
    assert mask.tolist() == [[False] * 4, [False, True, True, True]]


def test_random_masks_repeat_and_differ_between_weights():
    weight = torch.randn(40, 50)
    assert torch.equal(random(weight, "layers.0.a"), random(-weight, "layers.0.a"))
    names = [f"layers.{i}.a" for i in (0, 1, 0)]
    masks = [mask_of(weight, INITIAL_MASKS["random"], None, name, Sparsity(0.5))[0] for name in names]
    assert torch.equal(masks[0], masks[2])
    assert 0.4 < (masks[0] == masks[1]).float().mean() < 0.6
    state = torch.random.get_rng_state()
    random(weight, "layers.2.a")
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not changed"


def test_the_random_seed_is_stable():
    """The first scores of a fixed name, so that masks of earlier runs are reproducible."""
    assert random(torch.empty(1, 3), "layers.0.mlp.up_proj")[0].tolist() == pytest.approx(
        [0.892064, 0.46626, 0.250369], abs=1e-6
    )


@pytest.mark.parametrize("method", INITIAL_MASKS)
@given(data=st.data())
@settings(max_examples=25)
def test_a_count_for_one_weight_is_kept(method, data):
    """From none to all but one, on any shape; and uniform sparsity prunes the count that the method reports."""
    weight = matrix(data, 7, 160)
    x = torch.randn(300, weight.shape[1], generator=torch.Generator().manual_seed(0))
    own = INITIAL_MASKS[method]
    statistic = STATISTICS[own.statistic](x) if own.statistic else None
    prepared = own.prepare_call(statistic, "weight")
    zeros = data.draw(st.integers(0, weight.numel() - 1))
    mask, updated = mask_of(weight, own, prepared, "weight", Sparsity(0.5), zeros)
    assert int(mask.sum()) == zeros
    assert updated is None or bool((updated[mask] == 0).all())
    sparsity = Sparsity(data.draw(st.integers(1, 99)) / 100)
    mask, _ = mask_of(weight, own, prepared, "weight", sparsity)
    assert int(mask.sum()) == zero_count(*weight.shape, sparsity, own.within)


@pytest.mark.parametrize("method", ["ria", "random"])
@pytest.mark.parametrize("pattern", ["1:2", "2:4", "4:8", "2:3"])
def test_patterns_are_kept(method, pattern):
    sparsity = Sparsity.parse(pattern)
    mask, _ = mask_of(torch.randn(5, 48), INITIAL_MASKS[method], torch.rand(48), "weight", sparsity)
    check_pattern(mask, sparsity, "weight")


@given(st.data())
def test_rows_share_a_count_evenly(data):
    """Rows differ by at most one, each prunes its smallest, and the extra ones are the smallest that come next."""
    scores = matrix(data).abs()
    zeros = data.draw(st.integers(0, scores.numel() - 1))
    mask, (each, more) = smallest_by_row(scores, zeros), divmod(zeros, len(scores))
    assert sorted(mask.sum(1).tolist()) == [each] * (len(scores) - more) + [each + 1] * more
    for row, pruned in zip(scores, mask, strict=True):
        assert torch.equal(pruned, prune_smallest(row[None], int(pruned.sum()))[0])
    following = [sorted(row)[each] for row in scores.tolist()] if more else []
    extra = mask.sum(1) > each
    assert not more or max(f for f, e in zip(following, extra, strict=True) if e) <= min(
        f for f, e in zip(following, extra, strict=True) if not e
    )


def test_sparsegpt_shares_a_count_evenly_over_its_blocks():
    weight, x = torch.randn(5, 300), torch.randn(400, 300)
    _, mask = sparsegpt(weight, InverseHessian.of(x.T @ x), Sparsity(0.5), zeros=1000)
    assert [int(part.sum()) for part in mask.split(128, dim=1)] == [426, 427, 147]
