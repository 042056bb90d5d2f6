"""The one schema of segmentation data, and what the loaders share: lookup tables, checks, rows."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage
from tqdm import tqdm

from .images import DecodeFrames, Source, frame_size, naming, read_upright, to_cell
from .names import check_no_overlap, require_unicode

IGNORE_INDEX = 255

# Okabe and Ito's palette, made to be told apart with every kind of colour vision (https://jfly.uni-koeln.de/color/);
# grey instead of black first, as the first class is mostly background.
_OKABE_ITO = (
    (127, 127, 127),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

FEATURES = Features(
    {
        "image": Image(decode=False),  # DecodeRows decodes
        "mask": Image(decode=False),
        "video": Value("string"),
        "frame": Value("int64"),
        "split": Value("string"),
    }
)


@dataclass(frozen=True)
class SegmentationData:
    """Frames with masks, split by video.

    A row of a split is `{"image": PIL RGB image, "mask": uint8 array (H, W), "video": str, "frame": int,
    "split": str}`; it is decoded when it is indexed. Masks hold class ids, `ignore_index` where there is no label.
    Indexing by a column name decodes every image too; `splits[...].select_columns(["video", "frame"])[:]` does not.

    Attributes:
        name: what the data set is called in `load_segmentation`.
        labels: names of the classes, in the order of their ids.
        colors: one RGB colour (0 to 255) for each class, for figures.
        splits: "train", "validation" and, where the data has it, "test".
        ignore_index: the value in masks that is no class.
        notes: what checking the data found, one sentence each.
        videos_are_public: whether the videos have the official names of a public data set. If not, they are taken
            for the user's own, whose names `surgenet_hf.privacy` keeps from being published.
        split_protocol: which videos belong to which split, in one short phrase for results files.
        background_id: the class that metrics may leave out as background. None: no class is declared as background,
            and all classes count as foreground. It is never inferred from an id or a name.
    """

    name: str
    labels: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    splits: DatasetDict
    ignore_index: int = IGNORE_INDEX
    notes: tuple[str, ...] = ()
    videos_are_public: bool = False
    split_protocol: str = "unknown"
    background_id: int | None = None


@dataclass(frozen=True)
class Sample:
    """One frame and its mask: paths of image files, or their encoded bytes."""

    image: Path | bytes
    mask: Path | bytes
    video: str
    frame: int


def palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct RGB colours for `num_classes` classes (at most 255): Okabe and Ito's eight, then darker and lighter."""
    shades = [
        tuple(round(value + (target - value) * share) for value in color)
        for target, share in ((0, 0.0), (0, 0.45), (255, 0.5), (0, 0.7), (255, 0.75))
        for color in _OKABE_ITO
    ]
    # Past what eyes can tell apart, colours need only differ: a fixed walk over the RGB cube (97 is prime to 255).
    rest = [(97 * i % 255, 53 * i % 255, 171 * i % 255) for i in range(1, 255)]
    return tuple(dict.fromkeys(shades + rest))[:num_classes]


def lookup_table(ids: Mapping[int, int]) -> np.ndarray:
    """The uint8 table (256,) that turns raw grey values into class ids: `ids[raw]`, ignore for all other values."""
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[list(ids)] = list(ids.values())
    return table


def raw_values(mask: PILImage.Image) -> np.ndarray:
    """Raw values (H, W), uint8, of a mask: grey, palette index, or the common value of three equal channels.

    Alpha is not looked at.

    Raises:
        ValueError: the channels differ, or a value is above 255.
    """
    bands = mask.split()
    if mask.mode in ("RGB", "RGBA") and len({band.tobytes() for band in bands[:3]}) > 1:
        raise ValueError(
            "has color channels that differ, but a mask must hold class ids (0, 1, 2, ... and 255 for ignore): "
            "the same value in every channel, or a single channel; turn colors into ids first"
        )
    values = np.asarray(bands[0])
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 255):
        raise ValueError(f"holds values from {values.min()} to {values.max()}, but class ids go from 0 to 255")
    return values.astype(np.uint8, copy=False)


@dataclass(frozen=True)
class DecodeRows(DecodeFrames):
    """Transform that decodes frames, and masks to class ids by a lookup table.

    A class and not a closure, so that workers can pickle it. Columns that were not selected are not decoded.
    """

    table: bytes

    def __call__(self, batch: dict) -> dict:
        batch = super().__call__(batch)
        if "mask" in batch:
            table = np.frombuffer(self.table, np.uint8)
            batch["mask"] = [table[read_mask(cell)] for cell in batch["mask"]]
        return batch


def build_splits(samples: Mapping[str, list[Sample]], table: np.ndarray) -> DatasetDict:
    """Turn `{split: samples}` into data sets of the schema.

    Args:
        samples: frames and masks by split.
        table: uint8 (256,), the class ids of raw mask values.

    Raises:
        ValueError: a video is in two splits, or two names of videos look the same.
    """
    check_no_overlap({split: {sample.video for sample in samples[split]} for split in samples})

    def rows(split: str) -> Dataset:
        columns = {
            "image": [to_cell(sample.image) for sample in samples[split]],
            "mask": [to_cell(sample.mask) for sample in samples[split]],
            "video": [sample.video for sample in samples[split]],
            "frame": [sample.frame for sample in samples[split]],
            "split": [split] * len(samples[split]),
        }
        return Dataset.from_dict(columns, features=FEATURES).with_transform(DecodeRows(table.tobytes()))

    return DatasetDict({split: rows(split) for split in samples})


def count_values(samples: list[Sample]) -> np.ndarray:
    """Read every frame and mask once, and count the raw values of each mask: (number of samples, 256).

    Raises:
        ValueError: a file that cannot be read, a mask of another size than its frame or one that holds no class ids;
            the message names the file.
    """
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        counts = list(tqdm(pool.imap(_check, samples), desc="Checking masks", total=len(samples), unit="mask"))
    return np.stack(counts)


def _check(sample: Sample) -> np.ndarray:
    size, values = frame_size(sample.image), read_mask(sample.mask)
    if values.shape != (size[1], size[0]):
        raise ValueError(
            f"{sample.mask} is {values.shape[1]}x{values.shape[0]} pixels, but its frame {sample.image} is "
            f"{size[0]}x{size[1]}: a mask must have the size of its frame; resize it with nearest-neighbour sampling"
        )
    return np.bincount(values.ravel(), minlength=256).astype(np.uint32)


def read_mask(source: Source, name: str | None = None) -> np.ndarray:
    """Read the raw values (H, W), uint8, of an upright mask; arguments and errors as in `images.read_frame`."""
    mask = read_upright(source, name)
    with naming(source, name):
        return raw_values(mask)


def require_folder(path: Path, expected: str) -> Path:
    """`path`, if it is a folder that is not empty.

    Raises:
        FileNotFoundError: it is not; the message begins with `expected` and says what is there instead.
        ValueError: its name is not valid Unicode.
    """
    require_unicode(path)
    if path.is_dir():
        if any(path.iterdir()):
            return path
        found = f"{path} is empty"
    elif path.exists():
        found = f"{path} is a file, not a folder"
    else:
        there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        holds = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") if there else "nothing"
        found = f"{path} does not exist ({path.parent} holds {holds})"
    raise FileNotFoundError(
        f"{expected[0].upper()}{expected[1:]}. Found: {found}. Give the folder in that layout as data_dir"
    )
