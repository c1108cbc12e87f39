"""The block-aware rebuild of one sub-block's masks (LLM-Barber, arXiv 2408.10631), one calibration sequence at a time.

The functions do their tensor work and return; `rebuild_sub_block` puts them in order and yields only between them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from barber.capture import Call
from barber.config import PruneConfig
from barber.errors import UserError
from barber.events import Event, Progress, SubBlockRebuilt
from barber.masks import swap_matrices
from barber.memory import peak_memory, reset_peak_memory
from barber.model import DenseWeights, SubBlock
from barber.scores import histogram, saliency
from barber.stream import Stream


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
    """Mean over positions and channels of the squared difference, in fp32, as published."""
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


def rebuild_sub_block(
    layer: int,
    block: SubBlock,
    stream: Stream,
    dense: DenseWeights,
    layer_masks: dict[str, Tensor],
    config: PruneConfig,
    progress: Iterator[Progress],
) -> Iterator[Event]:
    """Steps 1 to 5 of the rebuild for one sub-block, ending with its SubBlockRebuilt.

    The stream stands in front of layer number `layer`, whose weights are as the initialiser left them but for the
    sub-blocks rebuilt before. layer_masks: name -> initial mask (out, in). `progress` gives one event per sequence and
    step, three steps in all.
    """
    started = time.monotonic()
    reset_peak_memory(block.weights[0].view.device)
    masks = {weight.name: layer_masks[weight.name] for weight in block.weights}
    initial = {weight.name: weight.view.clone() for weight in block.weights}
    original = {weight.name: dense[layer, weight.name] for weight in block.weights}

    calls, outputs = [], []
    for sequence in range(len(stream)):
        calls.append(block.record(stream.call(layer, sequence)))
        outputs.append(output(block, calls[-1]))
        yield next(progress)

    write(block, original)
    before, mean = 0.0, {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in masks.items()}
    for sequence, call in enumerate(calls):
        outputs[sequence], error, squares = squared_gradients(block, call, outputs[sequence])
        before += error / len(calls)
        for name, square in squares.items():
            mean[name] += square / len(calls)
        yield next(progress)

    rebuilt = rebuild_masks(config, masks, original, initial, mean, f"layers.{layer}")
    write(block, rebuilt.values)
    after = 0.0
    for call, target in zip(calls, outputs, strict=True):
        after += squared_error(target, output(block, call)).item() / len(calls)
        yield next(progress)

    yield SubBlockRebuilt(
        layer=layer,
        sub_block=block.name,
        kind=block.kind,
        error_before=before,
        error_after=after,
        candidates=rebuilt.candidates,
        swaps=rebuilt.swaps,
        seconds=time.monotonic() - started,
        peak_memory=peak_memory(block.weights[0].view.device),
        modules={name: _describe(rebuilt.saliency[name], masks[name], rebuilt.masks[name]) for name in masks},
        masks=rebuilt.masks,
        weights=rebuilt.values if config.retain_reconstruction else {},
    )


def _describe(saliency: Tensor, initial: Tensor, rebuilt: Tensor) -> dict:
    """What became of one weight matrix, JSON-able."""
    return {
        "weights": rebuilt.numel(),
        "zeros": int(rebuilt.sum()),
        "grown": int((initial & ~rebuilt).sum()),
        "cut": int((~initial & rebuilt).sum()),
        "saliency_before": saliency[~initial].sum(dtype=torch.float64).item(),
        "saliency_after": saliency[~rebuilt].sum(dtype=torch.float64).item(),
        "histogram": histogram(saliency, initial, rebuilt),
    }
