"""The processes that share one run: each has its own calibration sequences, and sums go over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as distributed
from torch import Tensor

from barber.errors import UserError, first_line

PATIENCE = timedelta(minutes=30)  # how long a rank waits for the others


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world` processes. A run of one process has nobody to talk to."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes what the run leaves behind, and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """This rank's part of the calibration sequences: as many as every other rank has."""
        if len(items) % self.world:
            raise UserError(
                f"{len(items)} calibration sequences cannot be shared evenly by {self.world} processes: give a number "
                f"of sequences that {self.world} divides, also after every fourth is held out where some are."
            )
        return list(items[self.rank :: self.world])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all ranks, in place; every rank ends with the same bits."""
        if self.world == 1:
            return
        with talking():
            for tensor in {id(tensor): tensor for tensor in tensors}.values():
                distributed.all_reduce(tensor)

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the first rank's values, in place."""
        if self.world == 1:
            return
        with talking():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


@contextmanager
def talking() -> Iterator[None]:
    """Say in one sentence that another process of the run is gone."""
    try:
        yield
    except (RuntimeError, distributed.DistBackendError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"Another process of this run has ended or cannot be reached ({first_line(error)}): start the run again, "
            "with --resume if it has a run directory."
        ) from None


def join() -> Ranks:
    """The ranks that torchrun started, or this process alone. Each rank of a CUDA machine takes the device of its own.

    Raises UserError where the processes cannot find each other.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with talking():
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    return Ranks(distributed.get_rank(), world)


def leave() -> None:
    """End the talk with the other ranks, if there was any."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
