"""What a job writes for the user: checked before the work, written completely or not at all."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from barber.atomic_files import check_room, probe, reason_and_remedy, write_file
from barber.data.sources import FILE_TYPES
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Event, Notice, Saved, SubBlockRebuilt
from barber.models.loading import LoadedModel
from barber.models.saving import clear_draft, draft_root
from barber.registry import BARBER
from barber.runs.recorder import is_new

TOKENS, GAINS = "calibration.npy", "gains"  # in the folder of --save_data

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
            if flag == "save_data" and not _is_data(path):
                raise UserError(
                    f"--save_data {path} is neither a .npy file nor a new or empty folder: give a name that ends in "
                    ".npy for the tokens alone, or a new folder for the tokens and the gains of all pairs."
                )
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


def _is_data(path: Path) -> bool:
    """Whether --save_data may write to a path: a .npy file, or a new or empty folder."""
    if path.suffix == ".npy":
        return path.is_file() or not path.exists()
    return path.suffix not in FILE_TYPES and (not path.exists() or (path.is_dir() and not any(path.iterdir())))


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


def save_calibration(calibration: CalibrationSet, path: Path) -> Path:
    """Write the tokens (samples, seqlen) as .npy, which a later job can read as calibration data; return its path.

    path: the file, or the folder that gets it. Another file is never overwritten: it may be all that is left of the
    tokens of an earlier run.
    """
    path = path if path.suffix == ".npy" else path / TOKENS
    data = io.BytesIO()
    np.save(data, calibration.tokens.numpy())
    try:
        if path.exists():
            if path.read_bytes() != data.getvalue():
                raise UserError(
                    f"--save_data {path} holds something else than the tokens of this job, which overwrites nothing: "
                    "move it, or give another name."
                )
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data.getvalue())
    except OSError as error:
        raise UserError(f"The calibration tokens cannot be written to {path} {reason_and_remedy(error)}.") from None
    return path


def save_gains(events: Generator[Event, None, None], path: Path) -> Generator[Event, None, None]:
    """Pass a run's events on, and write the curve of gains of each rebuilt sub-block into the folder `path`.

    "gains/layer_000.self_attn.csv" has the columns rank (of a gaining pair, from 1), share (rank / number of gaining
    pairs) and gain, see events.GainCurve. The last event is Saved, if there are such curves.
    """
    folder, written = path / GAINS, False
    with closing(events):
        for event in events:
            if isinstance(event, SubBlockRebuilt) and event.curve:
                rows = zip(event.curve.ranks, event.curve.gains, strict=True)
                lines = ["rank,share,gain", *(f"{rank},{rank / event.candidates:.6g},{gain!r}" for rank, gain in rows)]
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_file(
                        folder / f"layer_{event.layer:03}.{event.sub_block}.csv", ("\n".join(lines) + "\n").encode()
                    )
                except OSError as error:
                    raise UserError(f"The gains cannot be written to {folder} {reason_and_remedy(error)}.") from None
                written = True
            yield event
    if written:
        yield Saved("gains", str(folder))
    else:
        yield Notice(
            f"--save_data wrote no gains to {path}: only a rebuild by the refiner {BARBER} pairs weights by saliency."
        )
