"""Peak memory of a stretch of work, and how one knows that memory ran out."""

from __future__ import annotations

import contextlib
import ctypes

import psutil
import torch

M_MMAP_THRESHOLD = -3  # of malloc.h


def portion(device: torch.device) -> int:
    """How many numbers to work on at a time: as many as a processor's cache holds, or as keep an accelerator busy."""
    return 2**18 if device.type == "cpu" else 2**24


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
    said = str(error).lower()
    return "can't allocate memory" in said or "cannot allocate memory" in said


def return_freed_memory() -> None:
    """Let freed matrices go back to the system at once, from now on in this process.

    glibc maps blocks from 128 KiB on by themselves, which it can give back, but raises that threshold with each one
    that is freed, up to 32 MiB: then the layers of a streamed model leave their memory in pieces, and more with every
    layer. Here the threshold is pinned to where it began.
    """
    with contextlib.suppress(OSError, AttributeError):  # other platforms' allocators have no such call
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)
