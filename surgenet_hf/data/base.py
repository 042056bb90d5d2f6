"""Common schema of all datasets: frames with masks or labels, split by video."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value

from ..errors import UserError
from .images import DecodeFrames, read_mask, to_cell
from .names import check_no_overlap

IGNORE_INDEX = 255
SINGLE, MULTI = "single_label_classification", "multi_label_classification"

Target = TypeVar("Target", bound=Path | bytes | int | tuple[float, ...])


@dataclass(frozen=True)
class SurgicalData:
    """Frames with masks or labels, split by video.

    A row of a split is
    `{"image": PIL RGB image, "mask": uint8 array (H, W), "video": str, "frame": int, "split": str}`.
    Datasets for other tasks have "labels" instead of "mask". For single-label data, "labels" is an int, the class id.
    For multi-label data, it is a float32 array (num_labels,) of targets from 0 to 1. Targets may be soft, such as the
    mean of several raters.

    Indexing a row decodes it. Indexing a column by name decodes every image too, but
    `splits[...].select_columns(["video", "frame"])[:]` does not.

    Attributes:
        name: name of the dataset in `load_data`.
        task: "semantic-segmentation", "image-classification", or "phase-recognition". Phase recognition needs one
            class per frame and rows at a regular rate.
        labels: names of the classes, in the order of their ids or of the target array.
        colors: RGB color (0 to 255) of each class, for figures.
        splits: "train", "validation", and "test", as far as the data has them.
        ignore_index: value in masks that marks pixels without a class.
        background_id: class that metrics may exclude as background. If None, no class is declared as background, and
            all classes count as foreground. The background is never inferred from an id or a name.
        problem_type: "single_label_classification" or "multi_label_classification", as in a model's config. None for
            segmentation.
        frames_per_second: rate of the consecutive rows of a video. None if the rows are not evenly spaced.
        notes: findings of the checks, one sentence each.
        videos_are_public: whether the videos have the official names of a public dataset. Otherwise they belong to the
            user, and `surgenet_hf.privacy` keeps their names from being published.
        split_protocol: short phrase for results files that says which videos belong to which split.
        train_fraction: fraction of the videos of the train split that were kept, see `fraction.take_fraction`.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    splits: DatasetDict
    _: KW_ONLY
    ignore_index: int = IGNORE_INDEX
    background_id: int | None = None
    problem_type: str | None = None
    frames_per_second: float | None = None
    notes: tuple[str, ...] = ()
    videos_are_public: bool = False
    split_protocol: str = "unknown"
    train_fraction: float = 1.0

    @property
    def is_single_label(self) -> bool:
        """Whether each frame has exactly one class, such as a phase."""
        return self.problem_type == SINGLE

    @property
    def evaluation_split(self) -> str:
        """Name of the split for reported metrics: "test" if it exists, otherwise "validation"."""
        return "test" if "test" in self.splits else "validation"

    def split(self, name: str) -> Dataset:
        """Return the rows of a split.

        Raises:
            UserError: the data has no such split.
        """
        if name not in self.splits:
            raise UserError(f"the dataset {self.name!r} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


@dataclass(frozen=True)
class Sample(Generic[Target]):
    """Frame with its target, before it becomes a row.

    Attributes:
        image: path of the image file, or its encoded bytes.
        target: mask (a path or encoded bytes), class id, or one target per label.
        video: name of the video.
        frame: number of the frame in the video.
    """

    image: Path | bytes
    target: Target
    video: str
    frame: int


@dataclass(frozen=True)
class DecodeRows(DecodeFrames):
    """Transform that decodes frames, masks, and arrays of targets.

    It is a class and not a closure, so that worker processes can pickle it. It leaves out columns that were not
    selected.

    Args:
        table: bytes of the lookup table (256,) from raw mask values to class ids. None if the rows have no masks.
    """

    table: bytes | None = None

    def __call__(self, batch: dict) -> dict:
        batch = super().__call__(batch)
        if "mask" in batch:
            assert self.table is not None  # only rows with masks have a table
            table = np.frombuffer(self.table, np.uint8)
            batch["mask"] = [table[read_mask(cell)] for cell in batch["mask"]]
        if "labels" in batch:
            batch["labels"] = [
                np.asarray(labels, np.float32) if isinstance(labels, list) else labels for labels in batch["labels"]
            ]
        return batch


def build_splits(samples: Mapping[str, list[Sample]], table: np.ndarray | None = None) -> DatasetDict:
    """Convert `{split: samples}` to rows of the schema and drop empty splits.

    For labels, videos keep the order in which they first appear, and the frames of a video are sorted by number. For
    masks, samples keep their order.

    Args:
        samples: frames and targets by split.
        table: uint8 array (256,) with the class id of each raw mask value. None if the targets are labels.

    Raises:
        UserError: a video is in two splits, two video names look the same, or two labeled frames of a video have the
            same number.
    """
    check_no_overlap({split: {sample.video for sample in samples[split]} for split in samples})
    samples = {split: rows if table is not None else _in_order(rows) for split, rows in samples.items() if rows}
    if table is not None:
        column, feature = "mask", Image(decode=False)  # `DecodeRows` decodes the masks
    else:
        target = next(iter(samples.values()))[0].target
        column = "labels"
        feature = Value("int64") if isinstance(target, int) else Sequence(Value("float32"), length=len(target))
    features = Features(
        {
            "image": Image(decode=False),
            column: feature,
            "video": Value("string"),
            "frame": Value("int64"),
            "split": Value("string"),
        }
    )
    decode = DecodeRows(None if table is None else table.tobytes())

    def rows(split: str) -> Dataset:
        targets = [sample.target for sample in samples[split]]
        columns = {
            "image": [to_cell(sample.image) for sample in samples[split]],
            column: targets if table is None else [to_cell(target) for target in targets],
            "video": [sample.video for sample in samples[split]],
            "frame": [sample.frame for sample in samples[split]],
            "split": [split] * len(targets),
        }
        return Dataset.from_dict(columns, features=features).with_transform(decode)

    return DatasetDict({split: rows(split) for split in samples})


def _in_order(samples: list[Sample]) -> list[Sample]:
    order = {video: i for i, video in enumerate(dict.fromkeys(sample.video for sample in samples))}
    ordered = sorted(samples, key=lambda sample: (order[sample.video], sample.frame))
    for first, second in pairwise(ordered):
        if (first.video, first.frame) == (second.video, second.frame):
            sources = " and ".join(
                "bytes" if isinstance(sample.image, bytes) else str(sample.image) for sample in (first, second)
            )
            raise UserError(
                f"video {first.video!r} has two frames with the number {first.frame} ({sources}); remove one, or "
                "renumber the frames in temporal order"
            )
    return ordered
