"""ALPS and the refit: exact counts, errors that never rise, and the smallest error that a mask allows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.config import Sparsity
from barber.errors import UserError
from barber.kernels import sparsegpt as gpt
from barber.kernels.alps import ALPS_DAMPING, ScaledGram, alps, refit_on_support
from barber.kernels.masks import check_pattern, initial_mask
from barber.kernels.scores import magnitude, wanda
from barber.registry import INITIAL_MASKS
from tests.kernels.generated import sparsities


def layer(seed: int, rows: int, width: int, tokens: int, dead: bool = False):
    """A weight and the inputs of correlated features with a few large ones."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    x = torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)
    x = x * torch.rand(width, generator=generator).add(0.1).reciprocal()
    if dead:
        x[:, 1] = 0
    return weight, x


def damped_errors(weight: torch.Tensor, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The error of each row, in double precision, with the damping of ALPS and without dead inputs."""
    gram = x.double().T @ x.double()
    gram += ALPS_DAMPING * gram.diagonal().mean() * torch.eye(len(gram))
    missing = (weight - values).double() * (x != 0).any(0)
    return ((missing @ gram) * missing).sum(1)


@st.composite
def layers(draw, m: int = 0):
    width = draw(st.integers(1, 4)) * (m or 8)
    dead = width > 1 and draw(st.booleans())
    tokens = draw(st.sampled_from([1, 3, 20, 200]))
    return layer(draw(st.integers(0, 2**31)), draw(st.integers(1, 9)), width, tokens, dead)


@given(st.data(), sparsities)
@settings(max_examples=150)
def test_alps_is_exact_and_never_worse_than_its_start(data, sparsity):
    """For any inputs, also few tokens and dead inputs; its start is the mask of the smallest scaled weights."""
    weight, x = data.draw(layers(sparsity.m))
    zeros = None if sparsity.m else data.draw(st.one_of(st.none(), st.integers(0, weight.numel())))
    updated, mask = alps(weight, ScaledGram.of(x.T @ x), sparsity, zeros)
    assert (updated.dtype, updated.shape) == (torch.float32, weight.shape)
    assert bool(updated.isfinite().all())
    assert not bool(updated[mask].any())
    if sparsity.m:
        check_pattern(mask, sparsity, "weight")
    else:
        assert int(mask.sum()) == (sparsity.count(mask.numel()) if zeros is None else zeros)
    gram = (x.T @ x).double()
    scale = (gram.diagonal() + ALPS_DAMPING * gram.diagonal().mean()).sqrt() * (x != 0).any(0)
    size, within = weight.abs() * scale, "matrix"
    first = initial_mask(size, sparsity, within)
    if zeros is not None:
        first = torch.zeros_like(mask).view(-1).index_fill_(0, size.flatten().argsort()[:zeros], True).view_as(mask)
    begun = damped_errors(weight, weight.masked_fill(first, 0), x).sum()
    energy = damped_errors(weight, torch.zeros_like(weight), x).sum()
    assert damped_errors(weight, updated, x).sum() <= begun + 1e-5 * energy
    for dead in (~(x != 0).any(0)).nonzero().flatten():
        assert torch.equal(updated[:, dead], weight[:, dead].masked_fill(mask[:, dead], 0))


@pytest.mark.parametrize("pattern", ["50%", "60%", "2:4"])
@pytest.mark.parametrize("seed", range(3))
def test_alps_is_better_than_sparsegpt_wanda_and_magnitude(pattern, seed):
    """In the undamped error, which is the objective of all of them."""
    sparsity = Sparsity.parse(pattern)
    weight, x = layer(seed, 48, 192, 1500)

    def error(values: torch.Tensor) -> float:
        return float((x @ (values - weight).T).double().square().sum())

    updated, _ = alps(weight, ScaledGram.of(x.T @ x), sparsity)
    by_sparsegpt, _ = gpt.sparsegpt(weight, gpt.InverseHessian.of(x.T @ x), sparsity)
    scores = {"wanda": wanda(weight, x.square().sum(0)), "magnitude": magnitude(weight)}
    masks = {name: initial_mask(score, sparsity, "row") for name, score in scores.items()}
    assert error(updated) < 0.9 * error(by_sparsegpt)
    for other in masks.values():
        assert error(updated) < 0.5 * error(weight.masked_fill(other, 0))
        # The mask is better, too, not the weights alone.
        assert error(updated) < 0.9 * error(refit_on_support(weight, other, ScaledGram.of(x.T @ x)))


@given(st.data(), st.integers(0, 12))
@settings(max_examples=150)
def test_no_step_of_the_refit_raises_the_error_of_a_row(data, steps):
    """For any mask and any start; rows may be pruned as a whole or not at all."""
    weight, x = data.draw(layers())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    mask = torch.rand(weight.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    start = data.draw(st.sampled_from([None, torch.randn(weight.shape, generator=generator)]))
    refitted = refit_on_support(weight, mask, ScaledGram.of(x.T @ x), start, steps)
    assert not bool(refitted[mask].any())
    begun = damped_errors(weight, (weight if start is None else start).masked_fill(mask, 0), x)
    energy = damped_errors(weight, torch.zeros_like(weight), x) + begun
    assert bool((damped_errors(weight, refitted, x) <= begun + 1e-5 * energy).all())


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_refit_converges_to_the_smallest_error_of_its_mask(share):
    """Against the normal equations of every row, solved in double precision."""
    weight, x = layer(7, 12, 40, 300)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < share
    gram = x.double().T @ x.double()
    gram += ALPS_DAMPING * gram.diagonal().mean() * torch.eye(40)
    best = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept in enumerate(~mask):
        best[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row].double())
    refitted = refit_on_support(weight, mask, ScaledGram.of(x.T @ x), steps=200)
    torch.testing.assert_close(refitted.double(), best, rtol=1e-3, atol=1e-3)


def test_the_refit_continues_from_its_start():
    weight, x = layer(3, 12, 64, 500)
    curvature = ScaledGram.of(x.T @ x)
    mask = initial_mask(wanda(weight, x.square().sum(0)), Sparsity(0.5), "row")
    few = refit_on_support(weight, mask, curvature, steps=3)
    more = refit_on_support(weight, mask, curvature, few, steps=3)
    assert damped_errors(weight, more, x).sum() < damped_errors(weight, few, x).sum()


@given(st.data(), st.sampled_from([-60, -40, 40, 58]))
@settings(max_examples=30)
def test_the_unit_of_the_inputs_does_not_matter(data, power):
    """Nor does a single weight, or a single input."""
    seed, rows, width = (data.draw(st.integers(*limits)) for limits in [(0, 2**31), (1, 3), (1, 9)])
    weight, x = layer(seed, rows, width, 50)
    gram = x.T @ x / (x.T @ x).max()
    updated, mask = alps(weight, ScaledGram.of(gram), Sparsity(0.5))
    other, same = alps(weight, ScaledGram.of(gram * 4.0**power), Sparsity(0.5))
    assert torch.equal(mask, same)
    torch.testing.assert_close(updated, other)


@pytest.mark.parametrize("gram", [torch.zeros(4, 4), torch.ones(4, 4)])
def test_constant_inputs_do_not_fail(gram):
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    updated, mask = alps(weight, ScaledGram.of(gram), Sparsity(0.5))
    assert int(mask.sum()) == 2
    assert bool(updated.isfinite().all())
    if not gram.any():
        assert torch.equal(updated, weight.masked_fill(mask, 0))
    else:  # one input is all that is seen: its sum can be had with any two weights
        assert updated.sum().item() == pytest.approx(6, abs=0.3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_are_named(value):
    gram = torch.eye(3)
    gram[1, 1] = value
    with pytest.raises(UserError, match=r"layers\.3\.mlp\.up_proj"):
        ScaledGram.of(gram, "layers.3.mlp.up_proj")


def test_the_registry_finds_it():
    own = INITIAL_MASKS["alps"]
    assert own.call is alps
    assert (own.kind, own.within, own.statistic) == ("update", "matrix", "gram")
