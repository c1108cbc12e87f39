"""What a refiner works on: one sub-block, how the stream calls it, and what its output should be.

The functions do their tensor work and return; whoever steps through the sequences yields only between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from barber.config import VALIDATION_EVERY, PruneConfig
from barber.errors import UserError
from barber.models.decoder import Masks, Outputs, SubBlock, Values, masked
from barber.models.replay import Call
from barber.pruning.activation_store import ActivationStore
from barber.pruning.distributed import Ranks
from barber.pruning.gradients import ForwardRecord


def split_sequences(sequences: int, config: PruneConfig) -> tuple[list[int], list[int]]:
    """Which sequences teach and which judge: every fourth judges where the run holds any out, else all do both.

    Raises UserError where none would be left to judge.
    """
    config.check_sequences(sequences)
    every = list(range(sequences))
    if not config.uses_validation:
        return every, every
    return [j for j in every if (j + 1) % VALIDATION_EVERY], every[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]


def squared_error(target: Tensor, value: Tensor) -> Tensor:
    """Mean over positions and channels of the squared difference, in fp32, as published."""
    return mse_loss(value.float(), target.float())


@dataclass
class Problem:
    """One sub-block in front of its refinement. Weights and masks are name -> (out, in), masks True = pruned.

    where: "layers.3", for messages. dense: the dense weights. masks, updates: what the initialiser gave, see `begin`.
    fit, held: the batches that teach and those that judge, where the run holds some out; sizes: their sequences.
    others: batch -> the known outputs of sub-blocks that the layer runs before this one.
    calls, sparse, final: how the stream calls the sub-block for each batch; its output with the initial weights and
    with the final ones. targets: the wanted outputs; empty or None where a dense forward pass on the same call is to
    give them. Where target and sparse output are known, `settle` keeps their error and lets go of the latter. All of
    these wait in `place`. records: dense forward passes that are at hand.
    """

    where: str
    block: SubBlock
    config: PruneConfig
    place: ActivationStore
    ranks: Ranks
    dense: Values
    fit: Sequence[int]
    held: Sequence[int]
    sizes: Sequence[int]
    others: Callable[[int], Outputs]
    targets: list[Tensor | None]
    masks: Masks = field(default_factory=dict)
    updates: Values = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    sparse: list[Tensor | None] = field(default_factory=list)
    final: list[Tensor] = field(default_factory=list)
    errors: dict[int, Tensor] = field(default_factory=dict)
    records: dict[int, ForwardRecord] = field(default_factory=dict)

    @property
    def batches(self) -> range:
        return range(len(self.sizes))

    @property
    def teaching(self) -> Sequence[int]:
        """The batches that a refiner learns from: all of them, unless it holds some out itself."""
        return self.fit if self.config.auto else self.batches

    @property
    def judging(self) -> Sequence[int]:
        """The batches that a refiner judges its masks on."""
        return self.held if self.config.auto else self.batches

    def begin(self, masks: Masks, updates: Values) -> None:
        """Start from these initial masks; updates: what the initialiser changed. Other weights' may be among both."""
        self.masks = {name: masks[name].to(dense.device) for name, dense in self.dense.items()}
        self.updates = {name: updates[name].to(dense) for name, dense in self.dense.items() if name in updates}

    @property
    def initial(self) -> Values:
        """The weights as the initialiser left them."""
        return {n: masked(self.updates.get(n, self.dense[n]), mask) for n, mask in self.masks.items()}

    @property
    def combined(self) -> Values:
        """The value that each weight has where it is kept: dense, or the initialiser's with retain_reconstruction."""
        if not self.config.retain_reconstruction:
            return self.dense
        updated = {name: torch.where(self.masks[name], self.dense[name], value) for name, value in self.updates.items()}
        return self.dense | updated

    def values(self, masks: Masks) -> Values:
        """The weights under a refined mask."""
        combined = self.combined
        return {name: masked(combined[name], mask) for name, mask in masks.items()}

    def call(self, batch: int) -> Call:
        """How the stream calls the sub-block for a batch, ready to be replayed."""
        kept = self.calls[batch]
        return kept.with_hidden(self.place.take(kept.hidden))

    @torch.no_grad()
    def output(self, batch: int) -> Tensor:
        """The sub-block's output for one batch, with the weights that it has now."""
        return self.block.replay(self.call(batch), self.others(batch))

    def record(self, batch: int) -> ForwardRecord:
        """A dense forward pass of the sub-block, which must hold its dense weights; or the one at hand, given away."""
        kept = self.records.pop(batch, None)
        return kept or ForwardRecord.record(self.block, self.call(batch), self.others(batch))

    def see(self, call: Call) -> None:
        """Add the next batch."""
        self.calls.append(call.with_hidden(self.place.keep(call.hidden)))
        if len(self.targets) < len(self.calls):
            self.targets.append(None)

    def run_sparse(self, batch: int) -> None:
        """Know the sub-block's output for the next batch with its initial weights, which it must hold."""
        self.sparse.append(self.place.keep(self.output(batch)))

    def target(self, batch: int) -> Tensor:
        return self.place.take(self.targets[batch])

    def settle(self, batch: int, dense: Tensor | None = None) -> None:
        """Keep the target and the initial error of one batch.

        dense: the output with dense weights, if it is at hand; otherwise the sub-block must hold them if no target is
        known.
        """
        if self.targets[batch] is None:
            self.targets[batch] = self.place.keep(self.output(batch) if dense is None else dense)
        if batch not in self.errors:
            self.errors[batch] = squared_error(self.target(batch), self.place.take(self.sparse[batch]))
            self.sparse[batch] = None

    def error(self, batch: int) -> Tensor:
        """The error on one batch, whose target is known, with the weights that the sub-block has now: 0-dim, fp32."""
        return squared_error(self.target(batch), self.output(batch))

    def finish(self, batch: int) -> Tensor:
        """The error of the next batch with the final weights, whose output is kept."""
        output = self.output(batch)
        self.final.append(self.place.keep(output))
        return squared_error(self.target(batch), output)

    def mean(self, errors: Mapping[int, Tensor]) -> float:
        """Mean of the errors of batches over their sequences, on all ranks together."""
        device = self.block.weights[0].view.device
        total = torch.zeros(2, dtype=torch.float64, device=device)
        for batch, error in errors.items():
            total += torch.stack([error.double(), torch.ones_like(error, dtype=torch.float64)]) * self.sizes[batch]
        self.ranks.sum([total])
        return (total[0] / total[1]).item()

    def initial_error(self, batches: Sequence[int]) -> float:
        """Mean error of the initial weights over settled batches. Raises UserError where it is not finite."""
        error = self.mean({batch: self.errors[batch] for batch in batches})
        if not math.isfinite(error):
            raise UserError(
                f"The output of {self.where} {self.block.name} is not finite: its activations overflow in this dtype, "
                "so run it in float32 or bfloat16."
            )
        return error
