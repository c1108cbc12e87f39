"""Initial masks of weights, by the methods of the registry.

A method scores weights from a statistic of their inputs, summed over the calibration sequences. An expert that too few
tokens reached gets its mask by magnitude: one without tokens has no statistic, and the gram matrix of fewer tokens than
inputs has directions of error zero, along which a method would change weights as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.kernels.masks import initial_mask
from barber.kernels.scores import magnitude
from barber.models.decoder import Masks, State, Values, Weight
from barber.progress import Steps
from barber.pruning.distributed import Ranks
from barber.pruning.statistics import gather_statistic
from barber.registry import INITIAL_MASKS, InitialMask

ZeroPlan = Mapping[tuple[int, str], int]  # (layer, name) -> how many weights to prune


@dataclass(frozen=True)
class InitialMasks:
    """The initial masks of some weights of a layer.

    Attributes:
        masks: name -> bool (out, in), True = pruned.
        updates: name -> (out, in), values that the method updated.
        starved: names of experts that too few tokens reached.
    """

    masks: Masks
    updates: Values
    starved: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        return self.masks, self.updates


def initialise(
    layer: int,
    weights: Sequence[Weight],
    config: PruneConfig,
    batches: Iterable[int],
    run: Callable[[int], object],
    ranks: Ranks,
    plan: ZeroPlan | None = None,
) -> Steps[InitialMasks]:
    """Initial masks and updated values of some weights of a layer; the weights do not change.

    run: runs the modules of the weights on a batch of calibration sequences; it is not called for a method without
    calibration. plan: number of zeros of each weight, in place of that by the sparsity.
    """
    method = INITIAL_MASKS[config.method]
    sums = yield from gather_statistic(method.statistic, weights, batches, run, ranks)
    starved = starved_experts(weights, method, sums.tokens)
    masks, updates = make_masks(layer, weights, method, sums.values, config.sparsity, plan, starved)
    return InitialMasks(masks, updates, starved)


def starved_experts(weights: Iterable[Weight], method: InitialMask, tokens: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the experts that fewer tokens reached than the method needs: one, or with a gram one for each input."""
    if not method.calibrated:
        return ()
    needed = {w.name: w.view.shape[1] if method.statistic == "gram" else 1 for w in weights if w.is_expert}
    return tuple(name for name, least in needed.items() if tokens.get(name, 0) < least)


@torch.no_grad()
def make_masks(
    layer: int,
    weights: Sequence[Weight],
    method: InitialMask,
    statistics: Values,
    sparsity: Sparsity,
    plan: ZeroPlan | None = None,
    starved: Collection[str] = (),
) -> State:
    """Masks, True = pruned, and updated values, if any, from the statistic of each weight's inputs.

    starved: names of weights that are masked by magnitude, in the groups of the method.
    """
    if method.calibrated:
        check_statistics(layer, [weight for weight in weights if weight.name not in starved], statistics)
    masks, updates, prepared = {}, {}, {}
    for weight in weights:
        name, statistic = f"layers.{layer}.{weight.name}", statistics.get(weight.name)
        zeros = (plan or {}).get((layer, weight.name))
        if weight.name in starved:
            masks[weight.name] = initial_mask(magnitude(weight.view), sparsity, method.within, zeros)
            continue
        if id(statistic) not in prepared:
            prepared[id(statistic)] = method.prepare_call(statistic, name)
        mask, updated = mask_of(weight.view, method, prepared[id(statistic)], name, sparsity, zeros)
        masks[weight.name] = mask
        if updated is not None:
            updates[weight.name] = updated
    return masks, updates


def mask_of(
    weight: Tensor, method: InitialMask, prepared: Any, name: str, sparsity: Sparsity, zeros: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """The mask of one weight (out, in), and its updated values, in its dtype, if the method has updates.

    prepared: the result of the method's `prepare_call`. zeros: number of weights to prune, in place of that by the
    sparsity.
    """
    if method.kind == "update":
        updated, mask = method.call(weight, prepared, sparsity, zeros)
        return mask, updated.to(weight.dtype)
    known = [name] if method.kind == "seeded" else [prepared] if method.statistic else []
    return initial_mask(method.call(weight, *known), sparsity, method.within, zeros), None


def check_statistics(layer: int, weights: Sequence[Weight], statistics: Mapping[str, Tensor]) -> None:
    """UserError that names a weight of a layer whose statistic is missing or not finite."""
    for weight in weights:
        name = f"layers.{layer}.{weight.name}"
        if weight.name not in statistics:
            raise UserError(f"The model does not use {name} on text alone: give a decoder-only language model.")
        if not bool(statistics[weight.name].isfinite().all()):
            raise UserError(
                f"The inputs of {name} are not finite: activations overflow in this dtype, so run the model in float32 "
                "or bfloat16."
            )
