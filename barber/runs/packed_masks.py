"""Boolean masks as packed bits in safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from barber.atomic_files import draft_of


def pack(mask: Tensor) -> Tensor:
    """A boolean mask (out, in) as uint8 bits in C order, eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`: boolean (out, in). Raises ValueError where there are not as many bits."""
    if len(bits) != -(-math.prod(shape) // 8):
        raise ValueError(f"{len(bits)} bytes are not a mask of shape {tuple(shape)}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape[0] * shape[1]).astype(bool).reshape(shape))


def read_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors of a safetensors file and the shapes in its header, by key."""
    with safe_open(path, "pt") as file:
        shapes = {key: json.loads(shape) for key, shape in (file.metadata() or {}).items()}
        return {key: file.get_tensor(key) for key in file.keys()}, shapes  # noqa: SIM118 (no mapping)


def read_packed_mask(path: Path, key: str) -> tuple[Tensor, list[int]] | None:
    """The bits and the shape (out, in) of one mask of a safetensors file, None where it is missing; reads no other."""
    with safe_open(path, "pt") as file:
        shapes = file.metadata() or {}
        return (file.get_tensor(key), json.loads(shapes[key])) if key in shapes else None


def draft_tensors(path: Path, tensors: dict[str, Tensor], shapes: dict[str, list[int]] | None = None) -> None:
    """Write the draft of a safetensors file; `shapes` go into the header."""
    draft_of(path).unlink(missing_ok=True)
    write_tensors(draft_of(path), tensors, {key: json.dumps(shape) for key, shape in (shapes or {}).items()})


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with the mode of the umask."""
    file.touch()
    mode = file.stat().st_mode & 0o777  # the library's own file is for its owner alone
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, file, metadata=metadata)
    file.chmod(mode)
