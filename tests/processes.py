"""Other processes for tests, without the ten seconds that a new one takes to import torch and transformers."""

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context, set_start_method

from torch.multiprocessing import start_processes

# A process that is forked from a test cannot train if the test's process has: the threads of autograd are not forked.
# These are forked from a server, which only imports.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["tests.pretraining.running", "surgenet_hf.pretraining.run", "transformers.trainer"])


def exit_code(function: Callable, *arguments, context=SERVER) -> int:
    """Run a function in another process, and return its exit code: the negative signal if one has ended it."""
    process = context.Process(target=_run, args=(function, arguments))
    process.start()
    process.join()
    return process.exitcode


def run_group(size: int, function: Callable, *arguments) -> None:
    """Run a function in each of `size` processes, with the environment that torchrun gives to its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_run_rank, (size, port, function, arguments), nprocs=size, start_method="forkserver")


def _run(function: Callable, arguments: tuple) -> None:
    # as in a new process: the workers of a DataLoader are its own children, which end with it, and not the server's
    set_start_method("fork", force=True)
    function(*arguments)


def _run_rank(rank: int, size: int, port: int, function: Callable, arguments: tuple) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(number) for name, number in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _run(function, arguments)
