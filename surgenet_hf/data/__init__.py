"""Frames and labels: one module per data set, all giving data sets of one schema."""

from pathlib import Path

from . import endoscapes, folder, synthetic
from .segmentation import SegmentationData

__all__ = ["SegmentationData", "load_segmentation"]

_LOADERS = {"synthetic": synthetic.load, "endoscapes": endoscapes.load, "folder": folder.load}


def load_segmentation(name: str, data_dir: str | Path | None = None, **kwargs) -> SegmentationData:
    """A segmentation data set by its name.

    Args:
        name: "synthetic", "endoscapes" or "folder"; what each expects in `data_dir` is in the docstring of its module.
        data_dir: where the data lies. "synthetic" takes it as the place to write to and needs none.
        kwargs: passed on to `load` of the module.

    Raises:
        ValueError: an unknown name, no `data_dir` where one is needed, or data that is not as it should be.
        FileNotFoundError: a missing folder or file.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(_LOADERS)}")
    if data_dir is None and name != "synthetic":
        raise ValueError(f"the data set {name!r} needs data_dir, the folder that holds it; none was given")
    return _LOADERS[name](data_dir, **kwargs)
