"""Schedules of DINO (Caron et al. 2021), as arrays with one value per step.

The values depend only on the step, so a resumed run continues the schedules exactly.
"""

from typing import NamedTuple

import numpy as np

from ...errors import UserError


def cosine_schedule(base: float, final: float, num_steps: int, warmup_steps: int = 0) -> np.ndarray:
    """Compute a linear warm-up from 0 to `base`, followed by half a cosine wave from `base` to `final`.

    The warm-up ends with `base` and the cosine starts with it, so this value occurs twice. Step `num_steps`, which is
    not included, would have the value `final`.

    Args:
        base: value at the start of the cosine.
        final: value at the end of the cosine.
        num_steps: total number of steps.
        warmup_steps: number of steps of the warm-up.

    Returns:
        (num_steps,) float64.

    Raises:
        UserError: the warm-up is longer than the schedule.
    """
    if not 0 <= warmup_steps <= num_steps:
        raise UserError(f"a warm-up of {warmup_steps} steps does not fit into {num_steps} steps: shorten it")
    num_cosine = num_steps - warmup_steps
    progress = np.arange(num_cosine) / max(num_cosine, 1)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * progress))
    return np.concatenate([np.linspace(0.0, base, warmup_steps), cosine])


def scaled_learning_rate(lr: float, total_batch_size: int) -> float:
    """Scale a learning rate linearly with the batch size.

    Args:
        lr: learning rate for 256 images per step.
        total_batch_size: number of images per step, over all processes and accumulated batches.
    """
    return lr * total_batch_size / 256


def teacher_temperatures(start: float, final: float, num_epochs: int, warmup_epochs: int) -> np.ndarray:
    """Compute a linear warm-up from `start` to `final` over `warmup_epochs`, followed by `final`.

    Returns:
        (num_epochs,) float64.

    Raises:
        UserError: the warm-up is longer than the schedule.
    """
    if not 0 <= warmup_epochs <= num_epochs:
        raise UserError(
            f"a temperature warm-up of {warmup_epochs} epochs does not fit into {num_epochs} epochs: shorten it"
        )
    return np.concatenate([np.linspace(start, final, warmup_epochs), np.full(num_epochs - warmup_epochs, final)])


class StepValues(NamedTuple):
    """Values of the schedules at one step."""

    lr: float
    weight_decay: float
    momentum: float  # of the teacher
    teacher_temp: float
    freeze_last_layer: bool


class Schedules(NamedTuple):
    """Values of each step, as arrays (num_steps,)."""

    lr: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    teacher_temp: np.ndarray
    freeze_last_layer: np.ndarray

    def at(self, step: int) -> StepValues:
        """Return the values at `step`, counted from 0 over all epochs."""
        return StepValues(*(values[step].item() for values in self))
