"""Frames and labels: one module per data set, all giving data sets of one schema."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from . import autolaparo, cholec80, endoscapes, endoscapes_cvs, folder, own, synthetic, synthetic_phases
from .classification import ClassificationData
from .segmentation import SegmentationData

__all__ = ["ClassificationData", "SegmentationData", "load_classification", "load_segmentation"]


def _in_module(name: str) -> Callable:
    """`load` of a module that is imported when it is asked for."""

    def load(*args, **kwargs):
        return import_module(f"{__name__}.{name}").load(*args, **kwargs)

    return load


def _cholec80(task: str) -> Callable:
    def load(data_dir: str | Path, **kwargs) -> ClassificationData:
        return cholec80.load(data_dir, task, **kwargs)

    return load


SEGMENTATION = {
    "synthetic": synthetic.load,
    "endoscapes": endoscapes.load,
    "folder": folder.load,
    "cholecseg8k": _in_module("cholecseg8k"),
    "dsad": _in_module("dsad"),
}
CLASSIFICATION = {
    "synthetic-phases": synthetic_phases.load,
    "endoscapes-cvs": endoscapes_cvs.load,
    "cholec80-phase": _cholec80("phase"),
    "cholec80-tools": _cholec80("tools"),
    "autolaparo": autolaparo.load,
    "csv": own.load_csv,
    "videos": own.load_videos,
}
_MADE = ("synthetic", "synthetic-phases")


def load_segmentation(name: str, data_dir: str | Path | None = None, **kwargs) -> SegmentationData:
    """A segmentation data set by its name.

    Args:
        name: "synthetic", "endoscapes", "folder", "cholecseg8k" or "dsad"; what each expects in `data_dir` is in the
            docstring of its module.
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
            "videos" (the last two: `surgenet_hf.data.own`); what each expects in `data_dir` is in the docstring of its
            module.
        data_dir: where the data lies. "synthetic-phases" takes it as the place to write to and needs none.
        kwargs: passed on to `load` of the module.

    Raises:
        ValueError: an unknown name, no `data_dir` where one is needed, or data that is not as it should be.
        FileNotFoundError: a missing folder or file.
    """
    return _load(CLASSIFICATION, name, data_dir, kwargs)


def _load(loaders: dict[str, Callable], name: str, data_dir: str | Path | None, kwargs: dict):
    if name not in loaders:
        raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(loaders)}")
    if data_dir is None and name not in _MADE:
        raise ValueError(f"the data set {name!r} needs data_dir, the folder that holds it; none was given")
    return loaders[name](data_dir, **kwargs)
