"""The block-aware rebuild of one sub-block's masks (LLM-Barber, section 3), one calibration sequence at a time.

Every function here does its tensor work and returns: the caller may yield events between the calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from barber.capture import Call
from barber.config import PruneConfig
from barber.errors import UserError
from barber.masks import swap_matrices
from barber.model import SubBlock
from barber.scores import saliency


@torch.no_grad()
def write(block: SubBlock, values: dict[str, Tensor]) -> None:
    """Give the sub-block's weights these values, name -> (out, in)."""
    for weight in block.weights:
        weight.view.copy_(values[weight.name])


@torch.no_grad()
def output(block: SubBlock, call: Call) -> Tensor:
    """The sub-block's output for one sequence, with the weights that it has now."""
    return block.replay(call).clone()


def squared_error(target: Tensor, value: Tensor) -> Tensor:
    """Mean over positions and channels of the squared difference, in fp32 (LLM-Barber, eq. 3)."""
    return (target.float() - value.float()).square().mean()


def squared_gradients(block: SubBlock, call: Call, sparse: Tensor) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Gradient of the sub-block's error by its dense weights, for one sequence.

    The sub-block must hold its dense weights; `sparse` is its output on the same input with the pruned ones. Returns
    the dense output, the error, and name -> squared gradient, fp32 (out, in). The error is multiplied by a power of
    two before the backward pass and divided out after it: exact, and half-precision gradients do not underflow.
    """
    parameters = [weight.parameter for weight in block.weights]
    scale = 2.0 ** round(math.log2(sparse.numel()))
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            dense = block.replay(call)
            error = squared_error(dense, sparse)
            gradients = torch.autograd.grad(error * scale, parameters, materialize_grads=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    squares = {
        weight.name: weight.oriented(gradient).float().div(scale).square()
        for weight, gradient in zip(block.weights, gradients, strict=True)
    }
    return dense.detach().clone(), error.item(), squares


@dataclass(frozen=True)
class Rebuilt:
    """Result of `rebuild_masks`, per weight name: masks (True = pruned), saliency and final values, all (out, in)."""

    masks: dict[str, Tensor]
    saliency: dict[str, Tensor]
    values: dict[str, Tensor]
    candidates: int
    swaps: int


@torch.no_grad()
def rebuild_masks(
    config: PruneConfig,
    masks: dict[str, Tensor],
    dense: dict[str, Tensor],
    initial: dict[str, Tensor],
    squared_gradient: dict[str, Tensor],
    where: str,
) -> Rebuilt:
    """Swap pruned and kept weights of one sub-block by their saliency; as many zeros per group after as before.

    masks: the initial masks. dense, initial: values before and after the initialiser. squared_gradient: mean over
    the sequences. All are name -> (out, in). Raises UserError that names the weight if a saliency is not finite.
    """
    if config.retain_reconstruction:
        combined = {name: torch.where(mask, dense[name], initial[name]) for name, mask in masks.items()}
    else:
        combined = dense
    scores = {name: saliency(config.metric, combined[name], squared_gradient[name]) for name in masks}
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise UserError(
                f"The saliency of {where} {name} is not finite: its activations overflow in this dtype, so run it in "
                "float32 or bfloat16."
            )
    swapped, candidates, swaps = swap_matrices(
        list(masks.values()), list(scores.values()), config.threshold, config.granularity, config.sparsity.m
    )
    rebuilt = dict(zip(masks, swapped, strict=True))
    values = {name: combined[name].masked_fill(mask, 0) for name, mask in rebuilt.items()}
    return Rebuilt(rebuilt, scores, values, candidates, swaps)
