"""How far a job is: ticks of work that become Progress, and from a job's events alone, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar, cast

from barber.events import Event, JobPlanned, Progress

T = TypeVar("T")


class Tick:
    """One step of some work is done; `Phase.follow` makes a Progress of it."""


TICK = Tick()
Steps = Generator[Event | Tick, None, T]  # work that ticks after each of its steps, and returns a T


@dataclass
class Phase:
    """A phase of a run, with as many steps for each layer at most. Work knows nothing of it: it ticks.

    Attributes:
        name: as in JobPlanned.
        per_layer: steps of each layer at most; what needs fewer is taken as done when the next layer begins.
        layers: how many there are.
    """

    name: str
    per_layer: int
    layers: int
    done: int = 0

    def follow(self, layer: int, where: str, work: Steps[T]) -> Generator[Event, None, T]:
        """The events of some work on a layer, with a Progress for each of its ticks; what the work returns."""
        end = (layer + 1) * self.per_layer
        self.done = max(self.done, end - self.per_layer)
        with closing(work):
            while True:
                try:
                    item = next(work)
                except StopIteration as finished:
                    return cast("T", finished.value)
                if isinstance(item, Tick):
                    self.done = min(self.done + 1, end)
                    item = Progress(
                        self.name, self.done, self.layers * self.per_layer, f"layer {layer} {where}".strip()
                    )
                yield item


@dataclass
class Eta:
    """Fed with every event of a job; phases weigh what JobPlanned says they cost.

    Each phase is timed by itself, so that a slow phase at the start does not mislead about a fast one at the end:
    what is left of the running phase goes at that phase's own pace, later phases at the pace of the whole job so far.
    """

    costs: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    phase: str = ""
    phase_started: float = 0.0

    def update(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, JobPlanned):
            self.costs, self.started = dict(event.phases), now
        elif isinstance(event, Progress):
            if event.phase != self.phase:
                for earlier in self.costs:
                    if earlier == event.phase:
                        break
                    self.shares[earlier] = 1.0
                self.phase, self.phase_started = event.phase, now
            self.shares[event.phase] = event.done / event.total

    @property
    def fraction(self) -> float:
        """Share of the job's cost that is done, 0 to 1."""
        total = sum(self.costs.values())
        done = sum(cost * self.shares.get(phase, 0.0) for phase, cost in self.costs.items())
        return done / total if total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end of the job, or None while there is nothing to judge by."""
        now, share = time.monotonic(), self.shares.get(self.phase, 0.0)
        cost = self.costs.get(self.phase, 0.0)
        if not cost or not share or self.fraction >= 1:
            return None
        here = (now - self.phase_started) * (1 - share) / share
        later = sum(c for phase, c in self.costs.items() if self.shares.get(phase, 0.0) == 0.0)
        pace = (now - self.started) / (self.fraction * sum(self.costs.values()))
        return here + later * pace
