"""Calls of one sub-block by the stream, and its possible weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from barber.errors import UserError
from barber.models.decoder import Layer, Masks, Outputs, State, SubBlock, Values, masked
from barber.models.replay import Call
from barber.pruning.activations import ActivationStream
from barber.pruning.distributed import Ranks
from barber.pruning.gradients import ForwardRecord


def squared_error(target: Tensor, value: Tensor) -> Tensor:
    """Mean over positions and channels of the squared difference, in fp32, as published."""
    return mse_loss(value.float(), target.float())


@dataclass(frozen=True)
class SubBlockCalls:
    """Calls of one sub-block of a layer, for all batches of the stream.

    Attributes:
        where: the layer as in "layers.3", for messages.
        block: the sub-block.
        calls: of each batch; hidden states are in the stream's store.
        stream: with the batches, and outputs of the sub-blocks before this one.
        before: the sub-blocks of the layer before this one with outputs in the stream.
        ranks: the processes that share the sequences.
    """

    where: str
    block: SubBlock
    calls: tuple[Call, ...]
    stream: ActivationStream
    before: tuple[SubBlock, ...]
    ranks: Ranks

    @classmethod
    def record(
        cls, layer: Layer, block: SubBlock, stream: ActivationStream, before: tuple[SubBlock, ...], ranks: Ranks
    ) -> SubBlockCalls:
        """Run the layer up to the sub-block on every batch, with its current weights."""
        calls = []
        for batch in range(len(stream)):
            call = block.record(stream.call(layer.index, batch), stream.load_outputs(before, batch))
            calls.append(call.with_hidden(stream.store.save(call.hidden)))
        return cls(f"layers.{layer.index}", block, tuple(calls), stream, before, ranks)

    @property
    def batches(self) -> range:
        return range(len(self.calls))

    def call(self, batch: int) -> Call:
        """The call of a batch, on the device."""
        stored = self.calls[batch]
        return stored.with_hidden(self.stream.store.load(stored.hidden))

    def others(self, batch: int) -> Outputs:
        """The outputs of the sub-blocks before this one."""
        return self.stream.load_outputs(self.before, batch)

    @torch.no_grad()
    def output(self, batch: int) -> Tensor:
        """The sub-block's output (batch, seqlen, hidden), with its current weights."""
        return self.block.replay(self.call(batch), self.others(batch))

    def forward(self, batch: int) -> ForwardRecord:
        """A forward record with the current weights."""
        return ForwardRecord.record(self.block, self.call(batch), self.others(batch))

    def mean(self, errors: Mapping[int, Tensor]) -> float:
        """Mean of the errors of batches, weighted by their number of sequences, over all ranks."""
        total = torch.zeros(2, dtype=torch.float64, device=self.block.weights[0].view.device)
        for batch, error in errors.items():
            sequences = self.stream.sizes[batch]
            total += torch.stack([error.double(), torch.ones_like(error, dtype=torch.float64)]) * sequences
        self.ranks.sum([total])
        return (total[0] / total[1]).item()

    def finite_mean(self, errors: Mapping[int, Tensor]) -> float:
        """As `mean`. Raises UserError if it is not finite."""
        error = self.mean(errors)
        if not math.isfinite(error):
            raise UserError(
                f"The output of {self.where} {self.block.name} is not finite: its activations overflow in this dtype, "
                "so run the model in float32 or bfloat16."
            )
        return error


@dataclass(frozen=True)
class SubBlockWeights:
    """The possible weights of a sub-block, name -> (out, in).

    Attributes:
        dense: before pruning.
        masks: the initial ones, True = pruned.
        updates: values that the initialiser changed, zero where pruned.
        retain: whether rebuilt masks keep updated values of weights that the initial mask kept (retained updates).
    """

    dense: Values
    masks: Masks
    updates: Values
    retain: bool

    @classmethod
    def of(cls, dense: Values, initial: State, retain: bool) -> SubBlockWeights:
        """On the device and in the dtype of the dense values; further weights in `initial` are ignored."""
        masks, updates = initial
        return cls(
            dense,
            {name: masks[name].to(value.device) for name, value in dense.items()},
            {name: updates[name].to(value) for name, value in dense.items() if name in updates},
            retain,
        )

    @property
    def initial(self) -> Values:
        """The weights under the initial masks, with updates."""
        return {n: masked(self.updates.get(n, self.dense[n]), mask) for n, mask in self.masks.items()}

    @property
    def combined(self) -> Values:
        """The value of each weight where it is kept: dense, or a retained update."""
        if not self.retain:
            return self.dense
        updated = {name: torch.where(self.masks[name], self.dense[name], value) for name, value in self.updates.items()}
        return self.dense | updated

    def under(self, masks: Masks) -> Values:
        """The weights under rebuilt masks."""
        combined = self.combined
        return {name: masked(combined[name], mask) for name, mask in masks.items()}

    def changed(self, masks: Masks, values: Values) -> Values:
        """The values that differ from the masked dense ones."""
        return {n: value for n, value in values.items() if not value.equal(masked(self.dense[n], masks[n]))}
