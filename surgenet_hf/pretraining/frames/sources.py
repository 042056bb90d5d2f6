"""Sources of frames: folders, zip and tar shards, parquet files, Hub datasets, and synthetic scenes.

A source returns the encoded bytes of any frame by its index, in any process.
"""

import re
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, Features, Image, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ...data.images import read_cell
from ...data.sets import synthetic
from ...errors import MissingFileError, UserError
from ..arguments import IN_FOLDERS, FrameArguments
from .files import FolderSource, ShardSource, find_files

_ROWS = 1000  # rows of a table that count as one shard, because file boundaries are unknown
_SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}


class FrameSource(Protocol):
    """Frames by index. A source can be pickled, and used after a fork."""

    name: str
    identity: str  # digest of what is known without reading the frames; independent of the location of the data

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            OSError: the image is missing or damaged.
        """

    def frame_name(self, index: int) -> str:
        """Return the location of the frame, for messages."""

    def shard_of(self, index: int) -> range:
        """Return the indices of all frames of the same folder or file."""


def open_sources(args: FrameArguments) -> list[FrameSource]:
    """Open the source of each dataset. See `open_source`."""
    return [
        open_source(dataset, data_dir, args.dataset_split, args.image_column)
        for dataset, data_dir in zip(args.dataset, args.data_dirs(), strict=True)
    ]


def open_source(
    dataset: str, data_dir: str | None = None, split: str = "train", image_column: str | None = None
) -> FrameSource:
    """Open the source of a dataset.

    Args:
        dataset: one of the following.

            - "folder": every image below `data_dir`.
            - "shards": images in the *.zip and *.tar files below `data_dir`.
            - "parquet": the *.parquet files below `data_dir`.
            - "synthetic": synthetic scenes. "synthetic:50" has 50 videos of 12 frames.
            - An argument of `datasets.load_dataset`: a name on the Hub ("name:config" with a configuration) or a local
              path.
        data_dir: a folder. For shards and parquet, also a single file.
        split: split of parquet files and Hub datasets.
        image_column: column with the images, if there are several. For shards: their suffix, such as "jpg".

    Raises:
        MissingFileError: the folder or dataset does not exist or has no frames. The message lists what was found.
        UserError: a shard is damaged, compressed, or encrypted, or the split does not exist. Also raised without
            `image_column` if several columns have images, and for a column without images.
    """
    if dataset in IN_FOLDERS and data_dir is None:
        raise UserError(f"--dataset {dataset} needs --data_dir, the folder that contains it")
    if dataset == "folder":
        return FolderSource(data_dir)
    if dataset == "shards":
        return ShardSource(data_dir, image_column)
    if match := re.fullmatch(r"synthetic(?::(\d+))?", dataset):
        data = synthetic.load(data_dir, **({"num_videos": int(match[1])} if match[1] else {}))
        return TableSource(dataset, data.splits["train"].with_format(None), "image")
    return TableSource(dataset, load_table(dataset, data_dir, split), image_column)


class TableSource:
    """Images in a column of a `datasets.Dataset`, whose Arrow files are memory-mapped.

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
            raise MissingFileError(f"the dataset {name} has no rows")

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
    """Call `datasets.load_dataset` for "parquet", "webdataset" (tar files), or a name.

    For errors, see `open_source`.
    """
    if dataset in ("parquet", "webdataset"):
        files = _files_of_split(data_dir, (".parquet",) if dataset == "parquet" else (".tar",), split)
        options: dict[str, Any] = {"path": dataset, "data_files": {split.partition("[")[0]: files}}
    else:
        name, _, config = (dataset, "", "") if Path(dataset).exists() else dataset.partition(":")
        options = {"path": name, "name": config or None, "data_dir": data_dir}
    try:
        return load_dataset(**options, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise MissingFileError(
            f"{dataset!r} cannot be found ({error}); expected {', '.join(IN_FOLDERS)}, synthetic, a "
            "local path, or a name on the Hub"
        ) from error
    except (ValueError, DatasetGenerationError) as error:
        raise UserError(f"the dataset {dataset!r} cannot be read: {error.__cause__ or error}") from error


def find_image_column(name: str, features: Features | None, image_column: str | None = None) -> str:
    """Return the only column of type Image, or else the only column with bytes.

    Args:
        name: name of the dataset, for messages.
        features: columns of the dataset.
        image_column: the column to return, if given.

    Raises:
        UserError: there is no such column, or there are several.
    """
    if features is None:
        raise UserError(f"the dataset {name} does not declare its columns; stream its parquet files instead")
    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    images = images or [column for column, kind in features.items() if _holds_bytes(kind)]
    if image_column is not None:
        if image_column not in features:
            raise UserError(f"the dataset {name} has no column {image_column!r}; it has {', '.join(features)}")
        if image_column not in images and not _holds_bytes(features[image_column]):
            raise UserError(f"column {image_column!r} of {name} contains {features[image_column]}; expected images")
        return image_column
    if len(images) != 1:
        found = f"the image columns {', '.join(images)}; choose one" if images else "no image column"
        kinds = ", ".join(f"{column}: {getattr(kind, 'dtype', kind)}" for column, kind in features.items())
        raise UserError(f"the dataset {name} has {found} (--image_column); all columns: {kinds}")
    return images[0]


def _files_of_split(data_dir: str, suffixes: tuple[str, ...], split: str) -> list[str]:
    """Return the files whose names contain a split. For "train": all files, if no name contains any split."""
    paths = find_files(data_dir, suffixes)
    words = [set(re.split(r"[-_./\\]", str(path.relative_to(data_dir)).lower())) for path in paths]
    base = split.partition("[")[0]
    chosen = [str(path) for path, own in zip(paths, words, strict=True) if base in own]
    found = set().union(*words) & _SPLITS
    if not chosen and (found or base != "train"):
        raise UserError(
            f"no file name in {data_dir} contains the split {base!r}; found splits: "
            f"{', '.join(sorted(found)) or 'none'} (--dataset_split)"
        )
    return chosen or [str(path) for path in paths]


def _holds_bytes(kind) -> bool:
    """Return whether a column contains bytes, or {"bytes", "path"} as `datasets` stores images."""
    kind = kind.get("bytes") if isinstance(kind, dict) else kind
    return isinstance(kind, Image) or (isinstance(kind, Value) and kind.dtype in ("binary", "large_binary"))
