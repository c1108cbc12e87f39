"""Resolve data specs, and tokenise local files and the bundled stories into token streams."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from pathlib import Path

import numpy as np
import torch

from barber.bundled import STORYTELLER
from barber.data.documents import READERS, file_kind, read_documents
from barber.data.windows import room_for
from barber.errors import Unavailable, UserError
from barber.events import Event, Notice, Progress
from barber.input_files import regular_file
from barber.registry import DATA_SOURCES

FILE_TYPES = (*READERS, ".npy")

TEXTS_PER_EVENT = 32  # number of texts that are tokenised between two events


class Part(Enum):
    """Which part of a local file is used: all of it, or one half if it is both calibration and evaluation data."""

    WHOLE = ""
    FIRST = " (first half)"
    SECOND = " (second half)"

    def of(self, items):
        """Return this part of a list or tensor, split along the first dimension."""
        middle = len(items) // 2
        return {Part.WHOLE: items, Part.FIRST: items[:middle], Part.SECOND: items[middle:]}[self]


def local_file(spec: str) -> Path | None:
    """Return the resolved path of a local file, or None if the spec is a named data set. Raises UserError otherwise."""
    if spec in DATA_SOURCES:
        return None
    path = Path(spec)
    allowed = f"give one of {', '.join(DATA_SOURCES)}, or a file that ends in {', '.join(FILE_TYPES)}"
    known = file_kind(path) in FILE_TYPES
    if not (known or path.suffix or path.name != spec):
        raise UserError(f"Data {spec!r} is unknown: {allowed}.")
    found = regular_file(spec, "Data file", allowed)
    if not known:
        raise UserError(f"Data file {spec!r} is of a format that is not read: {allowed}.")
    return found


def need_tokenizer(tokenizer, spec: str) -> None:
    """Raise Unavailable if there is no tokenizer to tokenise text with."""
    if tokenizer is None:
        remedy = "add the tokenizer to the model's folder, or give token ids as a .npy file"
        raise Unavailable(
            f"The model has no tokenizer, which the text of {spec!r} needs: {remedy}.",
            f"the model has no tokenizer, which text needs: {remedy}",
        )


def tokenise(tokenizer, text: str) -> list[int]:
    """Return the token ids of a text, including the special tokens that the tokenizer adds."""
    return tokenizer(text, verbose=False).input_ids  # verbose would warn about texts longer than the model's context


def file_tokens(path: Path, tokenizer, part: Part, text_field: str) -> Generator[Event, None, torch.Tensor]:
    """Return the token ids of a part of a local file, int64.

    A text file gives one stream (tokens,): its documents (see documents.read_documents) are concatenated, separated
    only by the special tokens that the tokenizer adds. A .npy file gives its array, (tokens,) or (sequences, seqlen).
    A half contains half of the documents, or half of the tokens if there is only one document.
    """
    if file_kind(path) == ".npy":
        return part.of(_read_npy(path))
    need_tokenizer(tokenizer, path.name)
    documents, skipped = read_documents(path, text_field)
    if not documents:
        raise UserError(f"Data file {path.name} holds no text: give a file with text in it.")
    if skipped and part is not Part.SECOND:  # already reported for the first half
        yield Notice(f"{skipped} of {skipped + len(documents)} rows of {path.name} hold no text and were skipped.")
    if len(documents) == 1:
        return part.of(torch.tensor(tokenise(tokenizer, documents[0]), dtype=torch.int64))
    documents = part.of(documents)
    pieces = []
    for index, text in enumerate(documents):
        if index % TEXTS_PER_EVENT == 0:
            yield Progress("data", index, len(documents), path.name)
        pieces.append(torch.tensor(tokenise(tokenizer, text), dtype=torch.int64))
    return torch.cat(pieces)


def story_rows(
    split: str, tokenizer, rows: int, seqlen: int, seed: int, first: int | None
) -> Generator[Progress, None, torch.Tensor]:
    """Return windows of the bundled stories of a split, (rows, seqlen) int64, each BOS story EOS BOS story ...

    Every window starts at the start of a story; its last story is truncated.
    first: the token that is prepended to each window if the tokenizer does not add it.
    """
    from barber.storyteller import iterate_stories

    need_tokenizer(tokenizer, STORYTELLER)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    full, stories = room_for(rows, seqlen), iterate_stories(split, seed)
    for index in range(rows):
        if index % TEXTS_PER_EVENT == 0:
            yield Progress("data", index, rows, STORYTELLER)
        row: list[int] = []
        while len(row) < seqlen:
            ids = tokenise(tokenizer, next(stories).text) + end
            row += ids if row or first in (None, ids[0]) else [first, *ids]
        full[index] = torch.tensor(row[:seqlen])
    return full


def _read_npy(path: Path) -> torch.Tensor:
    """Read token ids, (tokens,) or (sequences, seqlen) int64. Raises UserError for any other content."""
    try:
        with path.open("rb") as file:
            ids = np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # numpy parses the header as Python code, which can raise many types of errors
        raise UserError(
            f"Data file {path.name} cannot be read as a .npy file of integers: write one by numpy.save, without "
            "pickled objects."
        ) from None
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise UserError(
            f"Data file {path.name} holds {ids.dtype} {ids.shape}, but integer token ids are needed: one-dimensional "
            "(tokens,), a stream that is cut into sequences, or two-dimensional (sequences, seqlen)."
        )
    least, most = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if least < 0:
        raise UserError(f"Data file {path.name} holds the negative id {least}, but token ids start at 0.")
    if most >= 2**63:
        raise UserError(f"Data file {path.name} holds the id {most}, but no token has one so large.")
    return torch.from_numpy(ids.astype(np.int64))
