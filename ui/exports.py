"""The files that visitors take away of a run: made when they are asked for, in a folder that the page may serve."""

from __future__ import annotations

import atexit
import hashlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gradio.utils import get_upload_folder

from analysis.report import report
from analysis.tables import as_csv, as_json, tables
from barber.atomic_files import reason_and_remedy, write_file
from barber.errors import UserError
from barber.runs.directory import RunDirectory
from barber.runs.masks_file import write_masks
from ui.hub import KEPT_SECONDS, Hub

SECRET = secrets.token_bytes(32)  # so that nobody can tell the place of a file from anything else


class Kind(NamedTuple):
    """A kind of file: its title, a noun for it, what is in it, its name, and what writes it."""

    title: str
    noun: str
    content: str
    file: str
    write: Callable[[RunDirectory, Path], None]


KINDS = {
    "report": Kind(
        "Report",
        "report",
        "Settings, figures, tables and texts as one HTML page, which needs no network.",
        "barber-report.html",
        lambda run, file: write_file(file, report(run)),
    ),
    "csv": Kind(
        "Tables as CSV",
        "CSV tables",
        "Every table of the run, one file each, in a zip archive.",
        "barber-tables.zip",
        lambda run, file: write_file(file, as_csv(tables(run))),
    ),
    "json": Kind(
        "Tables as JSON",
        "JSON tables",
        "The same tables in one file.",
        "barber-tables.json",
        lambda run, file: write_file(file, as_json(tables(run))),
    ),
    "masks": Kind(
        "Masks",
        "masks",
        "The final masks, bit-packed, for <code>python main.py apply</code>, which makes the pruned model of them.",
        "barber-masks.safetensors",
        lambda run, file: write_masks(run.stage_masks(), file),
    ),
}


def export(hub: Hub, run_id: str | None, kind: str) -> Path:
    """The file of a run, which is made unless it is there. Raises UserError for a run that has no results.

    Its folder has a name that cannot be guessed; so only who has the id of the run gets it. kind: a key of KINDS.
    """
    if not run_id or not hub.has_results(run_id):
        raise UserError("There are no results of such a run: give the id of a run that has ended.")
    if kind == "masks" and hub.history.read(run_id).example:
        raise UserError("An example has the masks of a few layers only: run it yourself to save its masks.")
    _delete_old()
    what = f"{run_id} {len(hub.events(run_id))} {kind}".encode()
    place = _folder() / hashlib.blake2b(what, digest_size=16, key=SECRET).hexdigest()
    file = place / KINDS[kind].file
    if not file.exists():
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            KINDS[kind].write(RunDirectory(hub.path(run_id)), file)
        except UserError as error:  # without the place of the run on this machine
            raise UserError(str(error).replace(f" in {hub.path(run_id)}", "")) from None
        except OSError as error:
            raise UserError(f"{file.name} cannot be written {reason_and_remedy(error)}.") from None
    return file


@cache
def _folder() -> Path:
    """The folder of this process's files, inside Gradio's own; it is deleted when the process ends."""
    served = Path(get_upload_folder())
    served.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="barber-", dir=served))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _delete_old() -> None:
    """Delete files as old as the runs that are deleted."""
    for place in _folder().iterdir():
        with suppress(FileNotFoundError):  # another visitor's request has just done the same
            if time.time() - place.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(place, ignore_errors=True)
