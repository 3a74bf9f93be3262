"""Runs a task in several processes that have joined each other, as `torchrun` starts them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_LIMIT = 120  # seconds, after which a task hangs

context = multiprocessing.get_context("forkserver")
# Imported once, so that a process starts in no time.
context.set_forkserver_preload(["driftrae_cli.engine.distill", "process_tasks", "torch._dynamo"])


def run(size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `task(world, *arguments)` returns in each of `size` processes, by rank.

    `task` is in a module that a new process can import. Errors in a process are raised here.
    """
    for rank, (failed, result) in enumerate(results := outcomes(size, task, *arguments)):
        if failed:
            raise AssertionError(f"process {rank}:\n{result}")
    return [result for _, result in results]


def outcomes(size: int, task: Callable[..., Any], *arguments: Any) -> list[tuple[bool, Any]]:
    """As `run`, with (False, result) or (True, traceback) of each process."""
    port = _free_port()
    pipes, children = [], []
    for rank in range(size):
        ours, theirs = context.Pipe()
        given = (rank, size, port, theirs, task, arguments)
        child = context.Process(target=_in_process, args=given)
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    try:
        return [_received(pipe, rank) for rank, pipe in enumerate(pipes)]
    finally:
        for child in children:
            child.join(10)
            child.kill()


def _received(pipe: Connection, rank: int) -> tuple[bool, Any]:
    if not pipe.poll(_LIMIT):
        raise AssertionError(f"process {rank} hangs")
    try:
        outcome: tuple[bool, Any] = pipe.recv()
        return outcome
    except EOFError:
        return True, "killed"


def _in_process(
    rank: int, size: int, port: int, pipe: Connection, task: Callable[..., Any], arguments: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    from driftrae_cli.engine.world import joined

    torch.set_num_threads(1)
    try:
        with joined("cpu") as world:
            result = task(world, *arguments)
        pipe.send((False, result))
    except BaseException:
        pipe.send((True, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
