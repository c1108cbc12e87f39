"""The split of the calibration sequences into train and validation sequences."""

from __future__ import annotations

from barber.config import VALIDATION_EVERY, PruneConfig


def split_sequences(sequences: int, config: PruneConfig) -> tuple[list[int], list[int]]:
    """Train and validation sequences: every fourth is for validation if the run needs any, else all are for both.

    Raises UserError if there are too few for validation.
    """
    config.split_sizes(sequences)
    every = list(range(sequences))
    if not config.uses_validation:
        return every, every
    return [j for j in every if (j + 1) % VALIDATION_EVERY], every[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
