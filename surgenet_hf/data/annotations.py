"""Label files of whole videos, such as phases or tools, and how they are matched with the frames."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingFileError, UserError
from .base import Sample
from .frame_folders import find_frames, find_videos
from .labels import read_lines
from .names import frame_number, named
from .splits import require_splits


@dataclass(frozen=True)
class LabelFile:
    """A text file with labels for the frames of one video: every frame, or every `step`-th.

    Attributes:
        frames: numbers of the labeled frames, evenly spaced.
        values: the other columns of each row, as text.
    """

    path: Path
    frames: tuple[int, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def step(self) -> int:
        return self.frames[1] - self.frames[0] if len(self.frames) > 1 else 1

    def count(self, labels_per_second: float) -> int:
        """Return how many frames at 1 per second have a label, if frame numbers advance by `labels_per_second`."""
        return math.ceil(len(self.frames) * self.step / labels_per_second - 1e-6)

    def row(self, second: int, labels_per_second: float) -> tuple[str, ...]:
        """Return the values that apply at a time."""
        return self.values[int(second * labels_per_second / self.step + 1e-6)]


def read_label_file(path: Path, num_values: int = 1) -> LabelFile:
    """Read `Frame Phase` or `Frame Tool Tool ...`: separated by tabs, commas, semicolons or blanks, header or none.

    Raises:
        UserError: another number of columns, a frame number that is none, numbers that are not evenly spaced or do
            not begin with 0 or 1; the message names the line.
    """
    lines = read_lines(path)
    separator = next((mark for mark in "\t,;" if lines and mark in lines[-1]), None)
    frames, values = [], []
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.split(separator, num_values if separator is None else -1)]
        if number == 1 and not fields[0].isdecimal():
            continue  # the header
        if len(fields) != num_values + 1 or not fields[0].isdecimal():
            raise UserError(
                f"{path}, line {number}: expected a frame number and {num_values} value(s), found {line!r}"
            )
        frames.append(frame_number(fields[0], f"{path}, line {number}"))
        values.append(tuple(fields[1:]))
        if len(frames) > 2 and frames[-1] - frames[-2] != frames[1] - frames[0]:
            raise UserError(
                f"{path}, line {number}: frame {frames[-1]} follows {frames[-2]}, but the rows before are "
                f"{frames[1] - frames[0]} apart; a row is missing or doubled"
            )
    if not frames:
        raise UserError(f"{path} holds no labels; expected rows of a frame number and {num_values} value(s)")
    if frames[0] not in (0, 1) or (len(frames) > 1 and frames[1] <= frames[0]):
        raise UserError(f"{path}: frame numbers must ascend from 0 or 1, found {named(map(str, frames), 2)}")
    return LabelFile(path, tuple(frames), tuple(values))


def match_labels(
    labels: LabelFile, num_frames: int, labels_per_second: Iterable[float]
) -> tuple[list[tuple[str, ...]], str | None]:
    """Return the values for each second of a video with `num_frames` frames, and a note if lengths differ.

    One second more or less is cut off at the end: videos and labels are rounded differently. `labels_per_second` are
    the rates that the frame numbers may have; the one that fits best is taken.

    Raises:
        UserError: the lengths differ by more than a second.
    """
    rate = min(labels_per_second, key=lambda rate: abs(math.log(labels.count(rate) / num_frames)))
    labeled = labels.count(rate)
    if abs(labeled - num_frames) > 1:
        raise UserError(
            f"{labels.path} labels {labeled} s ({len(labels.frames)} rows, frame numbers at {rate:g} per second), "
            f"but there are {num_frames} frames at 1 per second: the video and its labels must be of the same length, "
            "to a second; one of them belongs to another video or is incomplete"
        )
    common = min(labeled, num_frames)
    note = None if labeled == num_frames else f"{num_frames} s of video but {labeled} s of labels"
    return [labels.row(second, rate) for second in range(common)], note


def class_id(value: str, labels: tuple[str, ...], first: int, path: Path) -> int:
    """Return a class by its name, or by its number if counting starts with `first`."""
    if value in labels:
        return labels.index(value)
    if value.isdecimal() and first <= frame_number(value, path) < first + len(labels):
        return int(value) - first
    raise UserError(
        f"{path}: {value!r} is no class; expected one of {', '.join(labels)}, or a number from {first} to "
        f"{first + len(labels) - 1}"
    )


def labeled_videos(
    labels: Mapping[str, LabelFile],
    videos: Mapping[str, Path],
    frames_dir: Path,
    parse: Callable[[tuple[str, ...], Path], int | tuple[float, ...]],
    rates: Callable[[str], Iterable[float]],
    max_side: int | None,
) -> tuple[dict[str, list[Sample]], list[str]]:
    """Return the labeled frames, one per second, of each video that has frames or a file, and notes.

    Args:
        labels, videos: the label file and the video file of each name.
        frames_dir: where frames are, or are extracted to.
        parse: (values of a row, path of the label file) -> the labels of a frame.
        rates: name -> how fast its frame numbers may advance, per second.
        max_side: of frames that are extracted.
    """
    samples, cut = {}, []
    for name, paths in find_frames(list(labels), videos, frames_dir, max_side).items():
        parsed = {values: parse(values, labels[name].path) for values in dict.fromkeys(labels[name].values)}
        rows, note = match_labels(labels[name], len(paths), rates(name))
        samples[name] = [
            Sample(path, parsed[values], name, second)
            for second, (path, values) in enumerate(zip(paths, rows, strict=False))
        ]
        if note:
            cut.append(f"{name} ({note})")
    return samples, [f"The last second was left out, as lengths differ: {named(cut)}."] if cut else []


def official_videos(
    root: Path,
    splits: Mapping[str, Collection[str]],
    label_file: Callable[[str], Path],
    num_values: int,
    parse: Callable[[tuple[str, ...], Path], int | tuple[float, ...]],
    rates: Collection[float],
    cache_dir: str | Path | None,
    max_side: int | None,
    layout: str,
) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]], list[str]]:
    """Return the labeled frames of a public dataset by split and by video, and notes.

    Args:
        root: folder of the dataset, with `videos`.
        splits: names of the videos of each split.
        label_file: function: name of a video -> its label file.
        num_values: number of values in a row of a label file.
        parse, max_side: as in `labeled_videos`.
        rates: how fast frame numbers may advance, per second.
        cache_dir: where frames are, or are extracted to; `root/frames` if None.
        layout: expected layout, for messages.

    Raises:
        MissingFileError: a video has no labels.
        UserError: as `labeled_videos`, or a split other than test has no frames.
    """
    frames_dir = Path(cache_dir).absolute() if cache_dir is not None else root / "frames"
    videos, names = find_videos(root / "videos"), [name for part in splits.values() for name in part]
    labels = {}
    for name in names:
        path = label_file(name)
        if path.exists():
            labels[name] = read_label_file(path, num_values)
        elif name in videos or (frames_dir / name).is_dir():
            raise MissingFileError(f"video {name} has no labels: expected {path}; {layout}")
    samples, notes = labeled_videos(labels, videos, frames_dir, parse, lambda name: rates, max_side)
    by_split = {split: [row for name in part for row in samples.get(name, [])] for split, part in splits.items()}
    require_splits(by_split, [split for split in splits if split != "test"], root, layout)
    return by_split, samples, [_count_note(samples, names), *notes]


def _count_note(samples: Mapping[str, list[Sample]], videos: Collection[str]) -> str:
    """Return a note on how many of the videos of a dataset were found."""
    frames = sum(map(len, samples.values()))
    missing = [name for name in videos if name not in samples]
    if not missing:
        return f"Found all {len(videos)} videos, {frames} frames at 1 per second."
    return (
        f"Found {len(samples)} of {len(videos)} videos, {frames} frames at 1 per second; results are not those of the "
        f"full set. Missing: {named(missing)}."
    )


def absent_note(samples: Mapping[str, list[Sample]], labels: tuple[str, ...]) -> list[str]:
    """Return a note on the videos in which some class of single-label data never appears."""
    absent = []
    for video, rows in samples.items():
        present = {row.target for row in rows}
        if len(present) < len(labels):
            absent.append(f"{video} ({', '.join(name for i, name in enumerate(labels) if i not in present)})")
    return [f"Videos without some class: {named(absent)}."] if absent else []
