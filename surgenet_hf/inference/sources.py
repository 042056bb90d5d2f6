"""Inputs of predictions: images, videos, and rows of a dataset, and their division into parts.

A part is a fixed group of about `PART_FRAMES` frames: many images and short videos, or a section of a long video.
Batches never contain frames of two parts. The predictions of a part therefore do not depend on what ran before it, on
a restart, or on the number of processes.
"""

import glob
import os
import re
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from datasets import Image as ImageColumn
from PIL import Image

from ..data.images import Source as Content
from ..data.images import read_frame
from ..data.names import number_in_name, printable, require_unicode
from ..data.video import (
    VIDEO_SUFFIXES,
    Sampled,
    VideoFacts,
    expected_frames,
    sample_pictures,
    to_picture,
)
from ..errors import MissingFileError, UserError
from .hub_dataset import PREFIX, is_hub_dataset, load_hub_dataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PART_FRAMES = 1024
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")


@dataclass(frozen=True)
class Source:
    """Image, video, or row of a dataset.

    Attributes:
        name: path relative to the input, or to the common folder of several inputs, with "/". It is unique.
        content: path, or (dataset, number of the row).
        frames: number of frames, estimated from the header of a video.
        stamp: size in bytes and time of the last change in nanoseconds, or zeros.
    """

    name: str
    content: Path | tuple[Dataset, int]
    frames: int = 1
    stamp: tuple[int, int] = (0, 0)

    @property
    def is_video(self) -> bool:
        return isinstance(self.content, Path) and self.content.suffix.lower() in VIDEO_SUFFIXES

    @property
    def video(self) -> str:
        """Name of the video: the path without suffix, or the folder of an image."""
        return os.path.splitext(self.name)[0] if self.is_video else os.path.dirname(self.name)


@dataclass(frozen=True)
class Frame:
    """Frame before it is read.

    Attributes:
        source: its file.
        number: number of the picture in the video, or the number at the end of an image's name.
        seconds: time in the video. None for images.
        picture: PyAV frame of a video.
        lock: lock of this PyAV frame, which is in several batches if `--fps` exceeds the rate of the video.
    """

    source: Source
    number: int | None
    seconds: float | None = None
    picture: Any = None
    lock: Any = field(default_factory=threading.Lock, compare=False, repr=False)

    def read(self) -> Image.Image:
        """Return the upright RGB image.

        Raises:
            UserError: it cannot be read or used as a frame.
        """
        if self.picture is not None:
            with self.lock:
                return to_picture(self.picture, None)
        content: Content
        if isinstance(self.source.content, Path):
            content = self.source.content
        else:
            dataset, row = self.source.content
            content = dataset[row]["image"]
        return read_frame(content)


@dataclass(frozen=True)
class Report:
    """Message about a file. An error means that the file, or a part of it, has no predictions."""

    file: str
    message: str
    is_error: bool = False


@dataclass(frozen=True)
class Part:
    """Group of frames that are predicted together.

    Attributes:
        index: its number.
        sections: (source, first sample, end) of each file. The end is None for the rest of a video.
    """

    index: int
    sections: tuple[tuple[Source, int, int | None], ...]

    @property
    def frames(self) -> int:
        """Estimated number of frames."""
        return sum((source.frames if end is None else end) - start for source, start, end in self.sections)


