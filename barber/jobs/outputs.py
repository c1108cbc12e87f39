"""What a job writes for the user: checked before the work, written completely or not at all."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from barber.atomic_files import check_room, probe, reason_and_remedy, write_file
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.models.loading import LoadedModel
from barber.models.saving import clear_draft, draft_root
from barber.runs.recorder import is_new

FRESH = ("save_model", "run_dir")  # folders that must be new, and that nothing else may be written into

RESULT_FOLDERS = ("save_ppl", "save_zeroshot")


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """UserError if any output cannot be written or two conflict.

    outputs: flag name -> where it will write, or None. Nothing is left behind by the check.
    """
    given = {flag: path for flag, path in outputs.items() if path is not None}
    for flag, path in given.items():
        with _explained(flag, path):
            given[flag] = path.resolve()
    for folder in FRESH:
        for flag, path in given.items():
            fresh = given.get(folder)
            if flag != folder and fresh is not None and (path == fresh or fresh in path.parents):
                raise UserError(f"--{flag} {path} lies in --{folder} {fresh}: give separate paths.")
    for flag, path in given.items():
        with _explained(flag, path):
            if flag in FRESH and path.exists() and not _is_vacant(flag, path):
                raise UserError(f"--{flag} {path} is not empty: give a new or empty folder, nothing is overwritten.")
            if flag == "save_data" and (path.suffix != ".npy" or (path.exists() and not path.is_file())):
                raise UserError(f"--save_data {path} is not a .npy file: give a name that ends in .npy.")
            if flag in RESULT_FOLDERS and path.exists() and not path.is_dir():
                raise UserError(f"--{flag} {path} is not a folder: give a new one, or one that is there.")
            _try(path, draft_root(path).name if flag == "save_model" else path.name)
            if flag == "save_model":
                clear_draft(path)


@contextlib.contextmanager
def _explained(flag: str, path: Path):
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # as of a loop of links, or a name with a zero in it
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--{flag} {path} cannot be written ({reason}): give another path.") from None


def _is_vacant(flag: str, path: Path) -> bool:
    """Whether nothing of the user's is in a folder."""
    if flag == "run_dir":
        return is_new(path)
    return path.is_dir() and all(place == draft_root(path) for place in path.iterdir())


def _try(path: Path, name: str) -> None:
    """Write and remove a file where the output is to be, by that name if it is new, and the folders that are missing.

    Raises OSError.
    """
    folder = path if path.is_dir() else path.parent
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe(folder)
        with contextlib.suppress(FileExistsError):  # what there is may be overwritten, or was refused before
            (folder / name).mkdir()
            (folder / name).rmdir()
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


def check_model_room(loaded: LoadedModel, path: Path | None) -> None:
    """UserError unless the disk has room for the model that is to be saved."""
    if path:
        check_room(path, sum(parameter.nbytes for parameter in loaded.model.parameters()))


def save_calibration(calibration: CalibrationSet, path: Path) -> None:
    """Write the tokens (samples, seqlen) as .npy, which a later job can read as calibration data.

    Another file is never overwritten: it may be all that is left of the tokens of an earlier run.
    """
    data = io.BytesIO()
    np.save(data, calibration.tokens.numpy())
    try:
        if path.exists():
            if path.read_bytes() != data.getvalue():
                raise UserError(
                    f"--save_data {path} holds something else than the tokens of this job, which overwrites nothing: "
                    "move it, or give another name."
                )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data.getvalue())
    except OSError as error:
        raise UserError(f"The calibration tokens cannot be written to {path} {reason_and_remedy(error)}.") from None
