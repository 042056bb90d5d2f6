"""Process helpers on Accelerate, for code that runs in one process or in several."""

import torch
from accelerate import PartialState
from accelerate.utils import gather_object


def process_state() -> PartialState:
    """Return the state of this process: index, number of processes, and device.

    The first call in a process that `torchrun` or `accelerate launch` started joins its group.
    """
    return PartialState(cpu=not torch.accelerator.is_available())  # otherwise Accelerate ignores processes on CPUs


def is_main_process() -> bool:
    """Whether this is the one process that prints, logs, and writes files."""
    return process_state().is_main_process


def gather(items: list) -> list:
    """Concatenate the lists of all processes, in the order of the processes. Every process must call it."""
    return gather_object(items) if process_state().num_processes > 1 else items


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. Every process must call it."""
    return any(gather([flag]))


def wait_for_everyone() -> None:
    """Wait until every process has called this function."""
    process_state().wait_for_everyone()
