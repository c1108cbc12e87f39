"""Where activations wait until they are needed again: on the device at work, on the host, or in mapped files."""

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
    """Stores activations until they are needed again, in their own dtype.

    Attributes:
        device: where they are used.
        host: whether they wait in the host's memory.
        folder: where they wait in files, which the system maps and may drop from memory; None for in memory.
    """

    device: torch.device
    host: bool = False
    folder: Path | None = None

    def save(self, tensor: Tensor) -> Tensor:
        """The tensor as it waits, for `load`. Raises UserError where the disk is full."""
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
                # Reserved first: writing to a mapped file that the disk has no room for would kill the process.
                os.posix_fallocate(handle, 0, max(1, tensor.nbytes))
                mapped = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
            finally:
                os.close(handle)
                # The mapping lives on without a name, and what is left of it goes when the last tensor does.
                with contextlib.suppress(OSError):
                    os.unlink(name)
        except OSError as error:
            raise UserError(
                f"Activations of {tensor.nbytes / 2**20:.0f} MiB cannot be kept in {self.folder} ({error.strerror}): "
                "make room there, or give fewer or shorter sequences."
            ) from None
        return mapped.copy_(tensor)
