"""What a job writes for the user: checked before the work, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from barber.data.token_sets import CalibrationSet
from barber.errors import UserError, first_line

FRESH = ("save_model", "run_dir")  # folders that must be new, and that nothing else may be written into


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """UserError if any output cannot be written or two are in each other's way.

    outputs: flag name -> where it will write, or None. Nothing is left behind by the check.
    """
    # Not Path.resolve, which raises a RuntimeError of its own where links lead to each other.
    places = {flag: Path(os.path.realpath(path)) for flag, path in outputs.items() if path is not None}
    for folder in FRESH:
        for flag, path in places.items():
            fresh = places.get(folder)
            if flag != folder and fresh is not None and (path == fresh or fresh in path.parents):
                raise UserError(f"--{flag} {path} lies in --{folder} {fresh}: give each a place of its own.")
    for flag, path in places.items():
        try:
            if path.is_symlink():  # even now: it leads back to itself
                raise UserError(f"--{flag} {path} is a link that leads nowhere: give another place.")
            if flag in FRESH and path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(f"--{flag} {path} is not empty: give a new or empty folder, nothing is overwritten.")
            if flag == "save_data" and (path.suffix != ".npy" or path.is_dir()):
                raise UserError(f"--save_data {path} is not a .npy file: give a name that ends in .npy.")
            _probe(path)
        except OSError as error:
            raise UserError(f"--{flag} {path} cannot be written ({error.strerror}): give another place.") from None


def _probe(path: Path) -> None:
    """Make and remove a file beside `path`, and the folders above it that are missing. Raises OSError."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink()
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def save_calibration(calibration: CalibrationSet, path: Path) -> None:
    """Write the tokens (samples, seqlen) as .npy, which can be given back as calibration data."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, calibration.tokens.numpy())
    except OSError as error:
        raise UserError(
            f"The calibration tokens cannot be written to {path} ({first_line(error)}): make room."
        ) from None