def find_sources(source, frames_per_second: float | None = 1.0, exclude: Path | None = None) -> list[Source]:
    """Find the images and videos of an input, sorted by name.

    Args:
        source: image, video, folder, glob pattern, a list of these, "hf://datasets/OWNER/NAME", or a
            `datasets.Dataset` or `DatasetDict` with the column "image".
        frames_per_second: sampling rate of videos, to estimate the number of frames. None: every picture.
        exclude: folder that is left out, such as the output folder.

    Raises:
        MissingFileError: a file or folder does not exist, or a pattern matches nothing.
        UserError: a file is neither an image nor a video, or two files have the same name without suffix.
    """
    if isinstance(source, Dataset):
        return _rows_of(source)
    if isinstance(source, DatasetDict):
        found_rows = [row for split, rows in source.items() for row in _rows_of(rows, f"{split}/")]
        return sorted(found_rows, key=lambda each: each.name)
    items = [source] if isinstance(source, str | os.PathLike) else list(source)
    if len(items) == 1 and is_hub_dataset(items[0]):
        return find_sources(load_hub_dataset(str(items[0])))
    if scheme := next(filter(None, map(_SCHEME.match, map(str, items))), None):
        raise UserError(  # without the address, which may contain a password
            f"an input starts with {scheme[0]}; expected files, one dataset {PREFIX}OWNER/NAME, or one live input, "
            "tcp://HOST:PORT or rtsp://HOST/PATH, as text"
        )
    paths = [Path(item).expanduser() for item in items]
    if not paths:
        raise UserError("the input is empty; give at least one image, video, or folder")
    root = Path(os.path.commonpath([_root(path).absolute() for path in paths]))
    found: dict[str, Source] = {}
    for path in dict.fromkeys(chain.from_iterable(_files(path.absolute(), exclude) for path in paths)):
        status = require_unicode(path).stat()
        is_video = path.suffix.lower() in VIDEO_SUFFIXES
        frames = expected_frames(path, frames_per_second) if is_video else 1
        name = path.relative_to(root).as_posix()
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise UserError(
                f"{found[stem].content} and {path} have the same name without suffix, so their results would have the "
                "same name; rename one, or predict them separately"
            )
        found[stem] = Source(name, path, frames, (status.st_size, status.st_mtime_ns))
    videos = {stem: each for stem, each in found.items() if each.is_video}
    for each in found.values():
        if not each.is_video and (video := videos.get(os.path.dirname(each.name))):
            raise UserError(
                f"results of {video.content} would have the names of those of {each.content}, which is in a folder of "
                "the same name; rename one, or predict them separately"
            )
    return sorted(found.values(), key=lambda each: each.name)


def _rows_of(dataset: Dataset, prefix: str = "") -> list[Source]:
    if "image" not in dataset.column_names:
        raise UserError(f"the dataset has no column 'image'; it has {', '.join(dataset.column_names)}. Rename one")
    rows = dataset.with_format(None).select_columns(["image"]).cast_column("image", ImageColumn(decode=False))
    return [Source(f"{prefix}{i:08d}", (rows, i)) for i in range(len(rows))]


def _root(path: Path) -> Path:
    """Return the folder of an item of the input: the item itself, or the folder of a file or pattern."""
    if path.is_dir():
        return path
    if path.exists() or not glob.has_magic(str(path)):
        return path.parent
    return Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))])


