"""Forward records: a dense forward pass of a sub-block, and squared gradients once the error is known.

The backward pass computes the gradients D of the outputs of linear layers only. The gradient of a weight for a
sequence with inputs X is D^T X, so one backward pass per batch suffices for the sum of squares over sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from barber.models.decoder import Outputs, SubBlock
from barber.models.replay import Call
from barber.models.taps import Taps, by_name, tapping

ELEMENTS = 2**18  # of gradients computed at a time: fits into a cache, and covers several small matrices at once


@dataclass(frozen=True, eq=False)
class ForwardRecord:
    """A dense forward pass on one batch: the output (batch, seqlen, hidden) and the calls of the weights.

    With experts the batch is one sequence, since the tokens of an expert do not say which sequence they are of.
    """

    output: Tensor
    taps: Taps

    @classmethod
    def record(cls, block: SubBlock, call: Call, others: Outputs | None = None) -> ForwardRecord:
        """Run the sub-block, which must have its dense weights. others: as in SubBlock.replay."""
        with torch.enable_grad(), tapping(by_name(block.weights), leaves=True) as taps:
            return cls(block.replay(call, others), taps)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights' inputs and outputs, about half of the record's memory."""
        tensors = [tensor for calls in self.taps.values() for tap in calls for tensor in (tap.x, tap.y)]
        return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())

    def add_squared_gradients(self, block: SubBlock, difference: Tensor, total: Mapping[str, Tensor]) -> None:
        """Add the squared gradient of each sequence's error to `total`, name -> fp32 (out, in).

        The gradient is with respect to the dense weights. difference: fp32 (batch, seqlen, hidden), the target output
        minus the sub-block's; a sequence's error is the mean of its square. Half-precision gradients would underflow,
        so the difference is multiplied by a power of two, which is divided out exactly.
        """
        numel = difference[0].numel()
        scale = 2.0 ** round(math.log2(numel))
        outputs = {id(tap.y): tap.y for calls in self.taps.values() for tap in calls}
        gradients = torch.autograd.grad(
            self.output,
            list(outputs.values()),
            (difference * (2 * scale / numel)).to(self.output.dtype),
            allow_unused=True,
            materialize_grads=True,
        )
        of = dict(zip(outputs, gradients, strict=True))
        for weight in block.weights:
            calls = [(tap.own(tap.x.detach()), tap.own(of[id(tap.y)])) for tap in self.taps.get(weight.name, [])]
            _add_squares(total[weight.name], calls, len(difference), scale)


def _add_squares(total: Tensor, calls: list[tuple[Tensor, Tensor]], batch: int, scale: float) -> None:
    """Add the sum over sequences of the squared sum over calls of D^T X to `total`, fp32 (out, in)."""
    split = [(x.reshape(batch, -1, total.shape[1]).to(d.dtype), d.reshape(batch, -1, total.shape[0])) for x, d in calls]
    step = max(1, ELEMENTS // total.numel())
    for start in range(0, batch if split else 0, step):
        part = slice(start, start + step)
        if step == 1:
            each = reduce(torch.add, (d[start].T @ x[start] for x, d in split)).float()
            total.addcmul_(each, each, value=1 / scale**2)
        else:
            each = reduce(torch.add, (torch.bmm(d[part].transpose(1, 2), x[part]) for x, d in split)).float()
            total.add_(each.square_().sum(0), alpha=1 / scale**2)
        del each  # before computing the next one
