"""Products of 16-bit matrices in float32: their rounding, their gradients, and when they are made."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from barber.models import products
from barber.models.products import fast_products
from barber.models.replay import Call, call_module

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture
def slow(monkeypatch) -> set[torch.dtype]:
    """The dtypes that this CPU is taken to be slow in."""
    dtypes = set(HALVES)
    monkeypatch.setattr(products, "slow_dtypes", lambda: dtypes)
    return dtypes


def inputs(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(50, 300, generator=torch.Generator().manual_seed(1)).to(dtype)


def linear(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    """A linear layer of 300 inputs and 40 outputs."""
    torch.manual_seed(0)
    return (nn.Linear(300, 40) if kind is nn.Linear else Conv1D(40, 300)).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_sums_are_fp32_and_rounded_once(slow, kind, dtype):
    with fast_products(CPU, dtype):
        made = linear(kind, dtype)(inputs(dtype))
    assert made.dtype == dtype
    assert torch.equal(made, linear(kind, dtype).float()(inputs(dtype).float()).to(dtype))


def test_gradients_have_the_dtype_of_the_weights(slow):
    module, x = linear(nn.Linear, torch.bfloat16), inputs(torch.bfloat16)
    call_module(module, Call((x,), {})).float().sum().backward()
    assert module.weight.grad.dtype == torch.bfloat16
    expected = x.float().sum(0).expand(40, 300)
    torch.testing.assert_close(module.weight.grad.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("given", [set(), {torch.bfloat16}])
def test_only_the_slow_dtypes_are_replaced(slow, given):
    """The tensors that a product keeps for its gradient have the dtype it was made in."""
    slow.intersection_update(given)
    kept: list[torch.dtype] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.dtype)
        return tensor

    module, x = linear(nn.Linear, torch.bfloat16), inputs(torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call_module(module, Call((x,), {}))
    assert set(kept) == {torch.float32 if given else torch.bfloat16}
