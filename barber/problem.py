"""What a refiner works on: one sub-block, how the stream calls it, and what its output should be.

The functions do their tensor work and return; whoever steps through the sequences yields only between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from barber.capture import Call
from barber.config import HOLD_OUT, PruneConfig
from barber.errors import UserError
from barber.model import SubBlock

Masks = dict[str, Tensor]
Values = dict[str, Tensor]


def hold_out(sequences: int, config: PruneConfig) -> tuple[list[int], list[int]]:
    """Which sequences teach and which judge: every fourth judges where the run holds any out, else all do both.

    Raises UserError where none would be left to judge.
    """
    every = list(range(sequences))
    if not config.holds_out:
        return every, every
    if sequences < HOLD_OUT:
        what = "Threshold auto" if config.auto else "Reconstruction"
        raise UserError(
            f"{what} holds every {HOLD_OUT}th calibration sequence out, but got {sequences}: give {HOLD_OUT} or more."
        )
    return [j for j in every if (j + 1) % HOLD_OUT], every[HOLD_OUT - 1 :: HOLD_OUT]


@torch.no_grad()
def write(block: SubBlock, values: Values) -> None:
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


@dataclass
class Problem:
    """One sub-block in front of its refinement. Weights and masks are name -> (out, in), masks True = pruned.

    where: "layers.3", for messages. calls, sparse: how the stream calls the sub-block for each sequence, and its output
    with the initial weights. targets: the wanted outputs; None where nobody needed one yet, which a dense forward on
    the same call gives. Where both are known, `settle` keeps their error and lets go of the sparse output. dense,
    initial: the weights before and after the initialiser. fit, held: the sequences that teach and those that judge,
    where the run holds some out.
    """

    where: str
    block: SubBlock
    config: PruneConfig
    masks: Masks
    dense: Values
    initial: Values
    fit: Sequence[int]
    held: Sequence[int]
    calls: list[Call] = field(default_factory=list)
    sparse: list[Tensor | None] = field(default_factory=list)
    targets: list[Tensor | None] = field(default_factory=list)
    errors: dict[int, float] = field(default_factory=dict)

    @property
    def teaching(self) -> Sequence[int]:
        """The sequences that a refiner learns from: all of them, unless it holds some out itself."""
        return self.fit if self.config.auto else range(len(self.calls))

    @property
    def judging(self) -> Sequence[int]:
        """The sequences that a refiner judges its masks on."""
        return self.held if self.config.auto else range(len(self.calls))

    @property
    def combined(self) -> Values:
        """The value that each weight has where it is kept: dense, or the initialiser's with retain_reconstruction."""
        if not self.config.retain_reconstruction:
            return self.dense
        return {name: torch.where(mask, self.dense[name], self.initial[name]) for name, mask in self.masks.items()}

    def values(self, masks: Masks) -> Values:
        """The weights under a refined mask."""
        combined = self.combined
        return {name: combined[name].masked_fill(mask, 0) for name, mask in masks.items()}

    def see(self, call: Call) -> None:
        """Add one sequence, the sub-block holding its initial weights."""
        self.calls.append(call)
        self.sparse.append(output(self.block, call))
        if len(self.targets) < len(self.calls):
            self.targets.append(None)

    def aim(self, sequence: int) -> None:
        """Make sure of the target of one sequence; where it is missing, the sub-block must hold its dense weights."""
        if self.targets[sequence] is None:
            self.settle(sequence, output(self.block, self.calls[sequence]))
        else:
            self.settle(sequence)

    def settle(self, sequence: int, dense: Tensor | None = None) -> None:
        """Keep the initial error of one sequence; `dense` is its target where none was given."""
        if self.targets[sequence] is None:
            self.targets[sequence] = dense
        if sequence not in self.errors:
            self.errors[sequence] = squared_error(self.targets[sequence], self.sparse[sequence]).item()
            self.sparse[sequence] = None

    def error(self, sequence: int) -> float:
        """The error on one sequence, whose target is known, with the weights that the sub-block has now."""
        return squared_error(self.targets[sequence], output(self.block, self.calls[sequence])).item()

    def initial_error(self, sequences: Sequence[int]) -> float:
        """Mean error of the initial weights over settled sequences. Raises UserError where it is not finite."""
        error = sum(self.errors[j] for j in sequences) / len(sequences)
        if not math.isfinite(error):
            raise UserError(
                f"The output of {self.where} {self.block.name} is not finite: its activations overflow in this dtype, "
                "so run it in float32 or bfloat16."
            )
        return error


def squared_gradients(
    block: SubBlock, call: Call, sparse: Tensor, target: Tensor | None = None
) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Gradient of the sub-block's error by its dense weights, for one sequence.

    The sub-block must hold its dense weights; `sparse` is its output on the same input with the pruned ones. Returns
    the dense output, the error, and name -> squared gradient, fp32 (out, in). The error is multiplied by a power of
    two before the backward pass and divided out after it: exact, and half-precision gradients do not underflow.
    target: the wanted output where it is not the dense one; the error that is felt is then what `sparse` lacks of it.
    """
    parameters = [weight.parameter for weight in block.weights]
    scale = 2.0 ** round(math.log2(sparse.numel()))
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            dense = block.replay(call)
            other = sparse if target is None else dense.detach().float() - (target.float() - sparse.float())
            error = squared_error(dense, other)
            gradients = torch.autograd.grad(error * scale, parameters, materialize_grads=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    squares = {
        weight.name: weight.oriented(gradient).float().div(scale).square()
        for weight, gradient in zip(block.weights, gradients, strict=True)
    }
    return dense.detach().clone(), error.item(), squares
