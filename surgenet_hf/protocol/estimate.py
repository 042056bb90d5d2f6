"""Estimated training time of cells, from a few steps."""

import math
from pathlib import Path

from ..data import load_data
from .cells import BATCH_SIZE, Cell, cell_options, training_default
from .definition import Protocol
from .execute import Resources, commands_of, seconds_per_step

EPOCHS = "num_train_epochs"


def estimate_hours(
    protocol: Protocol, cells: list[Cell], data_root: Path, folder: Path, resources: Resources
) -> dict[str, float | None]:
    """Return the estimated hours of training of each cell by its name, None for probes.

    A few steps are timed for each model, dataset, and mode, on this machine. The number of steps follows from the
    frames, the fraction, and the options. For phase recognition, the time is that of stage 1, which is most of it.

    Args:
        protocol: protocol of the cells.
        cells: cells.
        data_root: folder with the folders of the datasets.
        folder: folder for temporary files.
        resources: where the cells will run. Only the number of GPUs matters.

    Raises:
        UserError: a dataset or model is not usable.
    """
    commands = commands_of(cells, protocol, data_root, folder, resources.gpus or 0)
    seconds: dict[tuple, float] = {}
    frames: dict[tuple, int] = {}
    hours: dict[str, float | None] = {}
    for cell in cells:
        if cell.is_probe:
            hours[cell.name] = None
            continue
        key = (cell.model.name, cell.dataset.name, cell.dataset.split_protocol, cell.mode)
        if key[1:3] not in frames:
            has_files = not cell.dataset.name.startswith("synthetic")
            data_dir = str(data_root / (cell.dataset.folder or cell.dataset.name)) if has_files else None
            options = {"split_protocol": cell.dataset.split_protocol} if cell.dataset.split_protocol else {}
            frames[key[1:3]] = len(load_data(cell.dataset.name, data_dir, **options).split("train"))
        if key not in seconds:
            seconds[key] = seconds_per_step(commands[cell.name])
        hours[cell.name] = steps(cell, protocol, frames[key[1:3]]) * seconds[key] / 3600
    return hours


def steps(cell: Cell, protocol: Protocol, frames: int) -> int:
    """Return the number of training steps of a cell."""
    options = cell_options(cell, protocol)
    if (given := int(options.get("max_steps", -1))) > 0:
        return given
    batch, epochs = (options.get(name, training_default(cell.dataset.task, name)) for name in (BATCH_SIZE, EPOCHS))
    return math.ceil(float(epochs) * math.ceil(cell.fraction * frames / int(batch)))
