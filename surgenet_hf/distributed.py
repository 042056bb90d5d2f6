"""Helpers for code that runs in one process or in several, based on Accelerate."""

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object


def process_state() -> PartialState:
    """Return the state of this process: index, number of processes, and device.

    In a process that `torchrun` or `accelerate launch` started, the first call joins the process group.
    """
    return PartialState(cpu=not torch.accelerator.is_available())  # without cpu=True, Accelerate ignores CPU processes


def is_main_process() -> bool:
    """Return whether this is the process that prints, logs, and writes files."""
    return process_state().is_main_process


def gather(items: list) -> list:
    """Concatenate the lists of all processes, in process order. All processes must call it."""
    return gather_object(items) if process_state().num_processes > 1 else items


def broadcast(item):
    """Return the item of the first process. All processes must call it."""
    return broadcast_object_list([item])[0] if process_state().num_processes > 1 else item


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process. All processes must call it."""
    return any(gather([flag]))


def wait_for_everyone() -> None:
    """Wait until all processes have called this function."""
    process_state().wait_for_everyone()
