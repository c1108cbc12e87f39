"""The sentence templates of the stories, read from grammar.toml, which explains its notation."""

import tomllib
from pathlib import Path

GRAMMAR: dict[str, list[str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
