"""Store activations on the device, on the host or in memory-mapped files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from barber.errors import UserError


@dataclass(frozen=True)
class ActivationStore:
    """Stores activations, in their dtype.

    Attributes:
        device: on which `load` returns them.
        host: whether they are stored in the host's memory.
        folder: for memory-mapped files, which the system can page out; None to store them in memory.
    """

    device: torch.device
    host: bool = False
    folder: Path | None = None

    def save(self, tensor: Tensor) -> Tensor:
        """The stored tensor, for `load`. Raises UserError if the disk is full."""
        if self.folder is not None:
            return self._mapped(tensor)
        return tensor.to("cpu") if self.host else tensor

    def load(self, tensor: Tensor) -> Tensor:
        """A stored tensor on the device."""
        return tensor.to(self.device, non_blocking=True)

    def _mapped(self, tensor: Tensor) -> Tensor:
        try:
            handle, name = tempfile.mkstemp(dir=self.folder, prefix="activations-")
            try:
                # Allocated first: a write to a mapped file on a full disk would kill the process.
                os.posix_fallocate(handle, 0, max(1, tensor.nbytes))
                mapped = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
            finally:
                os.close(handle)
                # The mapping stays valid without a file name; the system frees it with its last tensor.
                with contextlib.suppress(OSError):
                    os.unlink(name)
        except OSError as error:
            raise UserError(
                f"Activations of {tensor.nbytes / 2**20:.0f} MiB cannot be kept in {self.folder} ({error.strerror}): "
                "make room there, or give fewer or shorter sequences."
            ) from None
        return mapped.copy_(tensor)
