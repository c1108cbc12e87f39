"""ALPS (arXiv 2406.07831): ADMM finds the mask of a layer, then the kept weights are refit to that mask.

Both steps minimise the layer's error ||(W - V) X||^2, where X are the calibration inputs and V the pruned weight. They
use the damped gram matrix X X^T of inputs that are scaled so that its diagonal is one.
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

ALPS_DAMPING = 0.01  # share of the mean diagonal, as published

FIRST_PENALTY = 0.1  # as published, for a gram matrix of unit diagonal

EVERY = 3  # iterations between two comparisons of the support, as published

# (share, factor): if more than this share of the support changed, the penalty is multiplied by the factor
RAISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))

MOST_ITERATIONS = 300  # as published

REFIT_STEPS = 10  # of conjugate gradient, as published


@dataclass(frozen=True)
class ScaledGram:
    """The damped gram matrix of scaled inputs, computed once for all weights that share their inputs.

    Attributes:
        gram: fp32 (in, in), damped, of the scaled inputs: its diagonal is one.
        scale: (in,), the divisor of each input, up to a common factor.
        dead: bool (in,), inputs that are always zero.
    """

    gram: Tensor
    scale: Tensor
    dead: Tensor

    @classmethod
    def of(cls, gram: Tensor, name: str = "weight") -> ScaledGram:
        """gram: (in, in), sum of x x^T over the calibration tokens, any positive scale; name: for the message."""
        largest = gram.diagonal().amax()
        gram = gram.float() / torch.where(largest > 0, largest, 1)
        dead = gram.diagonal() == 0
        scale = (gram.diagonal() + ALPS_DAMPING * gram.diagonal().mean()).sqrt()
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
def alps(weight: Tensor, inputs: ScaledGram, sparsity: Sparsity, zeros: int | None = None) -> tuple[Tensor, Tensor]:
    """Prune and update one weight matrix (algorithms 1 and 2 of ALPS, arXiv 2406.07831).

    weight: (out, in). Unstructured sparsity prunes exactly `sparsity.count` weights of the matrix, or `zeros` if given;
    n:m prunes n weights of every m consecutive inputs. Weights of inputs that are always zero are pruned
    first; those that are kept do not change. The error on the damped inputs is at most that of pruning the smallest
    scaled weights.
    Returns the updated weight in fp32, zero where pruned, and its mask, True = pruned.
    """
    dense = inputs.scaled(weight)
    first = _smallest(dense, sparsity, zeros)
    mask, values = _admm(dense, first, inputs, sparsity, zeros)
    updated = refit_on_support(weight, mask, inputs, values / inputs.scale)
    reached = inputs.error(dense - inputs.scaled(updated))
    if not reached <= inputs.error(dense.masked_fill(~first, 0)):
        return refit_on_support(weight, first, inputs), first
    return updated, mask


def _smallest(scaled: Tensor, sparsity: Sparsity, zeros: int | None) -> Tensor:
    """Mask (out, in) of the smallest weights of every m consecutive inputs, or of the matrix."""
    width = sparsity.m or scaled.numel()
    count = sparsity.count(width) if sparsity.m or zeros is None else zeros
    return prune_smallest(scaled.abs().view(-1, width), count).view(scaled.shape)


def _admm(
    dense: Tensor, mask: Tensor, inputs: ScaledGram, sparsity: Sparsity, zeros: int | None
) -> tuple[Tensor, Tensor]:
    """The mask (out, in) at which the support stops changing, and values with these zeros, for scaled inputs.

    ADMM on the dense variable W and the sparse variable D with the scaled dual variable V. The penalty rises until the
    support of D stops changing.
    """
    target = dense @ inputs.gram
    sparse, dual = dense.masked_fill(mask, 0), torch.zeros_like(dense)
    penalty, solve, size, seen = FIRST_PENALTY, None, max(1, int((~mask).sum())), mask
    for iteration in range(1, MOST_ITERATIONS + 1):
        solve = solve or _solver(inputs, penalty, len(dense))
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


def _solver(inputs: ScaledGram, penalty: float, rows: int) -> Callable[[Tensor], Tensor]:
    """Right-hand sides (rows, in) -> their products with (gram + penalty)^-1."""
    values, vectors = inputs.spectrum
    shrunk = vectors / (values + penalty)
    if 3 * rows < len(shrunk):  # with few rows, the inverse costs more than it saves
        return lambda sides: sides @ shrunk @ vectors.T
    inverse = shrunk @ vectors.T
    return lambda sides: sides @ inverse


@torch.no_grad()
def refit_on_support(
    weight: Tensor, mask: Tensor, inputs: ScaledGram, start: Tensor | None = None, steps: int = REFIT_STEPS
) -> Tensor:
    """Refit the kept weights to the outputs of `weight`: fp32 (out, in), zero where the mask is True.

    weight: (out, in), dense. start: initial values (out, in), or None for the dense ones. Preconditioned conjugate
    gradient on the damped error for all rows at once, restricted to each row's kept weights (algorithm 2 of ALPS, arXiv
    2406.07831); the preconditioner is the diagonal, which is one here. No step raises a row's error. Weights of dead
    inputs do not change.
    """
    dense, kept = inputs.scaled(weight), ~mask
    values = (dense if start is None else inputs.scaled(start)) * kept
    residual = ((dense - values) @ inputs.gram).mul_(kept)
    direction, energy = residual.clone(), residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        across = (direction @ inputs.gram).mul_(kept)
        length = _ratio(energy, (direction * across).sum(1, keepdim=True))
        values.addcmul_(direction, length)
        residual.addcmul_(across, length, value=-1)
        before, energy = energy, residual.square().sum(1, keepdim=True)
        direction.mul_(_ratio(energy, before)).add_(residual)
    values.div_(inputs.scale)
    return torch.where(inputs.dead & kept, weight.float(), values)


def _ratio(upper: Tensor, lower: Tensor) -> Tensor:
    """upper / lower, and 0 where lower is 0 because the row has converged."""
    return torch.where(lower > 0, upper / lower, 0)
