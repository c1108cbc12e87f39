"""Paths of the bundled model and its zero-shot task, in a checkout or an installed package."""

from __future__ import annotations

from pathlib import Path

STORYTELLER = "storyteller"  # name of the bundled model and of its data set of stories
_PACKAGE = Path(__file__).resolve().parent
ASSETS = next(folder for folder in (_PACKAGE / "assets", _PACKAGE.parent / "assets") if (folder / STORYTELLER).is_dir())
MODEL_DIR = ASSETS / STORYTELLER
TASKS_DIR = ASSETS / "tasks"
