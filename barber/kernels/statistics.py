"""Statistics of the inputs of a linear layer: pure functions of x (tokens, in)."""

from __future__ import annotations

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
    return torch.stack([torch.full_like(x[0], len(x)), x.sum(0), x.square().sum(0)])
