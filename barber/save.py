"""Write a pruned model as a Hugging Face folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from barber.errors import UserError
from barber.load import LoadedModel


def check_new_folder(path: Path | None, flag: str) -> None:
    """UserError unless `path` can become a new folder: it is absent or empty, and its parent can be written."""
    if path is None:
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{flag} {path} is not empty: give a new or empty folder, nothing is overwritten.")
    check_writable(path, flag)


def check_writable(path: Path | None, flag: str) -> None:
    """UserError unless something can be written at `path`; its parent folders are made."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written ({error.strerror}): give a place you may write to.") from None


def save_model(loaded: LoadedModel, path: Path) -> None:
    """Write model (safetensors) and tokenizer so that `from_pretrained` loads them."""
    draft = path.with_name(f".{path.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        loaded.model.save_pretrained(draft)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(draft)
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"The model cannot be written to {path} ({error.strerror}): free some space there.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
