"""Calibration sequences that the dense model samples itself, for a model whose training data are not at hand.

Self-calibration for pruning: arXiv 2410.17170. Here every token is sampled from the model's own distribution, at
temperature 1.
"""

from __future__ import annotations

from collections.abc import Generator

import torch

from barber.data.token_sets import CalibrationSet
from barber.data.windows import room_for
from barber.errors import UserError
from barber.evaluation.generation import next_logits, sample
from barber.events import Event, Progress
from barber.registry import SELF

BATCH = 16  # sequences sampled at a time


def sample_calibration(
    model, tokenizer, samples: int, seqlen: int, seed: int, first: int | None
) -> Generator[Event, None, CalibrationSet]:
    """Sample `samples` sequences of `seqlen` tokens with `seed`: yield Progress events, and return the set.

    first: the token that every sequence must start with. If it is None, the sequences follow the beginning-of-text
    token of the tokenizer, or its end-of-text token, without containing it. Raises UserError if there is none, and if
    the model is read layer by layer.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(
            "Calibration text 'self' needs the whole model in memory, but it is read layer by layer: give another text."
        )
    starts = (first, getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    start = next((token for token in starts if token is not None), None)
    if start is None:
        raise UserError(
            "Calibration text 'self' needs a tokenizer with a token that begins or ends a text: give another text."
        )
    generator = torch.Generator().manual_seed(seed % 2**63)
    rows = room_for(samples, seqlen + 1)
    rows[:, 0] = start
    length = seqlen if first is not None else seqlen + 1
    batches = rows.split(BATCH)
    for number, part in enumerate(batches):
        cache = None
        for position in range(1, length):
            yield Progress("data", number * length + position, len(batches) * length, SELF)
            logits, cache = next_logits(model, part[:, :position], cache)
            part[:, position] = sample(logits, generator)
    return CalibrationSet(rows[:, length - seqlen : length].contiguous(), f"{SELF} (sampled)", seed)
