"""What is summed over the calibration inputs of linear layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from barber.models.replay import Taps


@torch.no_grad()
def total(taps: Taps, statistic: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The sum of `statistic` of the inputs (tokens, in) of each linear, computed once for linears that share them.

    Linears that share inputs share the tensor of the result.
    """
    known: dict[tuple[int, ...], Tensor] = {}
    for calls in taps.values():
        key = tuple(id(tap.x) for tap in calls)
        if key not in known:
            known[key] = sum(statistic(tap.x.detach().flatten(0, -2)) for tap in calls)
    return {name: known[tuple(id(tap.x) for tap in calls)] for name, calls in taps.items()}


class Sums:
    """Sums of a statistic over many forward passes, name -> tensor; linears that share inputs share their sum."""

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        self.statistic = statistic
        self.values: dict[str, Tensor] = {}

    def add(self, taps: Taps) -> None:
        """Add what the linears saw in one forward pass."""
        new, done = total(taps, self.statistic), set()
        for name, value in new.items():
            if name not in self.values:
                self.values[name] = value
            elif id(self.values[name]) not in done:
                done.add(id(self.values[name]))
                self.values[name].add_(value)
