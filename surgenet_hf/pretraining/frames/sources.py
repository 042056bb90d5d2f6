"""Where frames lie: folders, zip and tar shards, parquet files, data sets of the Hub, synthetic scenes.

A source gives the encoded bytes of frame i, in any order and from any process.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from datasets import Dataset, Features, Image, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ...data.images import read_cell
from ...data.sets import synthetic
from .files import FolderSource, ShardSource, find_files

IN_FOLDERS = ("folder", "shards", "parquet")  # the kinds of data set that need a data_dir

_ROWS = 1000  # of a table are taken as one shard, as where its files begin and end is not known
_SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}


class FrameSource(Protocol):
    """Frames by index. Can be pickled; safe to use after a fork."""

    name: str
    identity: str  # of what is known without reading the frames, wherever the data is stored

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded picture. OSError: it is gone or damaged."""

    def frame_name(self, index: int) -> str:
        """Where the frame is, for messages."""

    def shard_of(self, index: int) -> range:
        """All frames of the same folder or file."""


@dataclass
class FrameArguments:
    """Which frames are trained on."""

    dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One or several: folder (images below data_dir), shards (zip and tar), parquet, synthetic, or "
            "what datasets.load_dataset takes: a name on the Hub (name:config) or a local path."
        },
    )
    data_dir: list[str] | None = field(
        default=None,
        metadata={
            "help": "Their folders: one for each, or for each folder, shards and parquet; or one for all these."
        },
    )
    dataset_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Share of each in an epoch, in any unit; left out: every frame of all of them once."},
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of parquet files and Hub data sets."})
    image_column: str | None = field(
        default=None,
        metadata={"help": "Their column with the frames, where there are several; of shards, the suffix, as jpg."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read in order, through a shuffle buffer; resuming reads all again."}
    )
    shuffle_buffer: int = field(default=1000, metadata={"help": "Frames in that buffer, for each worker."})
    frames_per_epoch: int | None = field(
        default=None, metadata={"help": "Length of an epoch; left out: all frames. Streams need it."}
    )
    max_bad_fraction: float = field(
        default=0.01, metadata={"help": "Stop when more than this share of the frames cannot be decoded."}
    )

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("--dataset is missing")
        if self.dataset_weights is not None:
            if len(self.dataset_weights) != len(self.dataset):
                raise ValueError(f"{len(self.dataset_weights)} --dataset_weights for {len(self.dataset)} data sets")
            if not all(0 < weight < float("inf") for weight in self.dataset_weights):
                raise ValueError(f"--dataset_weights must be positive, got {self.dataset_weights}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"--max_bad_fraction must be in [0, 1], got {self.max_bad_fraction}")
        for name in ("frames_per_epoch", "shuffle_buffer"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.streaming and self.frames_per_epoch is None:
            raise ValueError("--streaming needs --frames_per_epoch: how many frames a stream has is not known")
        if self.streaming and len(self.dataset) > 1 and self.dataset_weights is None:
            raise ValueError("--streaming of several data sets needs --dataset_weights: their sizes are not known")
        self.data_dirs()

    def data_dirs(self) -> list[str | None]:
        """The folder of each data set, None where it has none."""
        given = self.data_dir or []
        if len(given) == len(self.dataset):
            return list(given)
        in_folders = [dataset in IN_FOLDERS for dataset in self.dataset]
        needed = sum(in_folders)
        if len(given) not in {needed, min(needed, 1)}:
            raise ValueError(
                f"{len(given)} --data_dir for {len(self.dataset)} data sets, of which {needed} are in a folder: give "
                "one for each data set, or for each that is in a folder, or one that these share"
            )
        folders = iter(given * needed if len(given) == 1 else given)
        return [next(folders) if needs else None for needs in in_folders]


def open_sources(args: FrameArguments) -> list[FrameSource]:
    """The source of each data set; see `open_source`."""
    return [
        open_source(dataset, data_dir, args.dataset_split, args.image_column)
        for dataset, data_dir in zip(args.dataset, args.data_dirs(), strict=True)
    ]


def open_source(
    dataset: str, data_dir: str | None = None, split: str = "train", image_column: str | None = None
) -> FrameSource:
    """The source of a data set.

    Args:
        dataset: "folder" (every image below `data_dir`), "shards" (images in the *.zip and *.tar there), "parquet"
            (the *.parquet there), "synthetic" ("synthetic:50": 50 videos of 12 frames), or else whatever
            `datasets.load_dataset` takes: a name on the Hub ("name:config" with a configuration) or a local path.
        data_dir: a folder; for shards and parquet also a single file.
        split: of parquet files and Hub data sets.
        image_column: of those, where there are several columns with images; of shards, the suffix, such as "jpg".

    Raises:
        FileNotFoundError: no such folder or data set, or no frames in it; the message says what there is.
        ValueError: a broken, compressed or encrypted shard, no such split, no column or several ones with images.
    """
    if dataset in IN_FOLDERS and data_dir is None:
        raise ValueError(f"--dataset {dataset} needs --data_dir, the folder that it is in")
    if dataset == "folder":
        return FolderSource(data_dir)
    if dataset == "shards":
        return ShardSource(data_dir, image_column)
    if match := re.fullmatch(r"synthetic(?::(\d+))?", dataset):
        data = synthetic.load(data_dir, **({"num_videos": int(match[1])} if match[1] else {}))
        return TableSource(dataset, data.splits["train"].with_format(None), "image")
    return TableSource(dataset, load_table(dataset, data_dir, split), image_column)


class TableSource:
    """The images in a column of a `datasets.Dataset`, whose Arrow files are mapped into memory.

    A shard is a thousand rows.
    """

    def __init__(self, name: str, table: Dataset, image_column: str | None = None):
        column = find_image_column(name, table.features, image_column)
        table = table.select_columns([column])
        is_image = isinstance(table.features[column], Image)
        self.name = name
        self.identity = f"{Path(name).name}, column {column}"
        self._table = table.cast_column(column, Image(decode=False)) if is_image else table
        self._column = column
        if not len(table):
            raise FileNotFoundError(f"the data set {name} has no rows")

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> bytes:
        return read_cell(self._table[index][self._column])

    def frame_name(self, index: int) -> str:
        cell = self._table[index][self._column]
        path = cell.get("path") if isinstance(cell, dict) else None
        return f"{self.name}, row {index}" + (f" ({path})" if path else "")

    def shard_of(self, index: int) -> range:
        first = index - index % _ROWS
        return range(first, min(first + _ROWS, len(self)))


def load_table(dataset: str, data_dir: str | None, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """`datasets.load_dataset` for "parquet", "webdataset" (tar files) or a name; for errors see `open_source`."""
    if dataset in ("parquet", "webdataset"):
        files = _files_of_split(data_dir, (".parquet",) if dataset == "parquet" else (".tar",), split)
        options = {"path": dataset, "data_files": {split.partition("[")[0]: files}}
    else:
        name, _, config = (dataset, "", "") if Path(dataset).exists() else dataset.partition(":")
        options = {"path": name, "name": config or None, "data_dir": data_dir}
    try:
        return load_dataset(**options, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{dataset!r} is no data set that can be found ({error}); expected {', '.join(IN_FOLDERS)}, synthetic, a "
            "local path, or a name on the Hub"
        ) from error
    except (ValueError, DatasetGenerationError) as error:
        raise ValueError(f"the data set {dataset!r} cannot be read: {error.__cause__ or error}") from error


def find_image_column(name: str, features: Features | None, image_column: str | None = None) -> str:
    """The one column of type Image, or else the one with bytes; ValueError where there is none or there are several.

    Args:
        name: of the data set, for messages.
        features: its columns.
        image_column: the one to take.
    """
    if features is None:
        raise ValueError(f"the data set {name} does not say what its columns are; stream parquet files of it instead")
    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    images = images or [column for column, kind in features.items() if _holds_bytes(kind)]
    if image_column is not None:
        if image_column not in features:
            raise ValueError(f"the data set {name} has no column {image_column!r}; it has {', '.join(features)}")
        if image_column not in images and not _holds_bytes(features[image_column]):
            raise ValueError(f"column {image_column!r} of {name} holds no images but {features[image_column]}")
        return image_column
    if len(images) != 1:
        found = f"the columns {', '.join(images)} with images; choose one" if images else "no column with images"
        kinds = ", ".join(f"{column}: {getattr(kind, 'dtype', kind)}" for column, kind in features.items())
        raise ValueError(f"the data set {name} has {found} (--image_column); all columns: {kinds}")
    return images[0]


def _files_of_split(data_dir: str, suffixes: tuple[str, ...], split: str) -> list[str]:
    """The files whose names say that they are of a split; all, for "train", if none names any."""
    paths = find_files(data_dir, suffixes)
    words = [set(re.split(r"[-_./\\]", str(path.relative_to(data_dir)).lower())) for path in paths]
    base = split.partition("[")[0]
    chosen = [str(path) for path, own in zip(paths, words, strict=True) if base in own]
    found = set().union(*words) & _SPLITS
    if not chosen and (found or base != "train"):
        raise ValueError(
            f"no file in {data_dir} is of the split {base!r} by its name; found {', '.join(sorted(found)) or 'none'} "
            "(--dataset_split)"
        )
    return chosen or [str(path) for path in paths]


def _holds_bytes(kind) -> bool:
    """Whether a column holds bytes, or {"bytes", "path"} as `datasets` stores images."""
    kind = kind.get("bytes") if isinstance(kind, dict) else kind
    return isinstance(kind, Image) or (isinstance(kind, Value) and kind.dtype in ("binary", "large_binary"))
