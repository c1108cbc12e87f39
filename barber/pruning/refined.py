"""The result of every refiner: rebuilt masks of one sub-block, and its rounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from barber.events import GainCurve, Round
from barber.models.decoder import Masks, Values


@dataclass(frozen=True)
class Refined:
    """Rebuilt masks of a sub-block, with the same number of zeros in every group as the initial ones.

    Attributes:
        masks: name -> bool (out, in), True = pruned.
        scores: name -> (out, in), the refiner's saliency of each weight, as first measured.
        candidates: pairs that gain.
        swaps: pairs that were swapped.
        rounds: what each round chose.
        curve: gains of the pairs; None without pairs by saliency.
        changed: whether kept weights get new values (SubBlockWeights.under), or keep those of the initial state.
    """

    masks: Masks
    scores: Values
    candidates: int
    swaps: int
    rounds: list[Round] = field(default_factory=list)
    curve: GainCurve | None = None
    changed: bool = True


def grown_count(initial: Masks, rebuilt: Masks) -> int:
    """Number of weights that the initial masks prune and the rebuilt ones keep."""
    return sum(int((initial[name] & ~mask).count_nonzero()) for name, mask in rebuilt.items())
