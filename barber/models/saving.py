"""Write a model as a Hugging Face folder, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from barber.errors import UserError, first_line
from barber.memory import is_out_of_memory
from barber.models.loading import LoadedModel


@contextlib.contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write a model into, which becomes `path` at the end, or goes away on any error."""
    path = path.resolve()
    draft = path.with_name(f".{path.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The model cannot be written to {path} ({first_line(error)}): make room there.") from None
    except (RuntimeError, ValueError) as error:  # what transformers has against a model that it has loaded itself
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"transformers cannot write this model to {path} ({first_line(error)}): its masks are kept where --run_dir "
            "was given."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_model(loaded: LoadedModel, path: Path) -> None:
    """Write model (safetensors) and tokenizer so that `from_pretrained` loads them."""
    with draft_folder(path) as draft:
        loaded.model.save_pretrained(draft)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(draft)
