"""Digests of the model that a run saves, by which a resumed run recognises it.

saved.json is written before the model is moved to its folder, so a resumed run recognises an incomplete model as well.
"""

from __future__ import annotations

from pathlib import Path

from barber.atomic_files import draft_json
from barber.models.saving import folder_digests, is_model, remove_model
from barber.runs.checksums import SAVED, commit, read_verified


def note_model(run: Path, target: Path, draft: Path) -> None:
    """Record the files of a model that is about to be moved from `draft` to `target`."""
    draft_json(run / SAVED, {"path": str(target), "files": folder_digests(draft)})
    commit(run, [SAVED])


def noted_files(run: Path, target: Path) -> dict[str, str]:
    """`folder_digests` of the model that the run saved to `target`; empty if it recorded none there."""
    if not (run / SAVED).is_file():  # its checksum alone may exist, after a killed process
        return {}
    noted = read_verified(run, SAVED)
    return noted["files"] if noted.get("path") == str(target) else {}


def is_noted(run: Path, target: Path) -> bool:
    """Whether this run wrote every file at `target`, so that it may save there again."""
    return is_model(target, noted_files(run, target))


def withdraw_model(run: Path, target: Path) -> None:
    """Remove the files that a killed process of this run left at `target`. Raises UserError if it has other files."""
    if is_noted(run, target):
        remove_model(target, noted_files(run, target))
