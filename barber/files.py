"""How the files of a run are written, so that a killed process or a lost power supply never leaves one to be mistaken.

checksums.jsonl vouches for them. Each line is {"files": {name: digest}, "events": n}: with event n (from 1), the files
named have these contents; "events.jsonl" among them stands for its first n lines. A line without "events" vouches for
contents that hold for every event. A line is on the disk before the files that it names are, so that a file is always
either what it was or what a line says. Digests are blake2b of 16 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from barber.errors import UserError

CHECKSUMS, EVENTS, JOB = "checksums.jsonl", "events.jsonl", "job.json"
hasher = partial(hashlib.blake2b, digest_size=16)


def pack(mask: Tensor) -> Tensor:
    """A boolean mask (out, in) as uint8 bits in C order, eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `pack`: boolean (out, in)."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape[0] * shape[1]).astype(bool).reshape(shape))


def read_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors of a safetensors file and the shapes in its header, by key."""
    with safe_open(path, "pt") as file:
        shapes = {key: json.loads(shape) for key, shape in (file.metadata() or {}).items()}
        return {key: file.get_tensor(key) for key in file.keys()}, shapes  # noqa: SIM118 (no mapping)


def draft_of(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".part")


def draft_json(path: Path, data: Any) -> None:
    """Write the draft of a JSON file."""
    draft_of(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def draft_tensors(path: Path, tensors: dict[str, Tensor], shapes: dict[str, list[int]] | None = None) -> None:
    """Write the draft of a safetensors file; `shapes` go into the header."""
    held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(held, draft_of(path), metadata={key: json.dumps(shape) for key, shape in (shapes or {}).items()})


def settle(path: Path) -> None:
    """Put the draft of a file in its place: whoever reads sees the old file or the new one, also after a power loss."""
    with draft_of(path).open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(draft_of(path), path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last, where the platform can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems sync none
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    draft_json(path, data)
    settle(path)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines as `write_json` does."""
    draft_of(path).write_bytes(b"".join(lines))
    settle(path)


def append(path: Path, line: bytes) -> None:
    """Add a line to a file and wait until it is on the disk."""
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def digest(path: Path) -> str:
    """The digest of a file, "" if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, hasher).hexdigest()


def note(files: dict[str, str], event: int | None = None) -> bytes:
    """A line of checksums.jsonl: names and digests, and the number of the event that they belong to."""
    return (json.dumps({"files": files} | ({} if event is None else {"events": event})) + "\n").encode()


def read_notes(run: Path) -> list[dict]:
    """The lines of checksums.jsonl; those that are torn or damaged vouch for nothing and are left out."""
    notes = []
    for line in (run / CHECKSUMS).read_bytes().split(b"\n") if (run / CHECKSUMS).is_file() else ():
        with contextlib.suppress(ValueError):
            data = json.loads(line)
            files, event = (data.get("files"), data.get("events", 1)) if isinstance(data, dict) else (None, None)
            if isinstance(files, dict) and isinstance(event, int):
                notes.append(data)
    return notes


def commit(run: Path, names: Iterable[str], event: int | None = None, lines: str | None = None) -> None:
    """Put the drafts of files of a run in their places, after their digests are on the disk.

    names: relative to the run directory. event: number of the event that they belong to. lines: digest of events.jsonl
    with that event.
    """
    drafts = {name: digest(draft_of(run / name)) for name in names}
    append(run / CHECKSUMS, note(drafts | ({} if lines is None else {EVENTS: lines}), event))
    for name in drafts:
        settle(run / name)


def check_room(path: Path, needed: int) -> None:
    """UserError unless the disk that `path` is or will be on has room for `needed` bytes."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{path} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left: make room or give a "
            "folder on another disk."
        )
