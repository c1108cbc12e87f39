"""Measure peak memory, and recognise out-of-memory errors."""

from __future__ import annotations

import contextlib
import ctypes

import psutil
import torch

M_MMAP_THRESHOLD = -3  # of malloc.h


def portion(device: torch.device) -> int:
    """How many numbers to process at a time: what fits into a processor's cache, or uses an accelerator fully."""
    return 2**18 if device.type == "cpu" else 2**24


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak on CUDA; on the CPU, `peak_memory` measures current memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak allocated on a CUDA device since the reset, or on the CPU the current memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).lower()
    return "can't allocate memory" in message or "cannot allocate memory" in message


def return_freed_memory() -> None:
    """Return freed matrices to the system at once, from now on in this process.

    glibc allocates blocks from 128 KiB on with mmap and returns them when they are freed. But it raises that threshold
    to the size of freed blocks, up to 32 MiB, so that layerwise loading fragments the heap. This fixes the threshold.
    """
    with contextlib.suppress(OSError, AttributeError):  # other allocators have no such call
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)
