"""A process that is forked from a test."""

from collections.abc import Callable
from multiprocessing import get_context


def exit_code(function: Callable, *arguments) -> int:
    """Run a function in a forked process, and return its exit code: the negative signal if one has ended it.

    The process needs no imports, which take ten seconds. It must not train: the threads of autograd are not forked.
    """
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode
