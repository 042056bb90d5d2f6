"""What changes from step to step in DINO (Caron et al. 2021), as arrays with one value a step.

All are functions of the step alone, so an interrupted run goes on where it was.
"""

from typing import NamedTuple

import numpy as np

from ...errors import UserError


def cosine_schedule(base: float, final: float, num_steps: int, warmup_steps: int = 0) -> np.ndarray:
    """(num_steps,) float64: a line from 0 to `base`, then half a cosine wave from `base` towards `final`.

    The line ends on `base` and the cosine begins with it, so with a warm-up that value comes twice; `final` would be
    reached at step `num_steps`.

    Raises:
        UserError: the warm-up is longer than the whole.
    """
    if not 0 <= warmup_steps <= num_steps:
        raise UserError(f"a warm-up of {warmup_steps} steps does not fit into {num_steps} steps: shorten it")
    num_cosine = num_steps - warmup_steps
    progress = np.arange(num_cosine) / max(num_cosine, 1)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * progress))
    return np.concatenate([np.linspace(0.0, base, warmup_steps), cosine])


def scaled_learning_rate(lr: float, total_batch_size: int) -> float:
    """The linear scaling rule: `lr` is for 256 images a step, over all processes and accumulated batches."""
    return lr * total_batch_size / 256


def teacher_temperatures(start: float, final: float, num_epochs: int, warmup_epochs: int) -> np.ndarray:
    """(num_epochs,) float64: a line from `start` to `final` over `warmup_epochs`, then `final`.

    Raises:
        UserError: the warm-up is longer than the whole.
    """
    if not 0 <= warmup_epochs <= num_epochs:
        raise UserError(
            f"a temperature warm-up of {warmup_epochs} epochs does not fit into {num_epochs} epochs: shorten it"
        )
    return np.concatenate([np.linspace(start, final, warmup_epochs), np.full(num_epochs - warmup_epochs, final)])


class StepValues(NamedTuple):
    """What holds at one step."""

    lr: float
    weight_decay: float
    momentum: float  # of the teacher
    teacher_temp: float
    freeze_last_layer: bool


class Schedules(NamedTuple):
    """One value a step of each: all (num_steps,)."""

    lr: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    teacher_temp: np.ndarray
    freeze_last_layer: np.ndarray

    def at(self, step: int) -> StepValues:
        """Return the values at `step`, counted from 0 over all epochs."""
        return StepValues(*(values[step].item() for values in self))
