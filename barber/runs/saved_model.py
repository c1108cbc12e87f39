"""What a run knows of the model that it saves: by which files it would know it again.

saved.json is written before the model takes its place, so whatever a killed process has put there is known.
"""

from __future__ import annotations

from pathlib import Path

from barber.atomic_files import draft_json
from barber.models.saving import folder_digests, is_model, remove_model
from barber.runs.checksums import SAVED, commit, read_vouched


def note_model(run: Path, target: Path, draft: Path) -> None:
    """Record the files of a model that is about to be put from `draft` to `target`."""
    draft_json(run / SAVED, {"path": str(target), "files": folder_digests(draft)})
    commit(run, [SAVED])


def noted_files(run: Path, target: Path) -> dict[str, str]:
    """`folder_digests` of the model that the run saved to `target`; empty if it recorded none there."""
    if not (run / SAVED).is_file():  # also where a process died between its checksum and itself
        return {}
    noted = read_vouched(run, SAVED)
    return noted["files"] if noted.get("path") == str(target) else {}


def is_noted(run: Path, target: Path) -> bool:
    """Whether all that lies at `target` was put there by this run, so that it may be saved there again."""
    return is_model(target, noted_files(run, target))


def withdraw_model(run: Path, target: Path) -> None:
    """Remove what a killed process of this run left at `target`. Raises UserError if anything else is there."""
    if is_noted(run, target):
        remove_model(target, noted_files(run, target))
