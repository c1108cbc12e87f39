"""SparseGPT: exact counts, an error below that of Wanda, and finite weights at any scale of the inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from barber.config import Sparsity
from barber.kernels.masks import check_pattern, initial_mask
from barber.kernels.scores import wanda
from barber.kernels.sparsegpt import InverseHessian, sparsegpt
from tests.kernels.generated import sparsities


@given(st.data(), sparsities, st.booleans())
@settings(max_examples=40)
def test_sparsegpt_is_exact(data, sparsity, dead):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    width = 12 * data.draw(st.integers(1, 3)) * (4 if sparsity.m == 16 else 2 if sparsity.m == 8 else 1)
    weight = torch.randn(6, width, generator=generator)
    x = torch.randn(200, width, generator=generator) @ torch.randn(width, width, generator=generator)
    if dead:
        x[:, 1] = 0
    updated, mask = sparsegpt(weight, InverseHessian.of(x.T @ x), sparsity)
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
    updated, _ = sparsegpt(weight, InverseHessian.of(x.T @ x), sparsity)
    mask = initial_mask(wanda(weight, x.square().sum(0)), sparsity, "row")
    error, other = ((x @ (w - weight).T).square().sum() for w in (updated, weight.masked_fill(mask, 0)))
    assert error < 0.8 * other


def test_sparsegpt_counts_per_128_columns():
    weight, x = torch.randn(5, 300), torch.randn(400, 300)
    _, mask = sparsegpt(weight, InverseHessian.of(x.T @ x), Sparsity(0.37))
    assert [int(part.sum()) for part in mask.split(128, dim=1)] == [236, 236, 81]


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("zeros", [0, 1])
def test_sparsegpt_of_a_single_weight_is_finite(size, zeros):
    weight, hessian = torch.tensor([[2.0]]), torch.tensor([[size]])
    updated, mask = sparsegpt(weight, InverseHessian.of(hessian), Sparsity(0.5), zeros)
    assert (updated.item(), mask.item()) == ((0.0, True) if zeros else (2.0, False))


@given(st.integers(0, 2**31), st.sampled_from([-60, -31, 30, 55]), st.sampled_from(["50%", "2:4"]))
@settings(max_examples=30)
def test_sparsegpt_does_not_depend_on_the_unit_of_the_inputs(seed, power, pattern):
    """Inputs times a power of two: the same mask and the same weights, every bit."""
    generator, sparsity = torch.Generator().manual_seed(seed), Sparsity.parse(pattern)
    weight, x = torch.randn(6, 24, generator=generator), torch.randn(100, 24, generator=generator)
    updated, mask = sparsegpt(weight, InverseHessian.of(x.T @ x), sparsity)
    other, same = sparsegpt(weight, InverseHessian.of((x.T @ x) * 4.0**power), sparsity)
    assert torch.equal(mask, same)
    assert torch.equal(updated, other)