def _files(path: Path, exclude: Path | None) -> Iterator[Path]:
    """Yield the images and videos of one item of the input."""
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if path.is_dir():
        count = 0
        for folder, folders, names in os.walk(path):
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".")
                and (exclude is None or Path(folder, name).absolute() != exclude.absolute())
            ]
            for name in names:
                if name.lower().endswith(known) and not name.startswith("."):
                    count += 1
                    yield Path(folder, name)
        if not count:
            raise MissingFileError(f"{path} contains no images or videos ({', '.join(known)}); check the path")
    elif path.exists():
        if path.suffix.lower() not in known:
            raise UserError(f"{path} is neither an image nor a video; expected {', '.join(known)}")
        yield path
    elif glob.has_magic(str(path)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        matches = [match for match in matches if match.is_file() and match.suffix.lower() in known]
        if not matches:
            raise MissingFileError(f"{path} matches no images or videos ({', '.join(known)}); check the pattern")
        yield from matches
    else:
        raise MissingFileError(f"there is no file or folder {path}; check the path")


def divide(sources: Sequence[Source]) -> list[list[Part]]:
    """Divide sources into jobs. A job is a list of parts that one process predicts in order.

    The sections of a long video are one job, because its decoder and the state of a phase model continue from one to
    the next. All other parts are jobs of their own.
    """
    jobs: list[list[tuple]] = []
    group: list[tuple] = []
    size = 0
    for source in sources:
        if source.frames > PART_FRAMES:
            starts = range(0, source.frames, PART_FRAMES)
            jobs.append([((source, start, start + PART_FRAMES),) for start in starts[:-1]])
            jobs[-1].append(((source, starts[-1], None),))  # the header may be wrong
            continue
        if group and size + source.frames > PART_FRAMES:
            jobs.append([tuple(group)])
            group, size = [], 0
        group.append((source, 0, None if source.is_video else 1))
        size += source.frames
    if group:
        jobs.append([tuple(group)])
    numbers = iter(range(sum(map(len, jobs))))
    return [[Part(next(numbers), sections) for sections in job] for job in jobs]


def share_jobs(jobs: list[list[Part]], process: int, processes: int) -> list[list[Part]]:
    """Return the jobs of one process. Each process has about the same number of frames."""
    loads, own = [0] * processes, []
    sizes = [sum(part.frames for part in job) for job in jobs]
    for i in sorted(range(len(jobs)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        loads[least] += sizes[i]
        if least == process:
            own.append(i)
    return [jobs[i] for i in sorted(own)]


@dataclass(frozen=True)
class Batch:
    """Frames that the network processes together, and reports on files at this place.

    Attributes:
        part: part of the frames.
        items: frames and reports, in order.
        is_last: whether the part ends with this batch.
    """

    part: Part
    items: list[Frame | Report]
    is_last: bool


def read_batches(
    jobs: Iterable[list[Part]], frames_per_second: float | None, batch_size: int, decoder_threads: int = 0
) -> Generator[Batch, None, None]:
    """Yield the frames of jobs in batches. Videos are decoded, images are not yet read.

    Errors of a video become reports, after its readable frames.

    Args:
        jobs: jobs of `divide`, possibly without their first parts.
        frames_per_second: sampling rate of videos. None: every picture.
        batch_size: number of frames per batch.
        decoder_threads: number of threads of the video decoder, or 0 for one per core.
    """
    for job in jobs:
        video: _Video | None = None
        for part in job:
            items: list[Frame | Report] = []
            size = 0
            for source, start, end in part.sections:
                frames: Iterable[Frame | Report]
                if source.is_video:
                    if video is None or video.source is not source:
                        video = _Video(source, frames_per_second, decoder_threads)
                    frames = video.section(start, end)
                else:
                    content = source.content
                    number = number_in_name(Path(source.name)) if isinstance(content, Path) else content[1]
                    frames = [Frame(source, number)]
                for item in frames:
                    if size == batch_size:  # not earlier, because the last batch must know that it is the last
                        yield Batch(part, items, False)
                        items, size = [], 0
                    items.append(item)
                    size += isinstance(item, Frame)
            yield Batch(part, items, True)


class _Video:
    """Video that is decoded section by section."""

    def __init__(self, source: Source, frames_per_second: float | None, threads: int):
        assert isinstance(source.content, Path)
        self.source, self.facts = source, VideoFacts()
        self.pictures = sample_pictures(source.content, frames_per_second, threads, facts=self.facts)
        self.waiting: Sampled | None = None
        self.last: Frame | None = None

    def section(self, start: int, end: int | None) -> Iterator[Frame | Report]:
        """Yield the frames of the samples from `start` to before `end`, and reports at the end of the video."""
        while True:
            try:
                picture = self.waiting or next(self.pictures, None)
            except UserError as error:
                yield Report(self.source.name, printable(str(error)), is_error=True)
                picture = None
            self.waiting = None
            if picture is None:
                yield from (Report(self.source.name, note) for note in self.facts.notes())
                self.facts = VideoFacts()  # reported once, if the video is shorter than its header says
                return
            if end is not None and picture.index >= end:
                self.waiting = picture
                return
            if picture.index >= start:
                same = self.last is not None and self.last.picture is picture.frame
                lock = self.last.lock if same and self.last else threading.Lock()
                self.last = Frame(self.source, picture.number, picture.seconds, picture.frame, lock)
                yield self.last
