"""How far a job is: events that count its steps, and from its events alone, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from barber.events import Event, JobPlanned, Progress


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


def counting(phase: str, each: int, total: int) -> Iterator[Callable[[str], Iterator[Progress]]]:
    """For each layer in turn: place -> events that count on inside the `each` steps of the layer, and end there."""
    last = 0
    while True:
        done, last = last, last + each

        def count(where: str, last: int = last) -> Iterator[Progress]:
            nonlocal done
            while True:
                done = min(done + 1, last)
                yield Progress(phase, done, total, where)

        yield count
