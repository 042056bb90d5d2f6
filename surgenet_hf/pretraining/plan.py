"""Plan of a run: the values that its checkpoints record and that its parts share."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoints.catalog import RANDOM_WEIGHTS, pretraining_name


@dataclass(frozen=True)
class Plan:
    """Length, data, and options of a run.

    Attributes:
        options: see `arguments.options_of`.
        frames: JSON values of the frames that must be the same in a resumed run.
        data_names: names of the datasets.
        num_frames: number of different frames. For streams: frames in an epoch.
        num_processes: number of training processes.
        total_batch_size: number of frames in a step of all processes.
        steps_per_epoch: number of steps in an epoch.
        num_steps: number of steps of the schedules.
        last_step: step after which the run ends.
    """

    options: dict
    frames: dict
    data_names: Sequence[str]
    num_frames: int
    num_processes: int
    total_batch_size: int
    steps_per_epoch: int
    num_steps: int
    last_step: int

    @property
    def epochs(self) -> int:
        """Return the number of epochs of the schedules."""
        return self.num_steps // self.steps_per_epoch

    def epochs_after(self, step: int) -> int | float:
        """Return the number of epochs after a number of steps, rounded to two decimals."""
        return round(step / self.steps_per_epoch, 2) if step % self.steps_per_epoch else step // self.steps_per_epoch

    def describe_pretraining(self, base: dict | None, step: int, normalization: str) -> dict:
        """Return `config.pretraining` of the teacher after a number of steps. See the function of the same name."""
        return describe_pretraining(base, self.data_names, self.epochs_after(step), self.num_frames, normalization)


def count(number: int, noun: str) -> str:
    """Return a number and a noun, e.g. "1 epoch" or "2,000 epochs"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def describe_pretraining(
    base: dict | None, data: Sequence[str], epoch: int | float, frames: int, normalization: str = "surgenet"
) -> dict:
    """Return `config.pretraining` of a teacher: the origin of its start weights, and its training data.

    Args:
        base: `config.pretraining` of the start weights. `{"name": RANDOM_WEIGHTS}`: random weights. None: unknown.
        data: names of the datasets, at least one.
        epoch: number of completed epochs.
        frames: number of different frames. For streams: frames in an epoch.
        normalization: "surgenet" or "imagenet".

    Returns:
        `name`, `method`, `base` (None for random weights), `data`, `epoch`, `frames`, and `normalization`. The name
        contains base and data, and `checkpoints.catalog.leakage_note` reads it.
    """
    base = {"name": "unknown"} | (base or {})
    return {
        "name": pretraining_name(base["name"], data),
        "method": "DINO",
        "base": None if base["name"] == RANDOM_WEIGHTS else base,
        "data": list(data),
        "epoch": epoch,
        "frames": frames,
        "normalization": normalization,
    }
