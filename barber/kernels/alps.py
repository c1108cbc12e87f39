"""ALPS (arXiv 2406.07831): the mask and the weights of a layer together by ADMM, then the best weights for that mask.

Both lower the layer's error, ||(W - V) X||^2 over the calibration inputs X for pruned values V, on the damped gram
matrix X X^T of inputs that are scaled so that its diagonal is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from barber.config import Sparsity
from barber.errors import UserError
from barber.kernels.masks import prune_smallest

DAMPING = 0.01  # share of the mean diagonal, as published

FIRST_PENALTY = 0.1  # as published, for a gram matrix of unit diagonal

EVERY = 3  # iterations from one look at the support to the next, as published

RAISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # more of the support changed than this: the penalty times that

MOST_ITERATIONS = 300  # as published

REFIT_STEPS = 10  # of conjugate gradient, as published


@dataclass(frozen=True)
class Curvature:
    """What ALPS needs to know of the inputs of a weight, made once for all weights that share them.

    Attributes:
        gram: fp32 (in, in), damped, of the scaled inputs: its diagonal is one.
        scale: (in,), what an input is divided by, up to a common factor.
        dead: bool (in,), inputs that are always zero.
    """

    gram: Tensor
    scale: Tensor
    dead: Tensor

    @classmethod
    def of(cls, gram: Tensor, name: str = "weight") -> Curvature:
        """gram: (in, in), sum of x x^T over the calibration tokens, any positive scale; name: for the message."""
        largest = gram.diagonal().amax()
        gram = gram.float() / torch.where(largest > 0, largest, 1)
        dead = gram.diagonal() == 0
        scale = (gram.diagonal() + DAMPING * gram.diagonal().mean()).sqrt()
        scale.masked_fill_(scale == 0, 1)  # where all inputs are dead
        gram = gram.div_(scale[:, None]).div_(scale)
        gram.diagonal().fill_(1)
        if not bool(gram.isfinite().all()):
            raise UserError(f"The inputs of {name} are not finite: run the model in float32 or bfloat16.")
        return cls(gram, scale, dead)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (in,) and eigenvectors (in, in), in columns, of the gram matrix; computed when first used."""
        values, vectors = torch.linalg.eigh(self.gram)
        return values.clamp_min_(0), vectors

    def scaled(self, weight: Tensor) -> Tensor:
        """A weight (out, in) for the scaled inputs, fp32, zero at dead ones."""
        return (weight.float() * self.scale).masked_fill_(self.dead, 0).contiguous()

    def error(self, difference: Tensor) -> float:
        """Sum of the squared outputs of a scaled weight (out, in) on the damped inputs, up to a common factor."""
        return (difference @ self.gram).mul_(difference).sum(dtype=torch.float64).item()


@torch.no_grad()
def alps(weight: Tensor, curvature: Curvature, sparsity: Sparsity, zeros: int | None = None) -> tuple[Tensor, Tensor]:
    """Prune and update one weight (algorithm 1 of the paper, then its algorithm 2).

    weight: (out, in). Unstructured sparsity prunes exactly `sparsity.count` of the matrix, or `zeros` of it; n:m as
    usual. An input that is always zero counts as the least important, and its weights are left as they are where they
    are kept. The error on the damped inputs is never above that of pruning the smallest scaled weights.
    Returns the updated weight in fp32, zero where pruned, and its mask, True = pruned.
    """
    dense = curvature.scaled(weight)
    first = _smallest(dense, sparsity, zeros)
    mask, values = _admm(dense, first, curvature, sparsity, zeros)
    updated = refit_on_support(weight, mask, curvature, values / curvature.scale)
    reached = curvature.error(dense - curvature.scaled(updated))
    if not reached <= curvature.error(dense.masked_fill(~first, 0)):
        return refit_on_support(weight, first, curvature), first
    return updated, mask


def _smallest(scaled: Tensor, sparsity: Sparsity, zeros: int | None) -> Tensor:
    """Mask (out, in) of the smallest weights of each m inputs, or of the matrix."""
    width = sparsity.m or scaled.numel()
    count = sparsity.count(width) if sparsity.m or zeros is None else zeros
    return prune_smallest(scaled.abs().view(-1, width), count).view(scaled.shape)


def _admm(
    dense: Tensor, mask: Tensor, curvature: Curvature, sparsity: Sparsity, zeros: int | None
) -> tuple[Tensor, Tensor]:
    """The mask (out, in) at which the support comes to rest, and the values with these zeros, all for scaled inputs.

    The weights W are free and pay for their distance from D, which has the zeros; V adds up the distances so far. The
    penalty rises until they agree on which are zero.
    """
    target = dense @ curvature.gram
    sparse, dual = dense.masked_fill(mask, 0), torch.zeros_like(dense)
    penalty, solve, size, seen = FIRST_PENALTY, None, max(1, int((~mask).sum())), mask
    for iteration in range(1, MOST_ITERATIONS + 1):
        solve = solve or _solver(curvature, penalty, len(dense))
        free = solve(torch.add(target, sparse, alpha=penalty).sub_(dual))
        sparse = torch.add(free, dual, alpha=1 / penalty)
        mask = _smallest(sparse, sparsity, zeros)
        sparse.masked_fill_(mask, 0)
        dual.add_(free.sub_(sparse), alpha=penalty)
        if iteration % EVERY == 0:
            changed = int((mask & ~seen).sum())
            if not changed:
                break
            penalty *= next(times for share, times in RAISES if changed > share * size)
            solve, seen = None, mask
    return mask, sparse


def _solver(curvature: Curvature, penalty: float, rows: int) -> Callable[[Tensor], Tensor]:
    """Right-hand sides (rows, in) -> their products with (gram + penalty)^-1."""
    values, vectors = curvature.spectrum
    shrunk = vectors / (values + penalty)
    if 3 * rows < len(shrunk):  # too few rows for the inverse to pay
        return lambda sides: sides @ shrunk @ vectors.T
    inverse = shrunk @ vectors.T
    return lambda sides: sides @ inverse


@torch.no_grad()
def refit_on_support(
    weight: Tensor, mask: Tensor, curvature: Curvature, start: Tensor | None = None, steps: int = REFIT_STEPS
) -> Tensor:
    """The kept weights that best give the outputs of `weight`, fp32 (out, in), zero where the mask is True.

    weight: (out, in), dense. start: where to begin, (out, in), or None for the dense values. Conjugate gradient on the
    damped error, all rows at once, each with the residual of its kept weights alone (algorithm 2 of the paper); its
    preconditioner, the diagonal, is one here. No step raises a row's error. Weights of dead inputs stay as they are.
    """
    dense, kept = curvature.scaled(weight), ~mask
    values = (dense if start is None else curvature.scaled(start)) * kept
    residual = ((dense - values) @ curvature.gram).mul_(kept)
    direction, energy = residual.clone(), residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        across = (direction @ curvature.gram).mul_(kept)
        length = _ratio(energy, (direction * across).sum(1, keepdim=True))
        values.addcmul_(direction, length)
        residual.addcmul_(across, length, value=-1)
        before, energy = energy, residual.square().sum(1, keepdim=True)
        direction.mul_(_ratio(energy, before)).add_(residual)
    values.div_(curvature.scale)
    return torch.where(curvature.dead & kept, weight.float(), values)


def _ratio(upper: Tensor, lower: Tensor) -> Tensor:
    """upper / lower, and 0 where a row has arrived, so that nothing is left to divide by."""
    return torch.where(lower > 0, upper / lower, 0)
