"""One sub-block at work: how the stream calls it, and the weights that it may have."""

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
    """How the stream calls one sub-block of a layer.

    Attributes:
        where: the layer as in "layers.3", for messages.
        block: the sub-block.
        calls: of each batch; their hidden states wait in the stream's store.
        stream: has the batches, and the outputs of the sub-blocks before this one.
        before: the sub-blocks of the layer that run before this one and whose outputs the stream has.
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
        """Run the layer, with the weights that it has, up to the sub-block on every batch."""
        calls = []
        for batch in range(len(stream)):
            call = block.record(stream.call(layer.index, batch), stream.load_outputs(before, batch))
            calls.append(call.with_hidden(stream.store.save(call.hidden)))
        return cls(f"layers.{layer.index}", block, tuple(calls), stream, before, ranks)

    @property
    def batches(self) -> range:
        return range(len(self.calls))

    def call(self, batch: int) -> Call:
        """The call of a batch, ready to be replayed."""
        stored = self.calls[batch]
        return stored.with_hidden(self.stream.store.load(stored.hidden))

    def others(self, batch: int) -> Outputs:
        """The outputs of the sub-blocks before this one."""
        return self.stream.load_outputs(self.before, batch)

    @torch.no_grad()
    def output(self, batch: int) -> Tensor:
        """The sub-block's output (batch, seqlen, hidden), with the weights that it has now."""
        return self.block.replay(self.call(batch), self.others(batch))

    def forward(self, batch: int) -> ForwardRecord:
        """A forward pass with the weights that it has now, recorded for gradients."""
        return ForwardRecord.record(self.block, self.call(batch), self.others(batch))

    def mean(self, errors: Mapping[int, Tensor]) -> float:
        """Mean of the errors of batches, weighed by their sequences, on all ranks together."""
        total = torch.zeros(2, dtype=torch.float64, device=self.block.weights[0].view.device)
        for batch, error in errors.items():
            sequences = self.stream.sizes[batch]
            total += torch.stack([error.double(), torch.ones_like(error, dtype=torch.float64)]) * sequences
        self.ranks.sum([total])
        return (total[0] / total[1]).item()

    def finite_mean(self, errors: Mapping[int, Tensor]) -> float:
        """As `mean`. Raises UserError where it is not finite."""
        error = self.mean(errors)
        if not math.isfinite(error):
            raise UserError(
                f"The output of {self.where} {self.block.name} is not finite: its activations overflow in this dtype, "
                "so run it in float32 or bfloat16."
            )
        return error


@dataclass(frozen=True)
class SubBlockWeights:
    """The weights that a sub-block may have, name -> (out, in).

    Attributes:
        dense: before pruning.
        masks: the initial ones, True = pruned.
        updates: values that the initialiser changed, zero where pruned.
        retain: whether a rebuilt mask keeps the initialiser's values where it had kept the weight.
    """

    dense: Values
    masks: Masks
    updates: Values
    retain: bool

    @classmethod
    def of(cls, dense: Values, initial: State, retain: bool) -> SubBlockWeights:
        """With the dense values' device and dtype; other weights may be in the initial state, too."""
        masks, updates = initial
        return cls(
            dense,
            {name: masks[name].to(value.device) for name, value in dense.items()},
            {name: updates[name].to(value) for name, value in dense.items() if name in updates},
            retain,
        )

    @property
    def initial(self) -> Values:
        """The weights as the initialiser left them."""
        return {n: masked(self.updates.get(n, self.dense[n]), mask) for n, mask in self.masks.items()}

    @property
    def combined(self) -> Values:
        """The value that each weight has where it is kept: dense, or the initialiser's if that is retained."""
        if not self.retain:
            return self.dense
        updated = {name: torch.where(self.masks[name], self.dense[name], value) for name, value in self.updates.items()}
        return self.dense | updated

    def under(self, masks: Masks) -> Values:
        """The weights under rebuilt masks."""
        combined = self.combined
        return {name: masked(combined[name], mask) for name, mask in masks.items()}

    def changed(self, masks: Masks, values: Values) -> Values:
        """Those of the values that are not the dense ones under the masks."""
        return {n: value for n, value in values.items() if not value.equal(masked(self.dense[n], masks[n]))}
