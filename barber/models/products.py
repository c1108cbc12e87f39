"""Matrix products in 16 bits, which some CPUs have no instructions for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = (F.linear, torch.addmm)  # of nn.Linear, and of GPT-2's Conv1D


def slow_dtypes() -> set[torch.dtype]:
    """The dtypes in which this CPU multiplies matrices several times more slowly than in float32."""
    bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {torch.float16} if bfloat16 else {torch.float16, torch.bfloat16}


@contextmanager
def fast_products(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside the context, linear layers make their products in float32 if a CPU is slow in the dtype.

    The inputs and weights are those of the dtype, and each sum is rounded to it once.
    """
    if device.type == "cpu" and dtype in slow_dtypes():
        with _ByFloat32():
            yield
    else:
        yield


class _ByFloat32(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtypes = {value.dtype for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if func not in PRODUCTS or dtypes not in ({torch.bfloat16}, {torch.float16}):
            return func(*args, **kwargs)
        return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()}).to(dtypes.pop())


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value
