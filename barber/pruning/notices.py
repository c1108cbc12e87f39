"""The notices of a finished run: next to no change, harm, experts without tokens, a refit that diverged."""

from __future__ import annotations

from collections.abc import Iterator

from barber.config import PruneConfig
from barber.events import Notice
from barber.models.decoder import NAMED
from barber.pruning.rebuild import measures
from barber.pruning.schedule import Tally
from barber.registry import BARBER

HARM = 0.001  # relative rise of the error; a smaller one may be rounding
FEW = 0.001  # share of the zeros; a rebuild that swaps fewer changes next to nothing


def run_notices(tally: Tally, config: PruneConfig) -> Iterator[Notice]:
    """Yield what there is to say about a finished run."""
    zeros = sum(count for _, count in tally.counts.values())
    if config.barber and tally.swaps < FEW * zeros:
        some = f"only {tally.swaps} pairs were swapped, {100 * tally.swaps / zeros:.2g} % of the zeros"
        found = some if tally.swaps else "no weights were swapped"
        yield Notice(f"The rebuild changed next to nothing: {found}, {_why_few(config)}.")
    if tally.rise > HARM:
        yield Notice(
            f"The {change(config)} raised the output error of the sub-blocks by {tally.rise:.1%} on average: "
            f"{cure(config)}."
        )
    if tally.starved:
        others = len(tally.starved) - NAMED
        names = ", ".join(tally.starved[:NAMED]) + (f" and {others} more" if others > 0 else "")
        yield Notice(
            f"{len(tally.starved)} of {len(tally.counts)} weights have their initial mask by magnitude, since too few "
            f"calibration tokens reached their experts for {config.method}: {names}; give more calibration sequences."
        )
    if tally.diverged:
        yield Notice(
            f"The refit of the kept weights diverged in {', '.join(tally.diverged)} and went back to its best values."
        )


def change(config: PruneConfig) -> str:
    """What the run did after its initial masks, in words."""
    return "rebuild" if config.barber else "refit of the kept weights"


def cure(config: PruneConfig) -> str:
    """What to do about a rebuild or refit that did harm."""
    if config.barber and config.refiner != BARBER:
        return "try --refiner barber with --threshold auto, or --reconstruct"
    if config.barber and not measures(config):
        return "try --threshold auto, which keeps only swaps that lower the error, or a smaller threshold"
    return "try more --nsamples, or a calibration text that is more like the evaluation text"


def _why_few(config: PruneConfig) -> str:
    """Why a rebuild swapped few pairs, and what to do."""
    if config.refiner != BARBER:
        return (
            f"since {config.refiner} found few swaps in single rows that lower the error of a weight's own output; try "
            "--refiner barber with --threshold auto, or --reconstruct"
        )
    if measures(config):
        return (
            "since few swaps that were tried lower the error on the validation sequences; try --reconstruct, or "
            "--prune_method alps"
        )
    return (
        f"since a threshold of {config.threshold:g} of the gaining pairs in each {config.granularity} group leaves "
        "few, rounded down; try --prune_granularity block with --threshold 0.1, --threshold auto, or --reconstruct"
    )
