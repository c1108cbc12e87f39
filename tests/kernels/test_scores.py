"""Scores of initial masks: equal rankings, and finite values for weights and inputs of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.kernels.scores import ria, wanda, wandd
from barber.kernels.statistics import squares
from tests.kernels.generated import matrices


@given(st.data())
def test_wandd_ranks_as_wanda(data):
    (weight,) = data.draw(matrices())
    squares = torch.rand(weight.shape[1]) + 0.1
    torch.testing.assert_close(wanda(weight, squares), wandd(weight, squares))


SIZES = [0.0, 1e-30, 1e-10, 1.0, 1e10, 1e20, 1e30]


@given(st.data(), st.sampled_from([wanda, wandd, ria]))
@settings(max_examples=200)
def test_scores_are_finite_where_squares_overflow(data, score):
    """Inputs and weights of all sizes, some zero; a zero weight never has a larger score than another."""
    (weight,) = data.draw(matrices())
    rows, columns = weight.shape
    weight *= torch.tensor(data.draw(st.lists(st.sampled_from(SIZES), min_size=columns, max_size=columns)))
    weight *= torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 1.0, 1e8]), min_size=rows, max_size=rows)))[:, None]
    inputs = torch.randn(20, columns, generator=torch.Generator().manual_seed(0))
    inputs *= torch.tensor(data.draw(st.lists(st.sampled_from(SIZES), min_size=columns, max_size=columns)))
    scores = score(weight, squares(inputs))
    assert bool(scores.isfinite().all())
    assert bool((scores >= 0).all())
    assert not bool(scores[weight == 0].any())


@given(st.data(), st.sampled_from([-100, -60, 60, 90, 120]))
def test_ria_does_not_depend_on_the_unit_of_the_weights(data, power):
    """Powers of two change no digit, and the sums of large weights would overflow."""
    (weight,) = data.draw(matrices())
    total = torch.rand(weight.shape[1])
    assert torch.equal(ria(weight, total), ria(weight * 2.0**power, total))


@pytest.mark.parametrize("score", [wanda, ria])
def test_inputs_that_overflow_count_as_the_largest(score):
    scores = score(torch.tensor([[1.0, 1.0, 2.0]]), squares(torch.tensor([[1e15, 1e30, 1e30]])))
    assert scores[0].argsort().tolist() == [0, 1, 2]
