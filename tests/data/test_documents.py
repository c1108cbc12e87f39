"""Documents of local files in every format, and user errors for files that cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from barber.data.documents import read_documents
from barber.data.sources import local_file
from barber.data.token_sets import Reading, cut_evaluation, load_calibration, load_evaluation
from barber.errors import UserError
from barber.events import Notice
from barber.runs.directory import read_masks
from tests.support.tiny import tokenizer

TEXTS = ["the cat sat", 'a "big" red dog, and\na mat', "Zoë saw"]


def write(path: Path, texts: list[str | None], field: str = "text") -> Path:
    """Write the texts in the format of the file name, each in a row that has an id, too."""
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    rows = [{"id": number, field: text} for number, text in enumerate(texts)]
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    quoted = ['"' + (text or "").replace('"', '""') + '"' for text in texts]
    content = {
        ".jsonl": "\n".join(map(json.dumps, rows)) + "\n",
        ".json": json.dumps(rows, indent=1),
        ".csv": "\n".join([f"id,{field}", *(f"{number},{text}" for number, text in enumerate(quoted))]) + "\n",
    }[kind].encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


FORMATS = ["a.jsonl", "a.JSONL.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("field", ["text", "content"])
def test_every_format_gives_the_same_documents(tmp_path, name, field):
    path = write(tmp_path / name, TEXTS, field)
    assert local_file(str(path)) == path.resolve()
    assert read_documents(path, field) == (TEXTS, 0)
    tok = tokenizer()
    stream = [token for text in TEXTS for token in tok(text).input_ids]
    windows = load_evaluation(str(path), tok, 4, text_field=field, window_start="none").tokens
    assert windows.flatten().tolist() == stream[: len(stream) // 4 * 4]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_without_text_are_skipped_and_counted(tmp_path, name):
    path = write(tmp_path / name, ["the cat sat", None, " \t", "on a mat", ""])
    assert read_documents(path, "text") == (["the cat sat", "on a mat"], 3)
    events = list(cut_evaluation(str(path), Reading(tokenizer(), 2)))
    assert Notice(f"3 of 5 rows of {name} hold no text and were skipped.") in events


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_key_is_reported_with_the_keys_that_exist(tmp_path, name):
    path = write(tmp_path / name, TEXTS, "content")
    with pytest.raises(UserError, match=r'has no "text", but "id", "content": .*--text_field'):
        read_documents(path, "text")


def test_rows_that_are_strings_are_documents(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["the cat", None, "a mat"]))
    assert read_documents(tmp_path / "a.json", "text") == (["the cat", "a mat"], 1)
    (tmp_path / "b.json").write_text('{"text": "the cat"}\nnull\n\n"a mat"\n')
    assert read_documents(tmp_path / "b.json", "text") == (["the cat", "a mat"], 2)
    (tmp_path / "long.csv").write_text("text\n" + "the cat " * 40000 + "\n")  # beyond the csv module's own limit
    assert [len(text) for text in read_documents(tmp_path / "long.csv", "text")[0]] == [320000]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    path = tmp_path / name
    path.write_text("the cat sat") if name == "a.txt" else write(path, ["the cat sat"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_documents(path, "text") == (["the cat sat"], 0)


BAD = {
    "nested.json": (b"[" * 100_000, "nested too deeply"),
    "nested.jsonl": (b'{"text": "a"}\n' + b"[" * 100_000, "Line 2 of nested.jsonl is nested too deeply"),
    "nul.txt": (b"the cat\0 sat" * 9, "The text of nul.txt holds NUL characters"),
    "nul.jsonl": (rb'{"text": "the \u0000"}', "Line 1 of nul.jsonl holds NUL characters"),
    "half.jsonl": (rb'{"text": "the \ud83d"}', "half of a surrogate pair"),
    "infinite.jsonl": (b'{"text": 1e999}', "Line 1 of infinite.jsonl is not of the form"),
    "digits.jsonl": (b'{"text": ' + b"9" * 9999 + b"}", "Line 1 of digits.jsonl is not complete JSON"),
    "utf16.txt": ("the cat".encode("utf-16"), "cannot be read as UTF-8 text: save it in UTF-8"),
    "quotes.csv": (b'text\n"the cat\nsat\n', "is not a .csv row: correct its quotes"),
    "torn.csv.gz": (gzip.compress(b"text\n" + os.urandom(3000).hex().encode())[:900], "not a complete gzip file"),
    "plain.jsonl.gz": (b'{"text": "the cat"}', "not a complete gzip file"),
    "torn.parquet": (b"PAR1 and no more", "not a complete .parquet file"),
    "zip.npy": (b"PK\x03\x04 and no more", "cannot be read as a .npy file"),
    "huge.npy": (b"", "cannot be read as a .npy file"),
    "deep.npy": (b"", "cannot be read as a .npy file"),
    "beyond.npy": (b"", "holds the id 18446744073709551615"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unreadable_file_is_a_user_error(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    if name == "huge.npy":  # a header that declares 10**15 numbers
        np.save(path, np.zeros(7, int))
        path.write_bytes(path.read_bytes().replace(b"(7,)", b"(1000000000000000,)"))
    if name == "deep.npy":
        path.write_bytes(b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"[" * 9000)
    if name == "beyond.npy":
        np.save(path, np.array([1, 2**64 - 1], dtype=np.uint64))
    with pytest.raises(UserError, match=message) as caught:
        load_calibration(str(path), tokenizer(), 2, 4, 0)
    assert "\n" not in str(caught.value)


def test_two_dimensional_ids_of_another_length_name_the_allowed_one(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((1, 400), int))
    for load in (lambda path: load_calibration(path, None, 1, 16, 0), lambda path: load_evaluation(path, None, 16)):
        with pytest.raises(UserError, match=r"is two-dimensional .* make it 400, or give .* one-dimensional"):
            load(str(tmp_path / "rows.npy"))


def hostile(folder: Path) -> dict[str, tuple[str, str]]:
    """Names that are no readable file, each with its error message."""
    os.mkfifo(folder / "fifo.txt")
    (folder / "folder.txt").mkdir()
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "notes.pdf").write_text("%PDF")
    return {
        "fifo": (str(folder / "fifo.txt"), "is not a regular file"),
        "device": ("/dev/zero", "is not a regular file"),
        "folder": (str(folder / "folder.txt"), "is a folder"),
        "loop": (str(folder / "loop.txt"), "is a loop of links|Too many levels"),
        "user": ("~nosuchuser/a.txt", "names an unknown user"),
        "long": (str(folder / ("n" * 300 + ".txt")), "File name too long"),
        "NUL": ("a\0.txt", "is not a possible path"),
        "under a file": (str(folder / "notes.pdf" / "a.txt"), "does not exist"),
        "other format": (str(folder / "notes.pdf"), "is of a format that is not read: give one of c4.*parquet"),
    }


@pytest.mark.timeout(30)
def test_names_that_are_no_readable_file_are_refused(tmp_path):
    for spec, message in hostile(tmp_path).values():
        for load in (lambda spec: load_calibration(spec, None, 1, 4, 0), lambda spec: load_evaluation(spec, None, 4)):
            with pytest.raises(UserError, match=message) as caught:
                load(spec)
            assert len(str(caught.value)) < 500


@pytest.mark.timeout(30)
def test_initial_masks_that_are_no_readable_file_are_refused(tmp_path):
    for spec, message in hostile(tmp_path).values():
        if spec.endswith("folder.txt"):
            message = "holds no run"
        elif spec.endswith(".pdf"):
            message = "cannot be read"
        with pytest.raises(UserError, match=message):
            read_masks(spec)


def test_missing_permissions_are_a_user_error():
    """A folder and a file without permissions, read by a process that is not root's."""
    code = (
        "import os, sys\nfrom barber.errors import UserError\nfrom barber.input_files import regular_file\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "for path in sys.argv[1:]:\n"
        "    try: regular_file(path, 'Data file', 'give another')\n"
        "    except UserError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as name:
        locked, unreadable = Path(name) / "locked", Path(name) / "b.txt"
        Path(name).chmod(0o755)
        locked.mkdir()
        (locked / "a.txt").write_text("the cat")
        unreadable.write_text("the cat")
        unreadable.chmod(0)
        locked.chmod(0)
        command = [sys.executable, "-c", code, str(locked / "a.txt"), str(unreadable)]
        root = Path(__file__).parents[2]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60)
        locked.chmod(0o700)
    first, second = result.stdout.splitlines()
    assert "cannot be reached (Permission denied)" in first
    assert "may not be read" in second
