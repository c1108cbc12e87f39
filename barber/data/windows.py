"""Split a token stream into windows of equal length, each with the first token that the model expects."""

from __future__ import annotations

import random
from collections.abc import Generator

import psutil
import torch

from barber.errors import UserError
from barber.events import Progress
from barber.registry import WindowStart

WINDOWS_PER_EVENT = 1024  # windows between two events; a job can be stopped at each event


def first_token(tokenizer, start: str) -> int | None:
    """Return the token that every window must start with, or None if no token is prepended to windows.

    tokenizer: None is treated as a tokenizer without a beginning-of-text token (BOS). start: see registry.WindowStart.
    Raises UserError for an unknown `start`, and for "bos" if the tokenizer has no BOS.
    """
    if start not in list(WindowStart):
        raise UserError(f"--window_start {start!r} is unknown: choose one of {', '.join(WindowStart)}.")
    bos = getattr(tokenizer, "bos_token_id", None)
    if start == WindowStart.BOS and bos is None:
        raise UserError("--window_start bos needs a tokenizer with a beginning-of-text token: give auto or none.")
    adds = bos is not None and tokenizer("x").input_ids[:1] == [bos]
    return bos if start == WindowStart.BOS or (start == WindowStart.AUTO and adds) else None


def draw(
    tokens: torch.Tensor, samples: int, seqlen: int, rng: random.Random, first: int | None, source: str
) -> Generator[Progress, None, torch.Tensor]:
    """Return (samples, seqlen) windows from random positions of a stream (tokens,), sampled as in the published code.

    first: the token that each window starts with, if any; it occupies the first position of the window and does not
    change which positions of the stream are sampled.
    """
    check_length(len(tokens), seqlen + 1, source)
    rows = room_for(samples, seqlen)
    for index in range(samples):
        if index % WINDOWS_PER_EVENT == 0:
            yield Progress("data", index, samples, source)
        rows[index] = random_window(tokens, seqlen, rng, first)
    return rows


def random_window(tokens: torch.Tensor, seqlen: int, rng: random.Random, first: int | None) -> torch.Tensor:
    """Return (seqlen,) tokens from a random position of a stream (tokens,) that is longer than seqlen."""
    return _window(tokens, rng.randint(0, len(tokens) - seqlen - 1), seqlen, first)


def cut(tokens: torch.Tensor, seqlen: int, most: int | None, first: int | None, source: str) -> torch.Tensor:
    """Split a stream (tokens,) into (windows, seqlen), in order, without overlap.

    Returns at most `most` windows; the remaining tokens that do not fill a window are dropped. first: the token that
    each window starts with, if any; it is not prepended where the stream already has it at that position.
    """
    check_length(len(tokens), seqlen, source)
    if first is None:
        return tokens[: len(tokens) // seqlen * seqlen].view(-1, seqlen)[:most]
    rows: list[torch.Tensor] = []
    place = 0
    while len(rows) != most and len(window := _window(tokens, place, seqlen, first)) == seqlen:
        rows.append(window)
        place += seqlen - (int(tokens[place]) != first)
    return torch.stack(rows)


def room_for(samples: int, seqlen: int) -> torch.Tensor:
    """Return an uninitialised (samples, seqlen) int64 tensor. Raises UserError if it is larger than the free memory."""
    size, free = 8 * samples * seqlen, psutil.virtual_memory().available
    if size > free:
        raise UserError(
            f"{samples} sequences of {seqlen} tokens take {size / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of memory "
            "are free: ask for fewer or shorter ones."
        )
    return torch.empty(samples, seqlen, dtype=torch.int64)


def begin_with(tokens: torch.Tensor, bos: int | None) -> WindowStart:
    """Return BOS if every one of the windows (windows, seqlen) starts with the token `bos`, else NONE."""
    every = bos is not None and bool((tokens[:, 0] == bos).all())
    return WindowStart.BOS if every else WindowStart.NONE


def check_length(tokens: int, needed: int, source: str) -> None:
    """Raise UserError if a stream has fewer tokens than needed."""
    if tokens < needed:
        raise UserError(
            f"{source} is too short: it has {tokens} tokens and at least {needed} are needed; give more text or a "
            "shorter sequence length."
        )


def _window(tokens: torch.Tensor, place: int, seqlen: int, first: int | None) -> torch.Tensor:
    """Return (seqlen,) tokens from `place`, fewer at the stream's end; prepend `first` unless it is already there."""
    window = tokens[place : place + seqlen]
    if first is None or window[:1].tolist() == [first]:
        return window
    return torch.cat([window.new_tensor([first]), window[: seqlen - 1]])
