"""Saliency scores of weights: pure functions on (out, in) tensors, all in fp32.

Scores of initial masks are finite for all finite weights: an overflow becomes the largest finite number.
"""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor

RIA_POWER = 0.5  # exponent of the input's norm, as published

LARGEST = torch.finfo(torch.float32).max


def _norm(squares: Tensor) -> Tensor:
    """Norm of each input, (in,), clamped to be finite: zero times infinity would be NaN."""
    return squares.clamp(max=LARGEST).sqrt()


def magnitude(weight: Tensor) -> Tensor:
    """|W|, (out, in)."""
    return weight.float().abs()


def wanda(weight: Tensor, squares: Tensor) -> Tensor:
    """|W| * ||x||, (out, in) (Wanda, arXiv 2306.11695, eq. 1).

    squares: (in,) sums of squared inputs over all calibration tokens.
    """
    return weight.float().abs().mul_(_norm(squares)).clamp_(max=LARGEST)


def wandd(weight: Tensor, squares: Tensor) -> Tensor:
    """Wanda in derivative form, (out, in): |W| times the square root of half the second derivative of ||W x||^2 by W.

    That derivative is 2 * sum x^2 for every row, so the score equals Wanda's, as that of the published code does.
    """
    return wanda(weight, squares)


def ria(weight: Tensor, squares: Tensor) -> Tensor:
    """(|W| / row sum of |W| + |W| / column sum of |W|) * ||x||^0.5, (out, in) (RIA,
    "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024,
    https://openreview.net/forum?id=Tr0lPx9woF).

    squares: (in,) sums of squared inputs over all calibration tokens. The share of a row or column of zeros is 0.
    """
    size, tiny = weight.float().abs(), torch.finfo(torch.float32).tiny
    # The shares do not depend on the scale. A power of two scales exactly, and below 1 no sum overflows.
    _, exponent = size.amax().frexp()
    size = size.ldexp(-exponent)
    shares = size / size.sum(1, keepdim=True).clamp_min(tiny) + size / size.sum(0).clamp_min(tiny)
    return shares * _norm(squares).pow(RIA_POWER)


def random(weight: Tensor, name: str) -> Tensor:
    """Uniform in [0, 1), (out, in), independent of the weight: a baseline. The seed is the name, on every device."""
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(name.encode()).digest()[:4]))
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def weight_times_gradient(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """Saliency of the rebuild as published, (out, in) (LLM-Barber, arXiv 2408.10631).

    squared_gradient: (out, in), mean over the calibration sequences of the squared gradient of the sub-block's error.
    """
    return weight.float().abs() * squared_gradient.float().sqrt()


def weight_alone(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """|W| as the saliency of the rebuild, (out, in); the gradient is ignored."""
    return weight.float().abs()


def gradient_alone(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """The root of the mean squared gradient as the saliency of the rebuild, (out, in)."""
    return squared_gradient.float().sqrt()
