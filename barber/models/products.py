"""Products of 16-bit matrices on processors that have no instructions for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = (F.linear, torch.addmm)  # of nn.Linear, and of GPT-2's Conv1D


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


class _ByFloat32(TorchFunctionMode):
    """Makes products of 16-bit matrices in fp32, in which each product of two numbers is exact, and rounds the sums."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtypes = {value.dtype for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if func not in PRODUCTS or dtypes not in ({torch.bfloat16}, {torch.float16}):
            return func(*args, **kwargs)
        return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()}).to(dtypes.pop())


def has_half_products(device: torch.device) -> bool:
    """Whether the device multiplies 16-bit matrices as fast as fp32: x86 processors do so from AVX-512 on."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Inside the context, products of 16-bit matrices are made in fp32, and rounded, where that is faster."""
    if has_half_products(device):
        yield
    else:
        with _ByFloat32():
            yield
