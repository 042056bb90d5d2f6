"""Frames and labels: one module per data set, all giving data sets of one schema."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..errors import UserError
from .classification import ClassificationData
from .segmentation import SegmentationData, palette
from .sets import (
    autolaparo,
    cholec80,
    cholecseg8k,
    dsad,
    endoscapes,
    endoscapes_cvs,
    folder,
    own,
    synthetic,
    synthetic_phases,
)

__all__ = ["ClassificationData", "SegmentationData", "class_colors", "load_classification", "load_segmentation"]


SEGMENTATION = {
    "synthetic": synthetic.load,
    "endoscapes": endoscapes.load,
    "folder": folder.load,
    "cholecseg8k": cholecseg8k.load,
    "cholecseg8k-9": partial(cholecseg8k.load, classes=9),
    "cholecseg8k-8": partial(cholecseg8k.load, classes=8),
    "dsad": dsad.load,
}
CLASSIFICATION = {
    "synthetic-phases": synthetic_phases.load,
    "endoscapes-cvs": endoscapes_cvs.load,
    "cholec80-phase": partial(cholec80.load, task="phase"),
    "cholec80-tools": partial(cholec80.load, task="tools"),
    "autolaparo": autolaparo.load,
    "csv": own.load_csv,
    "videos": own.load_videos,
}
_MADE = ("synthetic", "synthetic-phases")
PHASES = ("synthetic-phases", "cholec80-phase", "autolaparo", "videos")
NAMES = f"Segmentation: {', '.join(SEGMENTATION)}. Classification: {', '.join(CLASSIFICATION)}."


def load_segmentation(name: str, data_dir: str | Path | None = None, **kwargs) -> SegmentationData:
    """A segmentation data set by its name.

    Args:
        name: "synthetic", "endoscapes", "folder", "cholecseg8k" (13 classes), "cholecseg8k-9" (the SurgeNet group's
            9), "cholecseg8k-8" (EndoViT's 8) or "dsad"; what each expects in `data_dir` is in the docstring of its
            module.
        data_dir: where the data lies. "synthetic" takes it as the place to write to and needs none; "dsad" takes
            the name of its Hub repository too.
        kwargs: passed on to `load` of the module.

    Raises:
        ValueError: an unknown name, no `data_dir` where one is needed, or data that is not as it should be.
        FileNotFoundError: a missing folder or file.
    """
    return _load(SEGMENTATION, name, data_dir, kwargs)


def load_classification(name: str, data_dir: str | Path | None = None, **kwargs) -> ClassificationData:
    """A data set with labels for whole frames, by its name: phases, tools, criteria, or classes of your own.

    Args:
        name: "synthetic-phases", "endoscapes-cvs", "cholec80-phase", "cholec80-tools", "autolaparo", "csv" or
            "videos" (the last two: `surgenet_hf.data.sets.own`); what each expects in `data_dir` is in the
            docstring of its module.
        data_dir: where the data lies. "synthetic-phases" takes it as the place to write to and needs none.
        kwargs: passed on to `load` of the module.

    Raises:
        ValueError: an unknown name, no `data_dir` where one is needed, or data that is not as it should be.
        FileNotFoundError: a missing folder or file.
    """
    return _load(CLASSIFICATION, name, data_dir, kwargs)


def class_colors(labels: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Colors that figures give to classes: those of the data set that has these classes, else of the palette."""
    known = {
        synthetic.LABELS: synthetic.COLORS,
        endoscapes.LABELS: endoscapes.COLORS,
        cholecseg8k.LABELS: cholecseg8k.COLORS,
        cholecseg8k.GROUPED_LABELS: cholecseg8k.GROUPED_COLORS,
        dsad.LABELS: dsad.COLORS,
    }
    return known.get(tuple(labels)) or palette(len(labels))


def _load(loaders: dict[str, Callable], name: str, data_dir: str | Path | None, kwargs: dict):
    if name not in loaders:
        if name in SEGMENTATION:
            raise UserError(f"{name} is a segmentation data set: use finetune_segmentation.py (load_segmentation)")
        if name in CLASSIFICATION:
            script = "finetune_phase.py" if name in PHASES else "finetune_classification.py"
            raise UserError(f"{name} labels whole frames, not pixels: use {script} (load_classification)")
        raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(loaders)}")
    if data_dir is None and name not in _MADE:
        raise ValueError(f"the data set {name!r} needs data_dir, the folder that holds it; none was given")
    unknown = kwargs.keys() - inspect.signature(loaders[name]).parameters.keys()
    if unknown:
        raise ValueError(f"the data set {name!r} has no choice of {', '.join(sorted(unknown))}")
    return loaders[name](data_dir, **kwargs)
