"""SparseGPT (arXiv 2301.00774): an initial mask with updates of the kept weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from barber.config import Sparsity
from barber.errors import UserError
from barber.kernels.masks import BLOCK_COLUMNS, prune_smallest

DAMPING = 0.01  # share of the mean diagonal, as published


def inverse_factor(hessian: Tensor, name: str) -> Tensor:
    """Upper Cholesky factor (in, in) of the inverse of the damped Hessian, fp32, as published.

    While the Hessian is not positive definite in fp32, the damping is multiplied by ten, at most five times.
    Raises UserError after that.
    """
    damping = DAMPING * hessian.diagonal().mean()
    for _ in range(6):
        factor, failed = torch.linalg.cholesky_ex(hessian + damping * torch.eye(len(hessian), device=hessian.device))
        if not failed:
            inverse: Tensor
            inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return inverse
        damping = 10 * damping
    raise UserError(
        f"The Hessian of {name} cannot be inverted: its inputs vary too little: give more calibration data."
    )


@dataclass(frozen=True)
class InverseHessian:
    """The inverse Hessian of a weight's inputs, computed once for all weights that share them.

    Attributes:
        factor: (in, in), see `inverse_factor`.
        dead: bool (in,), inputs that are always zero.
    """

    factor: Tensor
    dead: Tensor

    @classmethod
    def of(cls, hessian: Tensor, name: str = "weight") -> InverseHessian:
        """hessian: (in, in), sum of x x^T over the calibration tokens, any positive scale; name: for the message."""
        hessian = hessian.float().clone()
        dead = hessian.diagonal() == 0
        hessian[dead, dead] = 1
        # Scaling by a power of four is exact for the factor, and avoids overflow and underflow.
        hessian *= 4.0 ** min(-(math.frexp(hessian.diagonal().max())[1] // 2), 63)
        return cls(inverse_factor(hessian, name), dead)


def sparsegpt(
    weight: Tensor, inputs: InverseHessian, sparsity: Sparsity, zeros: int | None = None
) -> tuple[Tensor, Tensor]:
    """Prune and update one weight matrix (SparseGPT, arXiv 2301.00774, algorithm 1).

    weight: (out, in). Unstructured sparsity prunes exactly `sparsity.count` weights of every 128 columns; n:m prunes n
    weights of every m consecutive inputs. Weights of inputs that are always zero are pruned first; those that are kept
    do not change. zeros: with unstructured sparsity, the count for the whole matrix, distributed evenly over the blocks
    of columns, in place of `sparsity.count`.
    Returns the updated weight in fp32, zero where pruned, and its mask, True = pruned.
    """
    original = weight.float().contiguous()
    updated, factor, dead = original.clone(), inputs.factor, inputs.dead
    updated[:, dead] = 0
    width = max(BLOCK_COLUMNS // sparsity.m, 1) * sparsity.m if sparsity.m else BLOCK_COLUMNS
    mask = torch.zeros_like(updated, dtype=torch.bool)
    for start in range(0, updated.shape[1], width):
        columns = slice(start, min(start + width, updated.shape[1]))
        inverse, pruned = factor[columns, columns], mask[:, columns]
        if not sparsity.m:
            scores = (updated[:, columns] / inverse.diagonal()).abs().view(1, -1)
            count = sparsity.count(scores.numel())
            if zeros is not None:
                count = zeros * columns.stop // updated.shape[1] - zeros * start // updated.shape[1]
            pruned |= prune_smallest(scores, count).view_as(pruned)
        block = updated[:, columns].T.contiguous()  # (in, out), since the loop works column by column
        errors = torch.zeros_like(block)
        for i in range(len(block)):
            if sparsity.m and i % sparsity.m == 0:
                group = slice(i, i + sparsity.m)
                scores = (block[group].T / inverse.diagonal()[group]).abs()
                pruned[:, group] = prune_smallest(scores, sparsity.n)
            errors[i] = torch.where(pruned[:, i], block[i], 0) / inverse[i, i]
            block[i:] -= inverse[i, i:, None] * errors[i]
        updated[:, columns] = block.T
        updated[:, columns.stop :] -= errors.T.contiguous() @ factor[columns, columns.stop :]
    updated[:, dead] = original[:, dead]
    return updated.masked_fill(mask, 0), mask
