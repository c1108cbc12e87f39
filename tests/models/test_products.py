"""Products of 16-bit matrices in fp32: their rounding, gradients, and where they are made."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from barber.models.products import fast_products, has_half_products
from barber.models.replay import Call, call_module

CPU = torch.device("cpu")


@pytest.fixture(params=["AVX2", "AVX512"])
def capability(request, monkeypatch) -> str:
    """A processor without and one with products of 16-bit matrices."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def linear(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    """A linear layer of 300 inputs and 40 outputs; Conv1D gets them in the other order."""
    torch.manual_seed(0)
    return (nn.Linear(300, 40) if kind is nn.Linear else Conv1D(40, 300)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_sums_are_fp32_and_rounded_once(monkeypatch, kind, dtype):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    module, x = linear(kind, dtype), numbers(50, 300, dtype=dtype)
    with fast_products(CPU):
        made = module(x)
    assert made.dtype == dtype
    assert torch.equal(made, linear(kind, dtype).float()(x.float()).to(dtype))


def test_gradients_have_the_dtype_of_the_weights(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    module, x = linear(nn.Linear, torch.bfloat16), numbers(50, 300, dtype=torch.bfloat16)
    call_module(module, Call((x,), {})).float().sum().backward()
    assert module.weight.grad.dtype == torch.bfloat16
    expected = x.float().sum(0).expand(40, 300)
    torch.testing.assert_close(module.weight.grad.float(), expected, rtol=1e-2, atol=1e-2)


def test_the_processor_decides(capability):
    """The tensors that a product keeps for its gradient have the dtype it was made in."""
    assert has_half_products(CPU) == (capability == "AVX512")
    assert has_half_products(torch.device("cuda"))
    kept: list[torch.dtype] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.dtype)
        return tensor

    with fast_products(CPU), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear(nn.Linear, torch.bfloat16)(numbers(50, 300, dtype=torch.bfloat16))
    assert set(kept) == {torch.bfloat16 if capability == "AVX512" else torch.float32}
