"""Surgical datasets in one schema: frames with masks or labels, split by video.

This module imports neither `datasets` nor torch nor numpy, so that the command-line interface can list the dataset
names quickly. It imports a loader only when the loader is used.
"""

import difflib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from .base import Sample, SurgicalData
    from .custom import from_datasets

__all__ = [
    "DATASETS",
    "Sample",
    "SurgicalData",
    "class_colors",
    "dataset_names",
    "from_datasets",
    "load_data",
    "registered",
]

_LAZY = {"Sample": ".base", "SurgicalData": ".base", "from_datasets": ".custom"}


@dataclass(frozen=True)
class Registered:
    """Registry entry of a dataset that `load_data` can load.

    Attributes:
        task: task of the dataset, as in `SurgicalData`.
        module: module of `surgenet_hf.data.sets`, which documents the layout, the classes, and the source.
        function: name of the loader in that module.
        options: fixed options of the loader.
        needs_folder: whether `data_dir` is required.
    """

    task: str
    module: str
    function: str = "load"
    options: Mapping[str, object] = field(default_factory=dict)
    needs_folder: bool = True


DATASETS = {
    "synthetic": Registered("semantic-segmentation", "synthetic", needs_folder=False),
    "endoscapes": Registered("semantic-segmentation", "endoscapes"),
    "folder": Registered("semantic-segmentation", "folder"),
    "cholecseg8k": Registered("semantic-segmentation", "cholecseg8k", options={"classes": 13}),
    "cholecseg8k-9": Registered("semantic-segmentation", "cholecseg8k", options={"classes": 9}),
    "cholecseg8k-8": Registered("semantic-segmentation", "cholecseg8k", options={"classes": 8}),
    "dsad": Registered("semantic-segmentation", "dsad"),
    "sarrarp50-segmentation": Registered("semantic-segmentation", "sarrarp50", options={"task": "segmentation"}),
    "atlas120k": Registered("semantic-segmentation", "atlas120k"),
    "endoscapes-cvs": Registered("image-classification", "endoscapes_cvs"),
    "cholec80-tools": Registered("image-classification", "cholec80", options={"task": "tools"}),
    "cholect50-triplets": Registered("image-classification", "cholect50", options={"task": "triplets"}),
    "cholect50-tools": Registered("image-classification", "cholect50", options={"task": "tools"}),
    "cholect50-verbs": Registered("image-classification", "cholect50", options={"task": "verbs"}),
    "cholect50-targets": Registered("image-classification", "cholect50", options={"task": "targets"}),
    "csv": Registered("image-classification", "own", "load_csv"),
    "synthetic-phases": Registered("phase-recognition", "synthetic_phases", needs_folder=False),
    "cholec80-phase": Registered("phase-recognition", "cholec80", options={"task": "phase"}),
    "cholect50-phase": Registered("phase-recognition", "cholect50", options={"task": "phase"}),
    "autolaparo": Registered("phase-recognition", "autolaparo"),
    "sarrarp50-gestures": Registered("phase-recognition", "sarrarp50", options={"task": "gestures"}),
    "multibypass140-phase": Registered("phase-recognition", "multibypass140", options={"task": "phase"}),
    "multibypass140-step": Registered("phase-recognition", "multibypass140", options={"task": "step"}),
    "videos": Registered("phase-recognition", "own", "load_videos"),
}


def dataset_names(task: str | None = None) -> tuple[str, ...]:
    """Return the dataset names that `load_data` accepts, for one task or for all tasks."""
    return tuple(name for name, dataset in DATASETS.items() if task in (None, dataset.task))


def registered(name: str) -> Registered:
    """Return the registry entry of a dataset.

    Raises:
        UserError: no dataset has that name.
    """
    if name in DATASETS:
        return DATASETS[name]
    close = [known for known in DATASETS if known.startswith(name)] or difflib.get_close_matches(name, DATASETS, 1)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise UserError(f"unknown dataset {name!r}{hint} Available datasets: {', '.join(DATASETS)}")


def load_data(name: str, data_dir: str | os.PathLike | None = None, **options) -> "SurgicalData":
    """Load a dataset by its name.

    Args:
        name: one of `dataset_names()`. The module of the dataset documents the expected content of `data_dir`.
        data_dir: folder of the data. "synthetic" and "synthetic-phases" do not need one. If it is given, they write
            their data to it.
        options: options of the dataset's loader, for example `split_protocol`.

    Raises:
        UserError: the name or an option is unknown, `data_dir` is missing, or the data is not as expected.
        MissingFileError: a folder or file is missing.
    """
    dataset = registered(name)
    if data_dir is None and dataset.needs_folder:
        raise UserError(f"the dataset {name!r} needs data_dir, the folder that contains it; none was given")
    load = getattr(import_module(f".sets.{dataset.module}", __name__), dataset.function)
    known = inspect.signature(load).parameters.keys() - {"data_dir", *dataset.options}
    if unknown := sorted(options.keys() - known):
        raise UserError(
            f"the dataset {name!r} has no option {', '.join(unknown)}; its options are "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return load(data_dir, **dataset.options, **options)


def class_colors(labels: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Return the RGB colors of classes for figures.

    If a built-in dataset has exactly these classes, these are its colors. Otherwise they come from the palette.
    """
    from .colors import palette
    from .sets import atlas120k, cholecseg8k, dsad, endoscapes, sarrarp50, synthetic

    known = {
        synthetic.LABELS: synthetic.COLORS,
        endoscapes.LABELS: endoscapes.COLORS,
        cholecseg8k.LABELS: cholecseg8k.COLORS,
        cholecseg8k.GROUPED_LABELS: cholecseg8k.GROUPED_COLORS,
        dsad.LABELS: dsad.COLORS,
        sarrarp50.LABELS: sarrarp50.COLORS,
        atlas120k.LABELS: atlas120k.COLORS,
    }
    return known.get(tuple(labels)) or palette(len(labels))


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
