"""Estimated training time of cells, from a few steps."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data import SurgicalData, load_data
from ..finetuning import classification, segmentation
from ..finetuning.arguments import OPTIONS
from ..finetuning.run import prepare
from ..finetuning.trainer import EstimateDuration
from ..options import OptionParser
from .cells import BATCH_SIZE, Cell, cell_options, command_options, training_default
from .definition import Protocol
from .execute import Resources, prepare_model

EPOCHS, ACCUMULATION = "num_train_epochs", "gradient_accumulation_steps"
# options of the short training; it neither evaluates nor saves
TIMED: dict[str, Any] = {
    "max_steps": EstimateDuration.WARMUP + EstimateDuration.MEASURED,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "resume_from_checkpoint": None,
}


def estimate_hours(
    protocol: Protocol, cells: list[Cell], data_root: Path, folder: Path, resources: Resources
) -> dict[str, float | None]:
    """Return the estimated hours of training of each cell by its name, None for probes.

    A few steps of the Trainer are timed for each model, dataset, and mode, on one device of this machine. The number
    of steps follows from the frames, the fraction, and the options. For phase recognition, this is stage 1.

    Args:
        protocol: protocol of the cells.
        cells: cells.
        data_root: folder with the folders of the datasets.
        folder: folder for temporary files.
        resources: where the cells will run. Only the number of GPUs matters, which divides the batch.

    Raises:
        UserError: a dataset or model is not usable.
    """
    trained = [cell for cell in cells if not cell.is_probe]
    timed = {_kind(cell): cell for cell in reversed(trained)}
    data: dict[tuple, SurgicalData] = {}
    seconds = {}
    for kind, cell in tqdm(timed.items(), desc="Timed trainings", unit="training"):
        model = prepare_model(cell.model, folder)
        options = command_options(cell, protocol, data_root, folder, model, resources.gpus or 0)
        if kind[1:3] not in data:
            loaded = {"split_protocol": cell.dataset.split_protocol} if cell.dataset.split_protocol else {}
            data[kind[1:3]] = load_data(cell.dataset.name, options.get("data_dir"), **loaded)
        seconds[kind] = seconds_per_step(cell, options, data[kind[1:3]])
    hours: dict[str, float | None] = {cell.name: None for cell in cells}
    for cell in trained:
        kind = _kind(cell)
        hours[cell.name] = steps(cell, protocol, len(data[kind[1:3]].split("train"))) * seconds[kind] / 3600
    return hours


def _kind(cell: Cell) -> tuple:
    return cell.model.name, cell.dataset.name, cell.dataset.split_protocol, cell.mode


def seconds_per_step(cell: Cell, options: dict[str, Any], data: SurgicalData) -> float:
    """Return the seconds of a training step of a cell on this machine, from a short training in this process.

    Args:
        cell: cell that is not a probe.
        options: options of its command. The class weights of the loss are not computed.
        data: its dataset.

    Raises:
        UserError: the model or an option is not usable.
    """
    task = cell.dataset.task
    given = {name: value for name, value in {**options, **TIMED}.items() if value is not None}
    model_args, _, task_args, training_args = OptionParser(OPTIONS[task]).parse_options(given)
    finetune, build = classification.finetune, classification.build_model
    if task == "semantic-segmentation":
        finetune, build = segmentation.finetune, partial(segmentation.build_model, head=task_args.head)
    elif task == "image-classification":
        build = partial(build, pooling=task_args.pooling)
    model, processor = prepare(build, model_args, data)
    trainer = finetune(model, processor, data, training_args, **model_args.options())
    assert trainer.duration.seconds is not None  # it trains as many steps as are timed
    return trainer.duration.seconds


def steps(cell: Cell, protocol: Protocol, frames: int) -> int:
    """Return the number of training steps of a cell."""
    options = cell_options(cell, protocol)
    if (given := int(options.get("max_steps", -1))) > 0:
        return given
    batch, epochs = (options.get(name, training_default(cell.dataset.task, name)) for name in (BATCH_SIZE, EPOCHS))
    batch = int(batch) * int(options.get(ACCUMULATION, 1))
    return math.ceil(float(epochs) * math.ceil(cell.fraction * frames / batch))
