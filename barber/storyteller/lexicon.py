"""The words of the stories, read from lexicon.toml."""

import tomllib
from pathlib import Path

_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def word_list(name: str) -> list[str]:
    """A list of the lexicon. Its order matters: the random draws of world.py depend on it."""
    words = _DATA[name]
    return words.split() if isinstance(words, str) else words


def word_table(name: str) -> dict:
    """A table of the lexicon: word -> its facts."""
    return _DATA[name]
