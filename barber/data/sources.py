"""Token streams from a data spec: which specs there are, local files, the bundled stories."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path

import numpy as np
import torch

from barber import console
from barber.bundled import STORYTELLER
from barber.errors import UserError
from barber.registry import DATA_SOURCES

FILE_TYPES = (".txt", ".jsonl", ".npy")


class Part(Enum):
    """Which part of a local file is used: all of it, or one half where the other half has another use."""

    WHOLE = ""
    FIRST = " (first half)"
    SECOND = " (second half)"

    def of(self, items):
        """This part of a list or tensor, cut along its first dimension."""
        middle = len(items) // 2
        return {Part.WHOLE: items, Part.FIRST: items[:middle], Part.SECOND: items[middle:]}[self]


def local_file(spec: str) -> Path | None:
    """The resolved path of a spec that is a local file, None for a named data set; UserError for anything else."""
    if spec in DATA_SOURCES:
        return None
    path = console.path(spec)
    if path.suffix.lower() not in FILE_TYPES:
        raise UserError(
            f"Data {spec!r} is unknown: give one of {', '.join(DATA_SOURCES)}, or a file that ends in "
            f"{', '.join(FILE_TYPES)}."
        )
    if not path.is_file():
        raise UserError(f"Data file {spec!r} does not exist: give the path of a {', '.join(FILE_TYPES)} file.")
    return path.resolve()


def need_tokenizer(tokenizer, spec: str) -> None:
    """UserError if there is no tokenizer to read text with."""
    if tokenizer is None:
        raise UserError(
            f"The model has no tokenizer, which the text of {spec!r} needs: add the tokenizer to the model's folder, "
            "or give token ids as a .npy file."
        )


def tokenise(tokenizer, text: str) -> list[int]:
    """Token ids of a text, with the special tokens that the tokenizer itself adds."""
    return tokenizer(text, verbose=False).input_ids  # verbose would warn of texts longer than the model


def file_tokens(path: Path, tokenizer, part: Part) -> torch.Tensor:
    """Token ids of a part of a local file, int64.

    Text gives one stream (tokens,): a .txt file is one document, each line of a .jsonl file one, and documents follow
    each other with the tokenizer's own special tokens and nothing else between them. A .npy file gives what it holds,
    (tokens,) or (sequences, seqlen). A half is a half of the documents; of a single document, of its tokens.
    """
    if path.suffix.lower() == ".npy":
        return part.of(_read_npy(path))
    need_tokenizer(tokenizer, path.name)
    documents = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else [_read_text(path)]
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise UserError(f"Data file {path.name} holds no text: give a file with text in it.")
    if len(documents) == 1:
        return part.of(torch.tensor(tokenise(tokenizer, documents[0]), dtype=torch.int64))
    ids = [token for text in part.of(documents) for token in tokenise(tokenizer, text)]
    return torch.tensor(ids, dtype=torch.int64)


def story_rows(split: str, tokenizer, rows: int, seqlen: int, seed: int) -> torch.Tensor:
    """The bundled stories of a split in windows, (rows, seqlen) int64, each BOS story EOS BOS story ...

    Every window begins with a story, so that nothing in it is told without its beginning; the last story is cut.
    """
    from barber.storyteller import documents

    need_tokenizer(tokenizer, STORYTELLER)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    full: list[list[int]] = []
    row: list[int] = []
    stories = 0
    while len(full) < rows:
        wanted = max(64, 2 * stories)
        for text in documents(split, wanted, seed)[stories:]:
            row += tokenise(tokenizer, text) + end
            if len(row) >= seqlen:
                full.append(row[:seqlen])
                row = []
        stories = wanted
    return torch.tensor(full[:rows], dtype=torch.int64)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Data file {path.name} cannot be read as UTF-8 text: {error}.") from None


def _read_jsonl(path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, IndexError):
            text = None
        if not isinstance(text, str) or not _is_unicode(text):
            raise UserError(
                f'Line {number} of {path.name} is not of the form {{"text": "..."}}: mend it or leave it out.'
            )
        texts.append(text)
    return texts


def _is_unicode(text: str) -> bool:
    """Whether no lone surrogate is in a text: JSON can write them, UTF-8 and tokenizers cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_npy(path: Path) -> torch.Tensor:
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"Data file {path.name} cannot be read as a .npy file of integers: {error}.") from None
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        found = f"{ids.dtype} {ids.shape}" if isinstance(ids, np.ndarray) else "several arrays"
        raise UserError(
            f"Data file {path.name} holds {found}, but integer token ids of shape (tokens,) or (sequences, seqlen) are "
            "needed."
        )
    ids = torch.from_numpy(ids.astype(np.int64))
    if ids.numel() and int(ids.min()) < 0:
        raise UserError(f"Data file {path.name} holds the negative id {int(ids.min())}, but token ids start at 0.")
    return ids
