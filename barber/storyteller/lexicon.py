"""The words of the world, read from lexicon.toml beside this file."""

import tomllib
from pathlib import Path

_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def listed(name: str) -> list[str]:
    """A list of the lexicon, in its order, which is part of the world."""
    words = _DATA[name]
    return words.split() if isinstance(words, str) else words


def described(name: str) -> dict:
    """A table of the lexicon: from a word to what is said of it."""
    return _DATA[name]
