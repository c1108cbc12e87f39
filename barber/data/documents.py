"""Read the documents of a local file: .txt, .jsonl, .json, .csv (plain or gzipped) and .parquet."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from barber.errors import UserError

Rows = Iterator[tuple[str, object]]  # the position of a row, like "Line 3", and its value

FIELD_CHARACTERS = 2**31 - 1  # largest size of a .csv value; the default of the csv module is 131,072


def read_documents(path: Path, field: str) -> tuple[list[str], int]:
    """Return the texts of a file in file order, and the number of rows that were skipped because they have no text.

    A .txt file is one document. In the other formats each row (a line of .jsonl, an item of a .json array, a row of a
    table) is one document: the value of its `field`, or the row itself if it is a string. Empty and null rows are
    skipped. Raises UserError with the position of the first row that has any other type.
    """
    texts: list[str] = []
    skipped = 0
    try:
        for where, row in READERS[file_kind(path)](path, field):
            text = _text(row, field, f"{where} of {path.name}")
            if text.strip():
                texts.append(text)
            else:
                skipped += 1
    except UnicodeDecodeError:
        raise UserError(f"Data file {path.name} cannot be read as UTF-8 text: save it in UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"Data file {path.name} is not a complete gzip file: compress it again.") from None
    except OSError as error:
        raise UserError(f"Data file {path.name} cannot be read ({error.strerror}): give another file.") from None
    return texts, skipped


def file_kind(path: Path) -> str:
    """Return the extension that determines the file format, lower case, without .gz: "Notes.JSONL.gz" -> ".jsonl"."""
    zipped = path.suffix.lower() == ".gz"
    kind = Path(path.stem).suffix.lower() if zipped else path.suffix.lower()
    return "" if zipped and kind not in ZIPPED else kind


def _text(row: object, field: str, where: str) -> str:
    """Return the text of a row, or "" if the row has no text. Raises UserError for a row that is not text."""
    if isinstance(row, dict):
        if field not in row:
            names = ", ".join(f'"{name}"' for name in row) or "nothing"
            raise UserError(f'{where} has no "{field}", but {names}: name the one that holds the text by --text_field.')
        row = row[field]
    if row is None:
        return ""
    if not isinstance(row, str):
        raise UserError(f'{where} is not of the form {{"{field}": "..."}}: correct it or leave it out.')
    if "\0" in row:
        raise UserError(f"{where} holds NUL characters, which no text has: give a text file, or remove them.")
    if not _is_unicode(row):
        raise UserError(
            f"{where} holds half of a surrogate pair, which UTF-8 cannot write: correct it or leave it out."
        )
    return row


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate: JSON can encode lone surrogates, UTF-8 and tokenizers cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open(path: Path, newline: str | None = None) -> TextIO:
    """Open a text file, plain or gzipped, and skip the byte order mark that some editors write at its start."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", newline=newline)


def _one_document(path: Path, field: str) -> Rows:
    with _open(path) as file:
        yield "The text", file.read()


def _lines(path: Path, field: str) -> Rows:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"Line {number}"
            yield where, _json(line, f"{where} of {path.name}") if line.strip() else None


def _array(path: Path, field: str) -> Rows:
    """Yield the items of a JSON array; a .json file that does not start with "[" is read as JSON lines."""
    with _open(path) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        yield from _lines(path, field)
        return
    for number, item in enumerate(_json(text, path.name), start=1):
        yield f"Item {number}", item


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read: correct it or leave it out.") from None
    except ValueError:
        raise UserError(f"{where} is not complete JSON: correct it or leave it out.") from None


def _csv(path: Path, field: str) -> Rows:
    csv.field_size_limit(FIELD_CHARACTERS)
    with _open(path, newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            for number, row in enumerate(table, start=1):
                yield f"Row {number}", {name: value for name, value in row.items() if name is not None}
        except csv.Error:
            raise UserError(
                f"Line {table.line_num} of {path.name} is not a .csv row: correct its quotes or leave it out."
            ) from None


def _parquet(path: Path, field: str) -> Rows:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as table:
            names = table.schema_arrow.names
            if field not in names:
                yield "The table", dict.fromkeys(names)
                return
            values = (value for batch in table.iter_batches(columns=[field]) for value in batch.column(field))
            for number, value in enumerate(values, start=1):
                yield f"Row {number}", value.as_py()
    except (pyarrow.ArrowException, OSError):
        raise UserError(f"Data file {path.name} is not a complete .parquet file: write it again.") from None


READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".txt": _one_document,
    ".jsonl": _lines,
    ".json": _array,
    ".csv": _csv,
    ".parquet": _parquet,
}

ZIPPED = (".txt", ".jsonl", ".json", ".csv")
