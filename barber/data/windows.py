"""Windows of equal length, cut from a stream of tokens, each begun as the model expects it."""

from __future__ import annotations

import random
from collections.abc import Generator

import psutil
import torch

from barber.errors import UserError
from barber.events import Progress
from barber.registry import WindowStart

PIECE = 1024  # windows between two events, so that a job can be stopped


def first_token(tokenizer, start: str) -> int | None:
    """The token that every window is to begin with; None where windows are cut as the text comes.

    tokenizer: None counts as one without a beginning-of-text token (BOS). start: see registry.WindowStart. Raises
    UserError for an unknown one, and for "bos" without such a token.
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
    """(samples, seqlen) from random places of a stream (tokens,), with the published code's draws.

    first: the token that each begins with, if any; it takes a place in the window, not in the draw.
    """
    check_length(len(tokens), seqlen + 1, source)
    rows = room_for(samples, seqlen)
    for index in range(samples):
        if index % PIECE == 0:
            yield Progress("data", index, samples, source)
        rows[index] = random_window(tokens, seqlen, rng, first)
    return rows


def random_window(tokens: torch.Tensor, seqlen: int, rng: random.Random, first: int | None) -> torch.Tensor:
    """(seqlen,) from a random place of a stream (tokens,) of more than seqlen."""
    return _window(tokens, rng.randint(0, len(tokens) - seqlen - 1), seqlen, first)


def cut(tokens: torch.Tensor, seqlen: int, most: int | None, first: int | None, source: str) -> torch.Tensor:
    """(windows, seqlen) of a stream (tokens,) in its order, without overlap; at most `most`, a shorter rest left out.

    first: the token that each begins with, if any; where the stream has it there, it is not put there again.
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
    """An empty (samples, seqlen) int64; UserError, at once, where that is beyond the memory that is free."""
    size, free = 8 * samples * seqlen, psutil.virtual_memory().available
    if size > free:
        raise UserError(
            f"{samples} sequences of {seqlen} tokens take {size / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of memory "
            "are free: ask for fewer or shorter ones."
        )
    return torch.empty(samples, seqlen, dtype=torch.int64)


def begin_with(tokens: torch.Tensor, bos: int | None) -> WindowStart:
    """What the windows (windows, seqlen) begin with: BOS if every one of them does."""
    every = bos is not None and bool((tokens[:, 0] == bos).all())
    return WindowStart.BOS if every else WindowStart.NONE


def check_length(tokens: int, needed: int, source: str) -> None:
    """UserError where a stream of so many tokens is shorter than needed."""
    if tokens < needed:
        raise UserError(
            f"{source} is too short: it has {tokens} tokens and at least {needed} are needed; give more text or a "
            "shorter sequence length."
        )


def _window(tokens: torch.Tensor, place: int, seqlen: int, first: int | None) -> torch.Tensor:
    """(seqlen,) of a stream from `place` on, after `first` unless that stands there; shorter at the stream's end."""
    window = tokens[place : place + seqlen]
    if first is None or window[:1].tolist() == [first]:
        return window
    return torch.cat([window.new_tensor([first]), window[: seqlen - 1]])
