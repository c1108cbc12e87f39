"""What every refiner gives: the rebuilt masks of one sub-block, and how it came to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from barber.events import Round
from barber.models.decoder import Masks, Values


@dataclass(frozen=True)
class Refined:
    """Rebuilt masks of a sub-block, with as many zeros in every group as the initial ones.

    Attributes:
        masks: name -> bool (out, in), True = pruned.
        scores: name -> (out, in), the saliency of each weight to the refiner, as first measured.
        candidates: pairs that gain.
        swaps: pairs that were swapped.
        rounds: what each round chose.
        changed: whether kept weights take their values anew, instead of keeping what the initialiser gave them.
    """

    masks: Masks
    scores: Values
    candidates: int
    swaps: int
    rounds: list[Round] = field(default_factory=list)
    changed: bool = True


def grown_count(initial: Masks, rebuilt: Masks) -> int:
    """How many weights the initial masks prune and the rebuilt ones keep."""
    return sum(int((initial[name] & ~mask).count_nonzero()) for name, mask in rebuilt.items())
