"""Progress of a job: events from ticks of work, and an estimate of the remaining time from events."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
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


PRIOR = 0.1  # of the expected time of the whole job: how much the expectation counts beside what was measured
RISE = 0.2  # seconds that the time left rises in a second at most


@dataclass
class Eta:
    """An estimate of the remaining time, updated with every event of a job; phases have the seconds in JobPlanned.

    Work is counted in expected seconds. The time left is the work left, times the ratio of real to expected seconds so
    far. It falls at any rate, and rises slowly: if the work turns out to be slower than expected, it stands still
    rather than jumps. What a resumed run had finished counts as done, but says nothing about the speed.

    Attributes:
        costs: phase -> expected seconds.
        shares: phase -> share of it that is done.
        finished: phase -> share that was done before.
        clock: returns seconds.
        seconds_left: to the end of the job, at the last event; None while it cannot be estimated.
    """

    costs: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    seconds_left: float | None = None
    _started: float = 0.0
    _latest: float = 0.0  # the time of the last event

    def update(self, event: Event) -> None:
        now = self.clock()
        if isinstance(event, JobPlanned):
            self.costs, self.finished, self.shares = dict(event.phases), dict(event.finished), dict(event.finished)
            self.seconds_left, self._started = None, now
        elif isinstance(event, Progress) and event.phase in self.costs:
            for earlier in self.costs:
                if earlier == event.phase:
                    break
                self.shares[earlier] = 1.0
            self.shares[event.phase] = max(self.shares.get(event.phase, 0.0), event.done / event.total)
        else:
            return
        self.seconds_left, self._latest = self._left(now), now

    def _left(self, now: float) -> float | None:
        total, done = sum(self.costs.values()), self._work(self.shares)
        if not total or done >= total:
            return None
        prior = PRIOR * total
        left = (total - done) * (now - self._started + prior) / (done - self._work(self.finished) + prior)
        return left if self.seconds_left is None else min(left, self.seconds_left + RISE * (now - self._latest))

    def _work(self, shares: dict[str, float]) -> float:
        return sum(cost * shares.get(phase, 0.0) for phase, cost in self.costs.items())

    @property
    def fraction(self) -> float:
        """Completed share of the job's expected time, 0 to 1."""
        total = sum(self.costs.values())
        return self._work(self.shares) / total if total else 0.0
