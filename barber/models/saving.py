"""Write a model as a Hugging Face folder atomically, and recognise such a folder later."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from barber.atomic_files import digest, probe, reason_and_remedy, sync_file, sync_folder
from barber.errors import UserError, first_line
from barber.memory import is_out_of_memory
from barber.models.loading import LoadedModel

MARK = ".drafted-by-barber"  # marks the draft folder of a model
CARD = "README.md"  # which the hub shows as the model's card

Placing = Callable[[Path], None]  # called with the complete draft before it is moved to its path


@contextlib.contextmanager
def draft_folder(path: Path, placing: Placing | None = None, card: str = "") -> Iterator[Path]:
    """A folder to write a model into, which is moved to `path` at the end, or deleted on any error.

    card: the text of its model card, if it gets one.

    An existing empty folder is filled, not replaced, since it may be a mount. The config, without which the model does
    not load, is moved last.
    """
    path = path.resolve()
    root = draft_root(path)
    try:
        clear_draft(path)
        root.mkdir(parents=True)
        (root / MARK).touch()
        draft = root / "model"
        draft.mkdir()
        yield draft
        if card:
            (draft / CARD).write_text(card, encoding="utf-8")
        mode = probe(draft)
        for file in draft.rglob("*"):
            if file.is_file():
                file.chmod(mode)
                sync_file(file)
        if placing:
            placing(draft)
        _replace_by_draft(draft, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The model cannot be written to {path} {reason_and_remedy(error)}.") from None
    except (RuntimeError, ValueError) as error:  # transformers refuses to save some models that it loads
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"transformers cannot write this model to {path} ({first_line(error)}): its masks are kept where --run_dir "
            "was given."
        ) from error
    finally:
        with contextlib.suppress(OSError, UserError):
            clear_draft(path, root)


def draft_root(path: Path) -> Path:
    """The draft folder of a model: inside `path` if that exists, else beside it."""
    return (path if path.is_dir() else path.parent) / f".{path.name}.part"


def clear_draft(path: Path, root: Path | None = None) -> None:
    """Remove the draft of a killed process. UserError if the folder is not a draft."""
    root = root or draft_root(path)
    if root.is_dir() and not root.is_symlink() and ((root / MARK).exists() or not any(root.iterdir())):
        if (root / "model").exists():
            shutil.rmtree(root / "model")
        (root / MARK).unlink(missing_ok=True)
        root.rmdir()
    elif root.exists() or root.is_symlink():
        raise UserError(f"{root} is in the way of the model to write: move it, or give another folder.")


def _replace_by_draft(draft: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(draft, path)
        sync_folder(path.parent)
        return
    placed = []
    try:
        for file in sorted(draft.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
            if (path / file.name).exists():
                raise FileExistsError(f"{file.name} is there already")
            os.replace(file, path / file.name)
            placed.append(path / file.name)
        sync_folder(path)
    except BaseException:
        for file in placed:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        raise


def save_model(loaded: LoadedModel, path: Path, placing: Placing | None = None, card: str = "") -> None:
    """Write model (safetensors) and tokenizer so that `from_pretrained` loads them. card: see draft_folder."""
    with draft_folder(path, placing, card) as draft:
        loaded.model.save_pretrained(draft)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(draft)


def folder_digests(folder: Path | str) -> dict[str, str]:
    """Name within the folder -> digest of each file in it; including links and empty folders.

    Without the draft that a killed process may have left in it.
    """
    folder = Path(folder)
    found, draft = {}, draft_root(folder)
    for place in sorted(folder.rglob("*")):
        if draft in (place, *place.parents) and (draft / MARK).exists():
            continue
        if place.is_file() and not place.is_symlink():
            found[place.relative_to(folder).as_posix()] = digest(place)
        elif place.is_symlink() or not place.is_dir() or not any(place.iterdir()):
            found[place.relative_to(folder).as_posix()] = "not a file"
    return found


def remove_model(folder: Path, files: dict[str, str]) -> None:
    """Delete what exists of a saved model. A mount is emptied, not deleted.

    files: `folder_digests` of the saved model. UserError, and nothing is deleted, if the folder has other files.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not is_model(folder, files):
        raise UserError(
            f"{folder} was not deleted: it has files that this run did not write, so check and delete it yourself."
        )
    for place in folder.iterdir():
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def is_model(folder: Path, files: dict[str, str]) -> bool:
    """Whether all files of a folder are among the saved ones, `folder_digests`; some may be missing."""
    return bool(files) and folder.is_dir() and folder_digests(folder).items() <= files.items()
