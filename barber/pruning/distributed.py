"""The processes that share one run: each has its own calibration sequences, and sums go over all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256

import torch
import torch.distributed as distributed
from torch import Tensor

from barber.errors import UserError

GONE = (
    "Another process of this run has ended or cannot be reached: start the run again, with --resume if it has a run "
    "directory."
)

MEETING = timedelta(minutes=10)  # how long the processes wait until all have begun
PATIENCE = timedelta(hours=12)  # how long a rank waits for the others, while the first alone evaluates


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
        self.check_share(len(items))
        return list(items[self.rank :: self.world])

    def check_share(self, count: int) -> None:
        """UserError unless so many calibration sequences can be shared evenly."""
        if count % self.world:
            raise UserError(
                f"{count} calibration sequences cannot be shared evenly by {self.world} processes: give a number "
                f"of sequences that {self.world} divides, also after every fourth is held out where some are."
            )

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all ranks, in place; every rank ends with the same bits."""
        if self.world == 1:
            return
        with talking():
            for tensor in {id(tensor): tensor for tensor in tensors}.values():
                distributed.all_reduce(tensor)

    def same(self, text: str, device: torch.device) -> None:
        """UserError unless every rank gives the same text."""
        if self.world == 1:
            return
        number = int.from_bytes(sha256(text.encode()).digest()[:7])
        least = torch.tensor([number, -number], device=device)
        with talking():
            distributed.all_reduce(least, distributed.ReduceOp.MIN)
        if least[0] != -least[1]:
            raise UserError(
                "The processes of this run do not have the same model, data and settings: start all of them with the "
                "same command and the same files."
            )

    def wait(self) -> None:
        """Go on when every rank is here."""
        if self.world > 1:
            with talking():
                distributed.barrier()


@contextmanager
def talking() -> Iterator[None]:
    """Say in one sentence that another process of the run is gone."""
    try:
        yield
    except (RuntimeError, distributed.DistBackendError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(GONE) from error


def join() -> Ranks:
    """The ranks that torchrun started, or this process alone. Each rank of a CUDA machine takes the device of its own.

    Raises UserError where the environment names only a part of what torchrun sets, or the processes cannot find each
    other.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(f"WORLD_SIZE is set, but {missing[0]} is not: start the processes with torchrun, or unset it.")
    world = _number("WORLD_SIZE", 1, 2**31 - 1)
    rank = _number("RANK", 0, world - 1)
    _number("MASTER_PORT", 1, 2**16 - 1)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_number("LOCAL_RANK", 0, torch.cuda.device_count() - 1, default="0"))
    signal.signal(signal.SIGTERM, _told_to_end)
    with talking():
        store, rank, world = next(distributed.rendezvous("env://", rank, world, timeout=MEETING))
        store.set_timeout(PATIENCE)
        distributed.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE
        )
    return Ranks(rank, world)


def _number(name: str, least: int, most: int, default: str = "") -> int:
    """A whole number that torchrun puts into the environment."""
    text = os.environ.get(name, default)
    if not (text.isdecimal() and least <= int(text) <= most):
        raise UserError(
            f"{name} is {text!r}, which is no number from {least} to {most}: start the processes with torchrun, or "
            "unset WORLD_SIZE."
        )
    return int(text)


def _told_to_end(number: int, frame: object) -> None:
    """What torchrun asks of all processes where one has ended."""
    raise UserError(GONE)


def leave() -> None:
    """End the talk with the other ranks, if there was any."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
