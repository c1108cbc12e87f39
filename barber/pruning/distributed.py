"""Data parallelism: each process runs a part of the calibration sequences, and sums are over all processes."""

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

PEER_ENDED = (
    "Another process of this run has ended or cannot be reached: start the run again, with --resume if it has a run "
    "directory."
)

START_TIMEOUT = timedelta(minutes=10)  # for all processes to start
TIMEOUT = timedelta(hours=12)  # of a collective operation: long, since only rank 0 evaluates while the others wait


@dataclass(frozen=True)
class Ranks:
    """The number of this process among `world` processes; with one process, no communication takes place."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and output."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """This rank's part of the calibration sequences; all parts have the same size."""
        self.check_share(len(items))
        return list(items[self.rank :: self.world])

    def check_share(self, count: int) -> None:
        """UserError unless the ranks can share `count` calibration sequences evenly."""
        if count % self.world:
            raise UserError(
                f"{count} calibration sequences cannot be shared evenly by {self.world} processes: give numbers "
                f"of train and validation sequences (every fourth, if the run has any) that {self.world} divides."
            )

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over all ranks, in place; the results are bit-identical on all ranks."""
        if self.world == 1:
            return
        with peer_errors_explained():
            for tensor in {id(tensor): tensor for tensor in tensors}.values():
                distributed.all_reduce(tensor)

    def same(self, text: str, device: torch.device) -> None:
        """UserError unless the text is the same on every rank."""
        if self.world == 1:
            return
        number = int.from_bytes(sha256(text.encode()).digest()[:7])
        least = torch.tensor([number, -number], device=device)
        with peer_errors_explained():
            distributed.all_reduce(least, distributed.ReduceOp.MIN)
        if least[0] != -least[1]:
            raise UserError(
                "The processes of this run do not have the same model, data and settings: start all of them with the "
                "same command and the same files."
            )

    def wait(self) -> None:
        """Wait until every rank has called this."""
        if self.world > 1:
            with peer_errors_explained():
                distributed.barrier()


@contextmanager
def peer_errors_explained() -> Iterator[None]:
    """Raise UserError if communication fails because another process has ended."""
    try:
        yield
    except (RuntimeError, distributed.DistBackendError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(PEER_ENDED) from error


def join() -> Ranks:
    """The ranks that torchrun started, or this process alone. On CUDA, each rank uses its own device.

    Raises UserError if variables that torchrun sets are missing or wrong, or if the processes cannot connect.
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
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    with peer_errors_explained():
        store, rank, world = next(distributed.rendezvous("env://", rank, world, timeout=START_TIMEOUT))
        store.set_timeout(TIMEOUT)
        distributed.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT
        )
    return Ranks(rank, world)


def _number(name: str, least: int, most: int, default: str = "") -> int:
    """An integer environment variable of torchrun."""
    text = os.environ.get(name, default)
    if not (text.isdecimal() and least <= int(text) <= most):
        raise UserError(
            f"{name} is {text!r}, which is not a number from {least} to {most}: start the processes with torchrun, or "
            "unset WORLD_SIZE."
        )
    return int(text)


def _end_on_sigterm(number: int, frame: object) -> None:
    """Handle SIGTERM, which torchrun sends to all processes when one has ended."""
    raise UserError(PEER_ENDED)


def leave() -> None:
    """Leave the process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
