"""Statistics of the inputs of linear layers, summed over the calibration sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from barber.kernels.statistics import STATISTICS
from barber.models.decoder import Values, Weight
from barber.models.replay import Taps, tapping
from barber.progress import TICK, Steps
from barber.pruning.distributed import Ranks


class StatisticSums:
    """Sums of a statistic over forward passes, name -> tensor; linears with the same inputs share a sum.

    statistic: a name of kernels.statistics.STATISTICS, or None for no sums.
    """

    def __init__(self, statistic: str | None) -> None:
        self._statistic = STATISTICS[statistic] if statistic else None
        self.values: Values = {}

    @torch.no_grad()
    def add(self, taps: Taps) -> None:
        """Add the statistic of the inputs (tokens, in) of one forward pass, computed once for shared inputs."""
        if self._statistic is None:
            return
        known: dict[tuple[int, ...], Tensor] = {}
        added: set[int] = set()
        for name, calls in taps.items():
            key = tuple(id(tap.x) for tap in calls)
            if key not in known:
                known[key] = cast("Tensor", sum(self._statistic(tap.x.detach().flatten(0, -2)) for tap in calls))
            if name not in self.values:
                self.values[name] = known[key]
            elif id(self.values[name]) not in added:
                added.add(id(self.values[name]))
                self.values[name].add_(known[key])


def linears_of(weights: Iterable[Weight]) -> dict[str, torch.nn.Module]:
    """The modules of weights by name, for `tapping`."""
    return {weight.name: weight.module for weight in weights}


def gather_statistic(
    statistic: str | None,
    weights: Sequence[Weight],
    batches: Iterable[int],
    run: Callable[[int], object],
    ranks: Ranks,
) -> Steps[Values]:
    """The statistic of the inputs of weights, name -> tensor, over all ranks; nothing runs if it is None.

    run: runs the modules of the weights on a batch.
    """
    sums = StatisticSums(statistic)
    for batch in batches if statistic else ():
        with tapping(linears_of(weights)) as taps:
            run(batch)
        sums.add(taps)
        del taps
        yield TICK
    ranks.sum(list(sums.values.values()))
    return sums.values
