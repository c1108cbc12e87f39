"""Which calibration sequences a run learns from, and which ones it measures its choices on."""

from __future__ import annotations

from barber.config import VALIDATION_EVERY, PruneConfig


def split_sequences(sequences: int, config: PruneConfig) -> tuple[list[int], list[int]]:
    """Train and validation sequences: every fourth validates where the run needs any, else all are both.

    Raises UserError where none would be left to validate on.
    """
    config.split_sizes(sequences)
    every = list(range(sequences))
    if not config.uses_validation:
        return every, every
    return [j for j in every if (j + 1) % VALIDATION_EVERY], every[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
