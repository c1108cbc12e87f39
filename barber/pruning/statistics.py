"""Statistics of the inputs of weights, summed over the calibration sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from barber.kernels.statistics import STATISTICS
from barber.models.decoder import Values, Weight
from barber.models.taps import Tap, Taps, by_name, tapping
from barber.progress import TICK, Steps
from barber.pruning.distributed import Ranks


class StatisticSums:
    """Sums of a statistic over forward passes, name -> tensor; weights with the same inputs share a sum.

    statistic: a name of kernels.statistics.STATISTICS, or None for no sums.

    Attributes:
        values: the sums.
        tokens: name -> number of inputs so far.
    """

    def __init__(self, statistic: str | None) -> None:
        self._statistic = STATISTICS[statistic] if statistic else None
        self.values: Values = {}
        self.tokens: dict[str, int] = {}

    @torch.no_grad()
    def add(self, taps: Taps) -> None:
        """Add the statistic of the inputs (tokens, in) of one forward pass, computed once for shared inputs."""
        known: dict[tuple, Tensor] = {}
        added: set[int] = set()
        for name, calls in taps.items():
            inputs = [tap.own(tap.x.detach()).flatten(0, -2) for tap in calls]
            self.tokens[name] = self.tokens.get(name, 0) + sum(map(_tokens, calls, inputs))
            if self._statistic is None:
                continue
            key = tuple((id(tap.x), tap.rows) for tap in calls)
            if key not in known:
                known[key] = cast("Tensor", sum(map(self._statistic, inputs)))
            if name not in self.values:
                self.values[name] = known[key]
            elif id(self.values[name]) not in added:
                added.add(id(self.values[name]))
                self.values[name].add_(known[key])

    def finish(self, weights: Sequence[Weight], ranks: Ranks) -> None:
        """Sum over all ranks. Experts that no token reached on any rank then have no sum."""
        if ranks.world > 1:
            ranks.sum([*self._complete(weights).values(), counts := self._counts(weights)])
            self.tokens = dict(zip(by_name(weights), map(int, counts.tolist()), strict=True))
        for name in [weight.name for weight in weights if weight.is_expert and not self.tokens.get(weight.name)]:
            self.values.pop(name, None)

    def _complete(self, weights: Sequence[Weight]) -> Values:
        """The sums, with zeros for experts that this rank's tokens did not reach, in the same order on every rank.

        Experts share no sum then, since ranks would differ in which are shared.
        """
        if self._statistic is None:
            return {}
        for weight in weights:
            if weight.is_expert:
                view, known = weight.view, self.values.get(weight.name)
                none = torch.zeros(0, view.shape[1], device=view.device)
                self.values[weight.name] = self._statistic(none) if known is None else known.clone()
        self.values = {weight.name: self.values[weight.name] for weight in weights if weight.name in self.values}
        return self.values

    def _counts(self, weights: Sequence[Weight]) -> Tensor:
        """The number of inputs of each weight, int64."""
        return torch.tensor([self.tokens.get(weight.name, 0) for weight in weights], device=weights[0].view.device)


def _tokens(call: Tap, inputs: Tensor) -> int:
    """The number of inputs (tokens, in). If one product is for all experts, those that an expert does not get are 0."""
    return len(inputs) if call.rows is None else int(inputs.any(-1).sum())


def gather_statistic(
    statistic: str | None,
    weights: Sequence[Weight],
    batches: Iterable[int],
    run: Callable[[int], object],
    ranks: Ranks,
) -> Steps[StatisticSums]:
    """The statistic of the inputs of weights over all ranks; nothing runs if it is None.

    run: runs the modules of the weights on a batch.
    """
    sums = StatisticSums(statistic)
    for batch in batches if statistic else ():
        with tapping(by_name(weights)) as taps:
            run(batch)
        sums.add(taps)
        del taps
        yield TICK
    if statistic:
        sums.finish(weights, ranks)
    return sums
