"""Progress of a job: events from ticks of work, and an estimate of the remaining time from events."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar, cast

from barber.events import Event, JobPlanned, Progress

T = TypeVar("T")


class Tick:
    """One step of work is done; `Phase.follow` converts it to Progress."""


TICK = Tick()
Steps = Generator[Event | Tick, None, T]  # work that ticks after each of its steps, and returns a T


@dataclass
class Phase:
    """A phase of a run. It converts ticks of work to Progress.

    Attributes:
        name: as in JobPlanned.
        per_layer: steps of each layer at most; steps that a layer does not need count as done when the next one begins.
        layers: number of layers.
    """

    name: str
    per_layer: int
    layers: int
    done: int = 0

    def follow(self, layer: int, where: str, work: Steps[T]) -> Generator[Event, None, T]:
        """Yield events of work on a layer, with Progress for each tick; return the result of the work."""
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
    """An estimate of the remaining time, updated with every event of a job; phases have the costs in JobPlanned.

    The rest of the running phase is estimated by that phase's speed, later phases by the speed of the whole job.
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
        """Completed share of the job's cost, 0 to 1."""
        total = sum(self.costs.values())
        done = sum(cost * self.shares.get(phase, 0.0) for phase, cost in self.costs.items())
        return done / total if total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end of the job, or None while it cannot be estimated."""
        now, share = time.monotonic(), self.shares.get(self.phase, 0.0)
        cost = self.costs.get(self.phase, 0.0)
        if not cost or not share or self.fraction >= 1:
            return None
        here = (now - self.phase_started) * (1 - share) / share
        later = sum(c for phase, c in self.costs.items() if self.shares.get(phase, 0.0) == 0.0)
        pace = (now - self.started) / (self.fraction * sum(self.costs.values()))
        return here + later * pace
