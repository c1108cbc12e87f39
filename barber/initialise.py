"""Initial masks of one decoder layer, by any of the methods; each is an entry in a dict.

A method scores weights from statistics of their inputs, which `Statistics` gathers over the calibration sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from barber import scores
from barber.capture import Call, observe_inputs
from barber.config import Granularity, PruneConfig, Sparsity
from barber.errors import UserError
from barber.masks import initial_mask
from barber.model import Layer
from barber.sparsegpt import sparsegpt


@dataclass(frozen=True)
class Method:
    """How a layer's weights get their initial mask.

    statistic: what is summed over the inputs x (tokens, in) of a weight, or None when no calibration is needed.
    prune: (weight (out, in), statistic, sparsity, name) -> (mask, updated weight or None).
    """

    statistic: Callable[[Tensor], Tensor] | None
    prune: Callable[[Tensor, Tensor, Sparsity, str], tuple[Tensor, Tensor | None]]


def _squares(x: Tensor) -> Tensor:
    return x.float().square().sum(0)


def _outer(x: Tensor) -> Tensor:
    return x.float().T @ x.float()


def _magnitude(weight: Tensor, _none: Tensor, sparsity: Sparsity, _name: str) -> tuple[Tensor, None]:
    return initial_mask(scores.magnitude(weight), sparsity, Granularity.LAYER), None


def _wanda(weight: Tensor, squares: Tensor, sparsity: Sparsity, _name: str) -> tuple[Tensor, None]:
    return initial_mask(scores.wanda(weight, squares), sparsity, Granularity.OUTPUT), None


def _wandd(weight: Tensor, squares: Tensor, sparsity: Sparsity, _name: str) -> tuple[Tensor, None]:
    return initial_mask(scores.wandd(weight, squares), sparsity, Granularity.OUTPUT), None


def _sparsegpt(weight: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, Tensor]:
    updated, mask = sparsegpt(weight, hessian, sparsity, name)
    return mask, updated.to(weight.dtype)


METHODS: dict[str, Method] = {
    "magnitude": Method(None, _magnitude),
    "wanda": Method(_squares, _wanda),
    "wandd": Method(_squares, _wandd),
    "sparsegpt": Method(_outer, _sparsegpt),
}


def needs_calibration(config: PruneConfig) -> bool:
    """Whether a run looks at calibration data at all: magnitude without rebuild does not."""
    return config.barber or (config.method in METHODS and METHODS[config.method].statistic is not None)


class Statistics:
    """Sums over the calibration inputs of every weight of one layer."""

    def __init__(self, layer: Layer, method: Method) -> None:
        self.layer, self.method = layer, method
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, call: Call) -> None:
        """Run the layer on one sequence and add what its weights see."""

        def see(name: str, x: Tensor) -> None:
            value = self.method.statistic(x)
            self.sums[name] = self.sums[name].add_(value) if name in self.sums else value

        observe_inputs(self.layer.module, call, {w.name: w.module for w in self.layer.weights}, see)


@torch.no_grad()
def initialise_layer(
    layer: Layer, method: Method, sums: dict[str, Tensor], sparsity: Sparsity
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Prune a layer's weights in place. Returns name -> mask, True = pruned, and name -> updated weight, if any."""
    masks, updates = {}, {}
    for weight in layer.weights:
        name = f"layers.{layer.index}.{weight.name}"
        if method.statistic and weight.name not in sums:
            raise UserError(f"The model does not use {name} on text alone: give a decoder-only language model.")
        if weight.name in sums and not bool(sums[weight.name].isfinite().all()):
            raise UserError(
                f"The inputs of {name} are not finite: activations overflow in this dtype, so run the model in float32 "
                "or bfloat16."
            )
        mask, updated = method.prune(weight.view, sums.get(weight.name), sparsity, name)
        masks[weight.name] = mask
        if updated is not None:
            updates[weight.name] = updated
    layer.apply(masks, updates)
    return masks, updates
