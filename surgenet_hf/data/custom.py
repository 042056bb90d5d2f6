"""User data: splits that are `datasets.Dataset` objects or map-style torch datasets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from datasets import ClassLabel, Dataset, Image, Value
from PIL import Image as PILImage
from tqdm import tqdm

from ..errors import UserError
from .base import IGNORE_INDEX, MULTI, SINGLE, DecodeRows, SurgicalData
from .colors import palette
from .images import decode_frame, raw_values, require_frame
from .names import check_no_overlap, named, no_video
from .splits import SPLITS

if TYPE_CHECKING:
    from torch.utils.data import Dataset as TorchDataset

# Columns that can hold the target of a frame, by task. The first existing column is used.
TARGETS = {
    "semantic-segmentation": ("mask", "annotation", "label"),
    "image-classification": ("labels", "label"),
    "phase-recognition": ("labels", "label"),
}


def from_datasets(
    splits,
    task: str,
    labels: Sequence[str] | None = None,
    name: str = "custom",
    *,
    background_class: str | None = None,
    frames_per_second: float = 1.0,
    split_protocol: str = "custom",
) -> SurgicalData:
    """Create `SurgicalData` from the user's own datasets.

    The data is not copied, and most frames are not decoded.

    Each split is a `datasets.Dataset` or a map-style torch dataset. Its items are dicts or (image, target) tuples. A
    dict has these keys:

    - "image": a PIL image or a uint8 array (H, W, 3).
    - "mask", "annotation", or "label" for segmentation: an image or integer array (H, W) of class ids. The value 255
      marks pixels without a class.
    - "labels" or "label" for the other tasks: a class id, or a vector (num_labels,) of targets from 0 to 1 for
      multi-label data.
    - "video" and "frame" (optional): the name of the video, and the number of the frame in it.

    A torch dataset with "video" is read once in full. Without "video", each split counts as one video.

    Args:
        splits: `{"train": ..., "validation": ..., "test": ...}`, such as a `DatasetDict`, or one dataset for training.
        task: "semantic-segmentation", "image-classification", or "phase-recognition".
        labels: names of the classes in the order of their ids. None means the names of the `ClassLabel` feature.
        name: name of the dataset in results.
        background_class: name of the class that metrics may exclude as background.
        frames_per_second: rate of the consecutive rows of a video, for phase recognition.
        split_protocol: short phrase for results files that says which videos belong to which split.

    Raises:
        UserError: a split, a column, or the class names are missing, or a video is in two splits. Also if an image or
            a target is not as described.
    """
    if task not in TARGETS:
        raise UserError(f"unknown task {task!r}; expected one of {', '.join(TARGETS)}")
    splits = dict(splits) if isinstance(splits, Mapping) else {"train": splits}
    if not splits or not set(splits) <= set(SPLITS):
        raise UserError(f"found the splits: {named(splits) or 'none'}; expected only {', '.join(SPLITS)}. Rename them")
    labels = tuple(labels or _class_names(splits, task))
    if background_class is not None and background_class not in labels:
        raise UserError(f"background_class={background_class!r} is not a class; the classes are {', '.join(labels)}")

    rows, notes = {}, []
    for split, source in splits.items():
        try:
            rows[split], has_videos = _rows(source, split, task, len(labels))
        except UserError as error:
            raise UserError(f"split {split!r}: {error}") from error
        if not has_videos:
            notes.append(
                f"The split {split} has no column video and counts as one video. Confidence intervals over videos "
                "cannot be computed, and videos that occur in several splits cannot be detected."
            )
    check_no_overlap({split: set(part.select_columns(["video"])[:]["video"]) for split, part in rows.items()})
    target = next(iter(rows.values()))[0].get("labels")
    problem_type = None if target is None else SINGLE if isinstance(target, int) else MULTI
    if task == "phase-recognition" and problem_type != SINGLE:
        raise UserError("phase recognition needs one class id per frame, found a vector of targets")
    return SurgicalData(
        name,
        task,
        labels,
        palette(len(labels)),
        rows,
        background_id=None if background_class is None else labels.index(background_class),
        problem_type=problem_type,
        frames_per_second=frames_per_second if task == "phase-recognition" else None,
        notes=tuple(notes),
        split_protocol=split_protocol,
    )


def _class_names(splits: dict, task: str) -> list[str]:
    found = {}
    for split, source in splits.items():
        features = source.features if isinstance(source, Dataset) else {}
        feature = next((features[column] for column in TARGETS[task] if column in features), None)
        if isinstance(feature, ClassLabel):
            found[split] = feature.names
    if not found:
        raise UserError(
            "the data has no ClassLabel feature with class names; pass labels=[...] in the order of the ids"
        )
    names = next(iter(found.values()))
    if any(other != names for other in found.values()):
        raise UserError(f"the splits have different class names: {found}; cast them to one ClassLabel feature")
    return names


def _rows(source, split: str, task: str, num_labels: int):
    """Return the rows of a split, ordered by video and frame, and whether they have a column "video"."""
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise UserError(
            f"it is a {type(source).__name__}; expected a datasets.Dataset or a torch dataset with __len__ and "
            "__getitem__. Load streaming data into a datasets.Dataset first"
        )
    if not len(source):
        raise UserError("it is empty; remove the split")
    if isinstance(source, Dataset) and source.format["type"] != "custom":
        columns = source.column_names
        target = _target_column(columns, task)
        images = ["image", target] if task == "semantic-segmentation" else ["image"]
        if all(isinstance(source.features[column], Image) for column in images):
            rows = _dataset_rows(source, split, target, images, num_labels)
            return _in_order(rows), "video" in columns
    read = ReadItem(task, num_labels)
    first = read.fields(source[0])
    read(first)
    if "video" not in first:
        videos, frames = [no_video(split)] * len(source), list(range(len(source)))
    else:
        items = (read.fields(source[i]) for i in tqdm(range(len(source)), desc=f"Reading the videos of {split}"))
        pairs = [(str(item["video"]), int(item.get("frame", i))) for i, item in enumerate(items)]
        videos, frames = map(list, zip(*pairs, strict=True))
    known: dict[str, list] = {"video": videos, "frame": frames, "split": [split] * len(source)}
    column = "mask" if task == "semantic-segmentation" else "labels"
    rows = MapRows(source, read, known, ("image", column, "video", "frame", "split"), range(len(source)))
    return _in_order(rows), "video" in first


def _target_column(columns: Sequence[str], task: str) -> str:
    target = next((column for column in TARGETS[task] if column in columns), None)
    if "image" not in columns or target is None:
        raise UserError(
            f"found the columns {named(columns)}; {task} needs image and {' or '.join(TARGETS[task])}. Rename them"
        )
    return target


def _in_order(rows):
    """Return rows grouped by video and ordered by frame, after decoding the first row as a check."""
    rows[0]
    known = rows.select_columns(["video", "frame"])[:]
    position = {video: i for i, video in enumerate(dict.fromkeys(known["video"]))}
    keys = [(position[video], frame) for video, frame in zip(known["video"], known["frame"], strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return rows if order == list(range(len(keys))) else rows.select(order)


def _dataset_rows(source: Dataset, split: str, target: str, images: list[str], num_labels: int) -> Dataset:
    """Convert a `datasets.Dataset` to the schema of `SurgicalData`, copying only the small columns."""
    columns = [column for column in ("image", target, "video", "frame") if column in source.column_names]
    rows = source.with_format(None).select_columns(columns)
    for column in images:
        rows = rows.cast_column(column, Image(decode=False))
    if "video" not in columns:
        rows = rows.add_column("video", [no_video(split)] * len(rows))
    if "frame" not in columns:
        rows = rows.add_column("frame", list(range(len(rows))))
    rows = rows.cast_column("video", Value("string")).cast_column("frame", Value("int64"))
    rows = rows.add_column("split", [split] * len(rows))
    column = "mask" if target in images else "labels"
    if target != column:
        rows = rows.rename_column(target, column)
    rows = rows.select_columns(["image", column, "video", "frame", "split"])
    return rows.with_transform(DecodeOwnRows(np.arange(256, dtype=np.uint8).tobytes(), num_labels))


@dataclass(frozen=True)
class DecodeOwnRows(DecodeRows):
    """Transform that decodes rows and checks their targets.

    Args:
        num_labels: number of classes.
    """

    num_labels: int = 0

    def __call__(self, batch: dict) -> dict:
        batch = super().__call__(batch)
        for i, mask in enumerate(batch.get("mask", ())):
            check_mask(mask, batch["image"][i].size if "image" in batch else None, self.num_labels)
        if "labels" in batch:
            batch["labels"] = [check_labels(labels, self.num_labels) for labels in batch["labels"]]
        return batch


@dataclass(frozen=True)
class ReadItem:
    """Converter from items of a torch dataset to an image and a target.

    Args:
        task: as in `SurgicalData`.
        num_labels: number of classes.
    """

    task: str
    num_labels: int

    def fields(self, item) -> Mapping:
        """Return an item as a dict with "image" and "target", and with "video" and "frame" if the item has them."""
        if isinstance(item, tuple | list) and len(item) == 2:
            return dict(zip(("image", "target"), item, strict=True))
        if not isinstance(item, Mapping):
            raise UserError(f"an item is a {type(item).__name__}; expected a dict or (image, target)")
        target = _target_column(list(item), self.task)
        return {key: item[key] for key in ("image", "video", "frame") if key in item} | {"target": item[target]}

    def __call__(self, fields: Mapping) -> dict:
        image = _image(fields["image"])
        if self.task != "semantic-segmentation":
            return {"image": image, "labels": check_labels(fields["target"], self.num_labels)}
        mask = _mask(fields["target"])
        check_mask(mask, image.size, self.num_labels)
        return {"image": image, "mask": mask}


@dataclass(frozen=True)
class MapRows:
    """Rows of a torch dataset, with the methods of `datasets.Dataset` that this package uses.

    Args:
        source: torch dataset.
        read: converter of its items.
        known: columns that are known without reading an item, with one value per item.
        columns: names of the columns of a row.
        indices: index of the item of each row.
    """

    source: "TorchDataset"
    read: ReadItem
    known: Mapping[str, list]
    columns: tuple[str, ...]
    indices: Sequence[int]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | slice) -> dict:
        if isinstance(key, slice):
            rows = [self[i] for i in range(*key.indices(len(self)))]
            return {column: [row[column] for row in rows] for column in self.columns}
        index = self.indices[key]
        row = {column: self.known[column][index] for column in self.columns if column in self.known}
        if len(row) < len(self.columns):
            row |= self.read(self.read.fields(self.source[index]))
        return {column: row[column] for column in self.columns}

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def select(self, indices: Sequence[int]) -> "MapRows":
        return replace(self, indices=[self.indices[i] for i in indices])

    def select_columns(self, columns: Sequence[str]) -> "MapRows":
        return replace(self, columns=tuple(columns))


def _image(image) -> PILImage.Image:
    if isinstance(image, PILImage.Image):
        require_frame(image)
        return decode_frame(image)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UserError(
            f"the image is a {type(image).__name__} of shape {array.shape} and type {array.dtype}; expected a PIL "
            "image or a uint8 array (H, W, 3). Remove transforms that produce tensors"
        )
    return PILImage.fromarray(array)


def _mask(mask) -> np.ndarray:
    if isinstance(mask, PILImage.Image):
        return raw_values(mask)
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(
            f"the mask is a {type(mask).__name__} of shape {array.shape} and type {array.dtype}; expected an image or "
            "an integer array (H, W) of class ids"
        )
    if array.min() < 0 or array.max() > IGNORE_INDEX:
        raise UserError(f"the mask contains values from {array.min()} to {array.max()}; class ids go from 0 to 255")
    return array.astype(np.uint8)


def check_mask(mask: np.ndarray, size: tuple[int, int] | None, num_labels: int) -> None:
    """Check that a mask has the (width, height) of its image and holds only class ids and 255.

    Raises:
        UserError: the size differs, or the mask holds another value.
    """
    if size is not None and mask.shape != size[::-1]:
        raise UserError(f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels, but its image has {size[0]}x{size[1]}")
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[:IGNORE_INDEX])
    if len(ids) and ids[-1] >= num_labels:
        raise UserError(
            f"the mask contains the id {ids[-1]}, but there are {num_labels} classes with ids 0 to {num_labels - 1} "
            f"({IGNORE_INDEX} is ignored); name all classes or correct the mask"
        )


def check_labels(labels, num_labels: int) -> int | np.ndarray:
    """Check a label, and return it as an int (class id) or a float32 array (num_labels,) of targets.

    Raises:
        UserError: the label is not a valid class id or target vector.
    """
    array = np.asarray(labels)
    if array.ndim == 0 and array.dtype.kind in "iu":
        if not 0 <= array < num_labels:
            raise UserError(f"the label is {array}, but there are {num_labels} classes with ids 0 to {num_labels - 1}")
        return int(array)
    if array.shape != (num_labels,) or array.dtype.kind not in "biuf" or not ((array >= 0) & (array <= 1)).all():
        raise UserError(
            f"the label is {labels!r}; expected a class id, or a vector of {num_labels} targets from 0 to 1"
        )
    return array.astype(np.float32)
