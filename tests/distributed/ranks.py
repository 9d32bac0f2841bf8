"""Runs a function on several ranks, as local processes."""

from __future__ import annotations

import io
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

__all__ = ["run_ranks"]

PRELOADED = [
    "pdmd.distributed.titan",
    "pdmd.distillation.distill",
    "diffusers.models.transformers",
    "peft",
]


def run_ranks(
    function: Callable[..., Any], world: int, *args: Any, timeout: float = 300
) -> list[Any]:
    """Calls a function on every rank of a new gloo process group.

    Args:
        function: A function at the level of a module, called as ``function(*args)`` with the
            default process group initialized and one thread.
        world: The number of ranks.
        args: Its arguments, which are pickled.
        timeout: Seconds after which the ranks are stopped.

    Returns:
        The results, ordered by rank.

    Raises:
        RuntimeError: If a rank failed, with its traceback; the others are stopped.
        TimeoutError: If the ranks took too long.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # the imports of all ranks of all tests, once
    deadline = time.monotonic() + timeout
    results: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        processes, pipes = [], {}
        for rank in range(world):
            receive, send = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(function, rank, world, str(store), send, timeout, args)
            )
            process.start()
            send.close()
            processes.append(process)
            pipes[receive] = rank
        try:
            while pipes:
                ready = wait(list(pipes), timeout=max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError(
                        f"{function.__name__}: ranks {sorted(pipes.values())} of {world} gave no "
                        f"result within {timeout} seconds"
                    )
                for receive in ready:
                    assert isinstance(receive, Connection)
                    rank = pipes.pop(receive)
                    results[rank] = _receive(receive, function, rank)
        finally:
            for process in processes:
                if len(results) < world:
                    process.kill()
                process.join()
    return [results[rank] for rank in range(world)]


def _receive(pipe: Connection, function: Callable[..., Any], rank: int) -> Any:
    try:
        done, content = pipe.recv()
    except EOFError:
        done, content = False, "the process exited without a result"
    if not done:
        raise RuntimeError(f"{function.__name__} failed on rank {rank}:\n{content}")
    # As bytes, because tensors would be shared with a process that has exited.
    return torch.load(io.BytesIO(content), weights_only=False)


def _run(
    function: Callable[..., Any],
    rank: int,
    world: int,
    store: str,
    pipe: Connection,
    timeout: float,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
        buffer = io.BytesIO()
        torch.save(function(*args), buffer)
        pipe.send((True, buffer.getvalue()))
        torch.distributed.destroy_process_group()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()
