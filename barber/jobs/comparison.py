"""Compare the perplexities of a job before and after the rebuild."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from barber.config import PruneConfig
from barber.evaluation.perplexity import rose
from barber.events import Event, Notice, PerplexityMeasured, Stage
from barber.pruning.notices import change, cure


@dataclass
class Comparison:
    """Takes a job's events; `notices` says which perplexities are higher after the rebuild than before it.

    Attributes:
        measured: (stage, data set) -> perplexity, in the order of the job.
    """

    measured: dict[tuple[str, str], PerplexityMeasured] = field(default_factory=dict)

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on, and take the perplexities among them."""
        for event in events:
            if isinstance(event, PerplexityMeasured):
                self.measured[event.stage, event.dataset] = event
            yield event

    def notices(self, config: PruneConfig) -> Iterator[Notice]:
        """Yield one notice that names the data sets, if there are any."""
        harmed = []
        for (stage, dataset), after in self.measured.items():
            before = self.measured.get((Stage.INITIAL, dataset))
            if stage == Stage.REBUILT and before and rose(before, after):
                harmed.append(f"from {before.perplexity:.3f} to {after.perplexity:.3f} on {dataset}")
        if harmed:
            yield Notice(
                f"The {change(config)} raised the perplexity {', '.join(harmed)}, by more than chance explains: "
                f"{cure(config)}."
            )
