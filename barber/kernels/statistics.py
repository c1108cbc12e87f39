"""Statistics of the inputs of a linear layer: pure functions of x (tokens, in)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def squares(x: Tensor) -> Tensor:
    """Sum of the squares of each input of x (tokens, in): fp32 (in,)."""
    return x.float().square().sum(0)


def gram(x: Tensor) -> Tensor:
    """x^T x of the inputs x (tokens, in): fp32 (in, in)."""
    return x.float().T @ x.float()


def moments(x: Tensor) -> Tensor:
    """Count, sum and sum of squares of each input of x (tokens, in): fp32 (3, in)."""
    x = x.float()
    return torch.stack([x.new_full(x.shape[1:], len(x)), x.sum(0), x.square().sum(0)])


def squares_of(statistic: str, total: Tensor) -> Tensor:
    """Sums of squared inputs, fp32 (in,), from the sum of any statistic by its name."""
    return {"squares": lambda: total, "gram": total.diagonal, "moments": lambda: total[2]}[statistic]()


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {"squares": squares, "gram": gram, "moments": moments}
