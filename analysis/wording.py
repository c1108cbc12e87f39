"""Numbers of a generated text: where it first differs from another one, and how much of it repeats itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

LENGTH = 3  # words of a sequence that may be repeated


def first_difference(text: str, other: str) -> int | None:
    """The number of the first word, counted from 1, in which two texts differ; None where all their words are equal."""
    pairs = zip_longest(text.split(), other.split())
    return next((number for number, (word, match) in enumerate(pairs, 1) if word != match), None)


def repetition(text: str) -> float:
    """The share of the sequences of three words that the text has had before; 0 for fewer than four words."""
    sequences = list(_sequences(text.split()))
    return 1 - len(set(sequences)) / len(sequences) if len(sequences) > 1 else 0.0


def describe(text: str, dense: str) -> str:
    """Both numbers in a sentence. dense: the text that the first is counted against, "" for none."""
    parts = []
    if dense:
        number = first_difference(text, dense)
        parts.append("the same words as the dense model" if number is None else f"first difference at word {number}")
    if share := repetition(text):
        parts.append(f"{100 * share:.0f}\N{NO-BREAK SPACE}% of its three-word sequences repeat earlier ones")
    sentence = ", ".join(parts)
    return sentence[:1].upper() + sentence[1:] + "." if sentence else ""


def _sequences(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(LENGTH)), strict=False)
