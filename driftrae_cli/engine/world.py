"""The processes that share a run: one, or those that `torchrun` has started.

Every process calls the collective methods in the same order, or all of them wait for ever.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.errors import (
    INTERRUPTED,
    ConfigError,
    DriftraeError,
    RunError,
    ToldElsewhereError,
)

T = TypeVar("T")

_MEETING = timedelta(minutes=10)
_PATIENCE = timedelta(hours=3)  # others wait while one downloads, converts or counts
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)


@dataclass(frozen=True)
class World:
    """This process among those of its run.

    Attributes:
        rank: its number; 0 is the main one, which writes.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and draws progress."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process. Collective; does not wait for the device."""
        if self.size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over all processes. Collective."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def share(self, value: T) -> T:
        """The main process's value, in all. Collective."""
        if self.size == 1:
            return value
        box = [value]
        # Pickled by our own processes for each other.
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in all. Collective."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)  # by the CPU where there is a choice
        return values  # type: ignore[return-value]

    def on_main(self, task: Callable[[], T]) -> T:
        """What the main process gets from `task`, in all; its error is raised in all too.

        Collective.
        """
        outcome: T | DriftraeError | None = None
        if self.is_main:
            try:
                outcome = task()
            except DriftraeError as error:
                outcome = error
        outcome = self.share(outcome)
        if isinstance(outcome, DriftraeError):
            raise outcome
        return outcome  # type: ignore[return-value]

    def main_first(self, task: Callable[[], T]) -> T:
        """What each process gets from `task`, which the others begin when the main one is done.

        For what the first of them downloads. Collective; the main process's error is raised in
        all.
        """
        made: T | None = None
        failure: DriftraeError | None = None
        if self.is_main:
            try:
                made = task()
            except DriftraeError as error:
                failure = error
        failure = self.share(failure)
        if failure:
            raise failure
        return made if self.is_main else task()  # type: ignore[return-value]


def alone(device: torch.device) -> World:
    """A run of one process."""
    return World(0, 1, device)


def process_count() -> int:
    """How many processes `torchrun` says there are; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the other processes of this run, if `torchrun` has started any.

    An error that several processes come to is told by the first; a process that finds the
    others gone says so.

    Raises:
        ConfigError: the device is unknown or absent, or there are more processes than devices.
        ToldElsewhereError: instead of an error that another process tells.
        RunError: another process has ended without telling why.
    """
    where = pick_device(device)
    size = process_count()
    if size == 1:
        yield alone(where)
        return
    rank, told = _meet(where)
    try:
        yield World(rank, size, where)
        dist.barrier()  # gloo ends a process badly whose peer has gone first
        dist.destroy_process_group()
    except (DriftraeError, KeyboardInterrupt) as error:
        if _is_first(told):
            raise
        raise ToldElsewhereError(getattr(error, "exit_code", INTERRUPTED)) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _LOST):
            raise
        if not _is_first(told):
            raise ToldElsewhereError(RunError.exit_code) from error
        first_line = str(error).partition("\n")[0]
        raise RunError(
            "another process of this run has ended without a word (killed, or out of memory); "
            f"run the same command again to resume\nSeen here: {first_line}"
        ) from error


def _meet(device: torch.device) -> tuple[int, dist.Store]:
    """Join the other processes; this one's rank, and where they leave word for each other.

    Raises:
        ConfigError: they cannot be reached.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_MEETING)))
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"the processes that torchrun started cannot meet at {place} ({first_line}); check "
            "--rdzv-endpoint, or --master-addr and --master-port"
        ) from error
    store.set_timeout(_PATIENCE)
    run = dist.PrefixStore("run", store)
    dist.init_process_group(backend, store=run, rank=rank, world_size=size, timeout=_PATIENCE)
    return rank, dist.PrefixStore("told", store)


def _is_first(told: dist.Store) -> bool:
    """Whether no other process has come to an error before."""
    try:
        return told.add("errors", 1) == 1
    except RuntimeError:  # the store ended with the process that kept it
        return False
