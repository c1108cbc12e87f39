"""Initial masks of weights, by any of the methods; each is an entry in a dict.

A method scores weights from a statistic of their inputs, summed over the calibration sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from barber.config import Allocation, Granularity, PruneConfig, Sparsity
from barber.errors import UserError
from barber.kernels import scores
from barber.kernels.masks import initial_mask, prune_smallest, smallest_by_row
from barber.kernels.sparsegpt import BLOCK_COLUMNS, Curvature, sparsegpt
from barber.kernels.statistics import gram, squares
from barber.models.decoder import Weight
from barber.pruning.statistics import Sums


@dataclass(frozen=True)
class MaskRequest:
    """What is asked for one weight: a sparsity, and `zeros` in all where it is not to be that of every group.

    name: of the weight in the model, like "layers.0.mlp.up_proj". zeros: with unstructured sparsity only.
    """

    sparsity: Sparsity
    name: str
    zeros: int | None = None


@dataclass(frozen=True)
class Method:
    """How a layer's weights get their initial mask.

    statistic: what is summed over the inputs x (tokens, in) of a weight, or None when no calibration is needed.
    prune: (weight (out, in), statistic, request) -> (mask, updated weight or None).
    zeros: (out, in, sparsity) -> how many weights it prunes where the request leaves `zeros` out.
    prepare: (statistic, name of a weight) -> what `prune` gets of it, made once for weights that share their inputs.
    """

    statistic: Callable[[Tensor], Tensor] | None
    prune: Callable[[Tensor, Tensor, MaskRequest], tuple[Tensor, Tensor | None]]
    zeros: Callable[[int, int, Sparsity], int]
    prepare: Callable[[Tensor, str], Any] = lambda statistic, name: statistic


def _by_score(
    score: Callable[[Tensor, Tensor, str], Tensor],
    granularity: Granularity,
    statistic: Callable[[Tensor], Tensor] | None = None,
) -> Method:
    """The method that prunes the smallest of `score` (weight, statistic, name) in each row or in the whole matrix."""
    by_row = granularity is Granularity.OUTPUT

    def prune(weight: Tensor, summed: Tensor, request: MaskRequest) -> tuple[Tensor, None]:
        scored = score(weight, summed, request.name)
        if request.zeros is None:
            return initial_mask(scored, request.sparsity, granularity), None
        if by_row:
            return smallest_by_row(scored, request.zeros), None
        return prune_smallest(scored.reshape(1, -1), request.zeros).view(scored.shape), None

    def zeros(rows: int, columns: int, sparsity: Sparsity) -> int:
        return rows * sparsity.count(columns) if by_row else sparsity.count(rows * columns)

    return Method(statistic, prune, zeros)


def _sparsegpt(weight: Tensor, curvature: Curvature, request: MaskRequest) -> tuple[Tensor, Tensor]:
    updated, mask = sparsegpt(weight, curvature, request.sparsity, request.zeros)
    return mask, updated.to(weight.dtype)


def _sparsegpt_zeros(rows: int, columns: int, sparsity: Sparsity) -> int:
    whole, rest = divmod(columns, BLOCK_COLUMNS)
    return whole * sparsity.count(rows * BLOCK_COLUMNS) + sparsity.count(rows * rest)


METHODS: dict[str, Method] = {
    "magnitude": _by_score(lambda weight, _, name: scores.magnitude(weight), Granularity.LAYER),
    "wanda": _by_score(lambda weight, total, name: scores.wanda(weight, total), Granularity.OUTPUT, squares),
    "wandd": _by_score(lambda weight, total, name: scores.wandd(weight, total), Granularity.OUTPUT, squares),
    "sparsegpt": Method(gram, _sparsegpt, _sparsegpt_zeros, Curvature.of),
    "ria": _by_score(lambda weight, total, name: scores.ria(weight, total), Granularity.LAYER, squares),
    "random": _by_score(lambda weight, _, name: scores.random(weight, name), Granularity.LAYER),
}


def needs_calibration(config: PruneConfig) -> bool:
    """Whether a run looks at calibration data at all: a method without statistic, with nothing more asked, does not."""
    measured = config.method in METHODS and METHODS[config.method].statistic is not None
    return measured or config.refined or config.allocation is not Allocation.UNIFORM


def gather(method: Method) -> Sums | None:
    """Empty sums of the method's statistic, or None for a method that looks at no data."""
    return Sums(method.statistic) if method.statistic else None


def check_sums(index: int, weights: Sequence[Weight], sums: Mapping[str, Tensor]) -> None:
    """UserError that names a weight of layer `index` whose statistic is missing or not finite."""
    for weight in weights:
        name = f"layers.{index}.{weight.name}"
        if weight.name not in sums:
            raise UserError(f"The model does not use {name} on text alone: give a decoder-only language model.")
        if not bool(sums[weight.name].isfinite().all()):
            raise UserError(
                f"The inputs of {name} are not finite: activations overflow in this dtype, so run the model in float32 "
                "or bfloat16."
            )


@torch.no_grad()
def initialise_weights(
    index: int,
    weights: Sequence[Weight],
    method: Method,
    sums: Mapping[str, Tensor],
    sparsity: Sparsity,
    zeros: Mapping[tuple[int, str], int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Initial masks of weights of layer `index`, which stay as they are: name -> mask, True = pruned, and name ->
    updated weight, if any.

    sums: the method's statistic, name -> tensor. zeros: (layer, name) -> how many weights to prune, where it is not
    what the sparsity says.
    """
    if method.statistic:
        check_sums(index, weights, sums)
    masks, updates, prepared = {}, {}, {}
    for weight in weights:
        name = f"layers.{index}.{weight.name}"
        summed = sums.get(weight.name)
        if id(summed) not in prepared:
            prepared[id(summed)] = method.prepare(summed, name)
        request = MaskRequest(sparsity, name, (zeros or {}).get((index, weight.name)))
        masks[weight.name], updated = method.prune(weight.view, prepared[id(summed)], request)
        if updated is not None:
            updates[weight.name] = updated
    return masks, updates
