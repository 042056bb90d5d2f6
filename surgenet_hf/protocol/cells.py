"""Cells of a protocol: one model on one dataset, in one mode, with one fraction of the videos and one seed."""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tasks import TASKS
from .definition import ONLY_PROBES, PROBE_OPTIONS, DatasetEntry, ModelEntry, Protocol, plain
from .run_cell import FAILED, RESULTS

BATCH_SIZE = "per_device_train_batch_size"


@dataclass(frozen=True)
class Cell:
    """Cell of a protocol, which one process computes."""

    model: ModelEntry
    dataset: DatasetEntry
    mode: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Path of its folder, relative to that of all cells."""
        data = "-".join(filter(None, (self.dataset.name, (self.dataset.split_protocol or "").replace("/", "_"))))
        return f"{self.model.name}/{data}/{self.mode}/{100 * self.fraction:g}-percent/seed-{self.seed}"

    @property
    def is_probe(self) -> bool:
        """Whether the mode uses pooled features. A linear segmentation head is trained on feature maps instead."""
        return self.mode == "knn" or (self.mode == "linear" and self.dataset.task != "semantic-segmentation")


def cells_of(protocol: Protocol) -> Iterator[Cell]:
    """Yield the cells of a protocol. On all videos, probes have no random numbers, so one seed suffices."""
    for model, dataset, mode, fraction in product(
        protocol.models, protocol.datasets, protocol.modes, protocol.fractions
    ):
        if mode not in dataset.modes:
            continue
        cells = [Cell(model, dataset, mode, float(fraction), seed) for seed in protocol.seeds]
        yield from cells[:1] if cells[0].is_probe and fraction == 1 else cells


def cell_folder(output_dir: Path, cell: Cell) -> Path:
    return output_dir / "cells" / cell.name


def cell_state(output_dir: Path, cell: Cell) -> str:
    """Return "done", "failed", "started", or "new"."""
    folder = cell_folder(output_dir, cell)
    if (folder / RESULTS).is_file():
        return "done"
    if (folder / FAILED).is_file():
        return "failed"
    return "started" if folder.exists() else "new"


def cell_command(
    cell: Cell, protocol: Protocol, data_root: Path, output_dir: Path, model: str, gpus: int = 0
) -> list[str]:
    """Return the command of a cell.

    Args:
        cell: cell.
        protocol: its protocol.
        data_root: folder with the folders of the datasets.
        output_dir: output folder of the protocol.
        model: initial weights, as in `--model_name_or_path`.
        gpus: number of GPUs. More than one are used through torchrun.
    """
    command = "probe" if cell.is_probe else TASKS[cell.dataset.task].command
    module = f"surgenet_hf.cli.{command.replace('-', '_')}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)] if gpus > 1 else []
    options = command_options(cell, protocol, data_root, output_dir, model, gpus)
    return [sys.executable, *launcher, "-m", module, *as_arguments(options)]


def command_options(
    cell: Cell, protocol: Protocol, data_root: Path, output_dir: Path, model: str, gpus: int = 0
) -> dict[str, Any]:
    """Return all options of the command of a cell. For the arguments, see `cell_command`."""
    options: dict[str, Any] = {
        "model_name_or_path": model,
        "dataset": cell.dataset.name,
        "split_protocol": cell.dataset.split_protocol,
        "train_fraction": cell.fraction if cell.fraction < 1 else None,
        "seed": cell.seed,
        "output_dir": cell_folder(output_dir, cell),
    }
    if not cell.dataset.name.startswith("synthetic"):
        options["data_dir"] = data_root / (cell.dataset.folder or cell.dataset.name)
    if cell.is_probe:
        options |= {"method": cell.mode, "features_dir": output_dir / "features", "split": cell.dataset.split}
    else:
        options["eval_split"] = cell.dataset.split
        if cell.mode == "linear":
            options |= {"head": "linear", "freeze_backbone": True}
        options["resume_from_checkpoint"] = True  # without a checkpoint, it starts from the beginning
    options |= cell_options(cell, protocol)
    if gpus > 1 and not cell.is_probe:
        options[BATCH_SIZE] = _batch_per_gpu(cell, options, gpus)
    return options


def cell_options(cell: Cell, protocol: Protocol) -> dict[str, Any]:
    """Return the options of the protocol for a cell: those of task or mode, of the dataset, and of the model."""
    task_options = protocol.options.get(cell.dataset.task, {})
    merged = {**task_options, **protocol.options.get(cell.mode, {}), **cell.dataset.options, **cell.model.options}
    if cell.is_probe:  # options of a training do not apply
        return {name: value for name, value in merged.items() if name in PROBE_OPTIONS}
    if cell.mode == "linear":  # a linear segmentation head is not a probe
        return {name: value for name, value in merged.items() if name not in ONLY_PROBES}
    return merged


def cell_definition(cell: Cell, protocol: Protocol) -> dict[str, Any]:
    """Return what determines the results of a cell: {name: value}, with plain values.

    It does not depend on the other models, datasets, modes, fractions, and seeds of the protocol.
    """
    entries = {
        "model": cell.model.model,
        "backbone": cell.model.backbone,
        "config": cell.model.config,
        "dataset": cell.dataset.name,
        "folder": cell.dataset.folder,
        "split_protocol": cell.dataset.split_protocol,
        "split": cell.dataset.split,
        "mode": cell.mode,
        "fraction": cell.fraction,
        "seed": cell.seed,
    }
    options = {f"options.{name}": value for name, value in cell_options(cell, protocol).items()}
    return plain({**entries, **options})


def fingerprint(definition: dict) -> str:
    """Return a fingerprint of the definition of a cell with 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]


def training_default(task: str, name: str):
    """Return the default value of a training option of a task."""
    from ..finetuning.arguments import PhaseTrainingArguments, SurgeNetTrainingArguments

    kind = PhaseTrainingArguments if task == "phase-recognition" else SurgeNetTrainingArguments
    return kind.__dataclass_fields__[name].default


def _batch_per_gpu(cell: Cell, options: dict[str, Any], gpus: int) -> int:
    """Return the batch size per GPU, so that the batch of a step does not depend on the number of GPUs."""
    total = int(options.get(BATCH_SIZE, training_default(cell.dataset.task, BATCH_SIZE)))
    if total % gpus:
        raise UserError(
            f"{BATCH_SIZE} {total} of {cell.name} cannot be divided by --gpus {gpus}; choose another number"
        )
    return total // gpus


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Return options as a command line. None is omitted."""
    found: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        found += [f"--{name}", *(str(each).lower() if isinstance(each, bool) else str(each) for each in values)]
    return found


def read_failure(folder: Path) -> dict:
    """Return the record of a failed cell."""
    return json.loads((folder / FAILED).read_text(encoding="utf-8"))
