"""Tensors in safetensors files: read the header, then single tensors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.modeling_utils import str_to_torch_dtype


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `stored[...]` reads it, like the lazy tensors that transformers loads.

    It is not mapped into memory, unlike with `safe_open`: a map takes address space for the whole file, and its pages
    count as memory of the process; a file can exceed either limit.

    start: offset of its first byte in the file. Raises OSError or ValueError if the file does not match its header.
    """

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, _whole: object) -> Tensor:
        data = torch.empty(self.nbytes, dtype=torch.uint8)
        with open(self.file, "rb") as file:
            file.seek(self.start)
            if file.readinto(data.numpy().data) != self.nbytes:
                raise ValueError(f"{self.file.name} is cut off")
        return data.view(self.dtype).view(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of a safetensors file: 8 bytes with the length of a JSON header, the header, the data.

    Source: the format's description, https://github.com/huggingface/safetensors#format.
    Raises OSError, ValueError or KeyError if it is no safetensors file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        if begin > size:
            raise ValueError(f"{path.name} is cut off")
        header = json.loads(file.read(begin - 8))
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        tensor = StoredTensor(path, begin + start, str_to_torch_dtype[entry["dtype"]], tuple(entry["shape"]))
        if start < 0 or end - start != tensor.nbytes or begin + end > size:
            raise ValueError(f"{name} in {path.name} does not match its header")
        found[name] = tensor
    return found
