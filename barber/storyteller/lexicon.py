"""The words of the world, read from lexicon.toml beside this file."""

import tomllib
from pathlib import Path

_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def listed(name: str) -> list[str]:
    """Return a list of the lexicon, in file order; the generated world and stories depend on the order."""
    words = _DATA[name]
    return words.split() if isinstance(words, str) else words


def described(name: str) -> dict:
    """Return a table of the lexicon: word -> its attributes."""
    return _DATA[name]
