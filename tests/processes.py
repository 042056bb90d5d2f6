"""Processes that are forked from the tests.

A forked process has all modules of the test. A new one imports torch and transformers again, which takes ten seconds.
"""

import os
import socket
from collections.abc import Callable

from accelerate.state import AcceleratorState
from torch.multiprocessing import get_context, start_processes


def exit_code(function: Callable, *arguments) -> int:
    """Run a function in another process, and return its exit code: the negative signal if one has ended it."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def run_group(size: int, function: Callable, *arguments) -> None:
    """Run a function in each of `size` processes, with the environment that torchrun gives to its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_run_rank, (size, port, function, arguments), nprocs=size, start_method="fork")


def _run_rank(rank: int, size: int, port: int, function: Callable, arguments: tuple) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(number) for name, number in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that was forked
    function(*arguments)
