"""Peak memory of a stretch of work, and how one knows that memory ran out."""

from __future__ import annotations

import contextlib
import ctypes

import psutil
import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement where the device can; the CPU's is taken at the end."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak allocated on a CUDA device since the reset, or the memory this process holds now on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def give_back() -> None:
    """Let the allocator return what it holds of freed memory to the system.

    glibc keeps freed matrices below 32 MiB for reuse, and between layers of a streamed model they pile up.
    """
    with contextlib.suppress(OSError, AttributeError):  # other platforms' allocators have no such call
        ctypes.CDLL(None).malloc_trim(0)
