"""Label files of whole videos, such as phases or tools, and their assignment to frames."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingFileError, UserError
from .base import Sample, Target
from .frame_folders import find_frames, find_videos
from .labels import read_lines
from .names import frame_number, named
from .splits import require_splits


@dataclass(frozen=True)
class LabelFile:
    """Text file with labels for every frame, or every `step`-th frame, of one video.

    Attributes:
        path: path of the file.
        frames: numbers of the labeled frames, evenly spaced.
        values: other columns of each row, as text.
    """

    path: Path
    frames: tuple[int, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def step(self) -> int:
        return self.frames[1] - self.frames[0] if len(self.frames) > 1 else 1

    def count(self, labels_per_second: float) -> int:
        """Return how many frames at 1 per second have a label.

        Args:
            labels_per_second: increase of the frame numbers per second of video.
        """
        return math.ceil(len(self.frames) * self.step / labels_per_second - 1e-6)

    def row(self, second: int, labels_per_second: float) -> tuple[str, ...]:
        """Return the values that apply at a given second of the video."""
        return self.values[int(second * labels_per_second / self.step + 1e-6)]


def read_label_file(path: Path, num_values: int = 1) -> LabelFile:
    """Read a label file with rows of the form `Frame Phase` or `Frame Tool Tool ...`.

    Tabs, commas, semicolons, or blanks separate the columns. A header line is optional.

    Raises:
        UserError: a row has the wrong number of columns, or a frame number is invalid. Also if the frame numbers are
            not evenly spaced or do not start at 0 or 1. Messages about a row name its line.
    """
    lines = read_lines(path)
    separator = next((mark for mark in "\t,;" if lines and mark in lines[-1]), None)
    frames, values = [], []
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.split(separator, num_values if separator is None else -1)]
        if number == 1 and not fields[0].isdecimal():
            continue  # a header
        if len(fields) != num_values + 1 or not fields[0].isdecimal():
            raise UserError(
                f"{path}, line {number}: expected a frame number and {num_values} value(s), found {line!r}"
            )
        frames.append(frame_number(fields[0], f"{path}, line {number}"))
        values.append(tuple(fields[1:]))
        if len(frames) > 2 and frames[-1] - frames[-2] != frames[1] - frames[0]:
            raise UserError(
                f"{path}, line {number}: frame {frames[-1]} follows {frames[-2]}, but the previous frames are "
                f"{frames[1] - frames[0]} apart; add the missing row or remove the duplicate"
            )
    if not frames:
        raise UserError(f"{path} contains no labels; expected rows of a frame number and {num_values} value(s)")
    if frames[0] not in (0, 1) or (len(frames) > 1 and frames[1] <= frames[0]):
        raise UserError(f"{path}: frame numbers must start at 0 or 1 and increase, found {named(map(str, frames), 2)}")
    return LabelFile(path, tuple(frames), tuple(values))


def match_labels(
    labels: LabelFile, num_frames: int, labels_per_second: Iterable[float]
) -> tuple[list[tuple[str, ...]], str | None]:
    """Assign labels to the seconds of a video.

    Videos and label files round their lengths differently, so a difference of one second is cut off at the end.

    Args:
        labels: label file of the video.
        num_frames: number of frames of the video at 1 per second.
        labels_per_second: possible increases of the frame numbers per second. The function uses the best fit.

    Returns:
        The values for each second, and a note if the lengths differ (else None).

    Raises:
        UserError: the lengths differ by more than a second.
    """
    rate = min(labels_per_second, key=lambda rate: abs(math.log(labels.count(rate) / num_frames)))
    labeled = labels.count(rate)
    if abs(labeled - num_frames) > 1:
        raise UserError(
            f"{labels.path} labels {labeled} s ({len(labels.frames)} rows, frame numbers at {rate:g} per second), "
            f"but there are {num_frames} frames at 1 per second. The lengths of a video and its labels may differ by "
            "at most 1 s; check that they belong together and are complete"
        )
    common = min(labeled, num_frames)
    note = None if labeled == num_frames else f"{num_frames} s of video but {labeled} s of labels"
    return [labels.row(second, rate) for second in range(common)], note


def class_id(value: str, labels: tuple[str, ...], first: int, path: Path) -> int:
    """Return the id of a class that is given by name, or by number with `first` as the lowest number.

    Raises:
        UserError: the value is neither a class name nor a valid number.
    """
    if value in labels:
        return labels.index(value)
    if value.isdecimal() and first <= frame_number(value, path) < first + len(labels):
        return int(value) - first
    raise UserError(
        f"{path}: {value!r} is not a class; expected one of {', '.join(labels)}, or a number from {first} to "
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
    """Return the labeled frames of each video that has frames or a video file.

    Args:
        labels: label file by video name.
        videos: video file by video name.
        frames_dir: folder with the frames. Missing frames are extracted into it.
        parse: function (values of a row, path of the label file) -> labels of a frame.
        rates: function: video name -> possible increases of its frame numbers per second.
        max_side: largest side of extracted frames in pixels, or None for no limit.

    Returns:
        The samples by video name, one per second, and a list of notes.
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
    return samples, [f"The last second was excluded because lengths differ: {named(cut)}."] if cut else []


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
    """Load the labeled frames of a public dataset.

    Args:
        root: folder of the dataset, with the subfolder `videos`.
        splits: names of the videos in each split.
        label_file: function: name of a video -> path of its label file.
        num_values: number of values in a row of a label file.
        parse: as in `labeled_videos`.
        rates: possible increases of the frame numbers per second.
        cache_dir: folder with the frames. Missing frames are extracted into it. None means `root/frames`.
        max_side: as in `labeled_videos`.
        layout: expected layout, for messages.

    Returns:
        The samples by split, the samples by video name, and a list of notes.

    Raises:
        MissingFileError: a video has no label file.
        UserError: `labeled_videos` raises it, or a split other than "test" has no frames.
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
    return by_split, samples, [count_note(samples, names), *notes]


def count_note(samples: Mapping[str, list[Sample]], videos: Collection[str], frames_per_second: int = 1) -> str:
    """Return a note on how many of a dataset's videos were found."""
    frames = f"{sum(map(len, samples.values()))} frames at {frames_per_second} per second"
    missing = [name for name in videos if name not in samples]
    if not missing:
        return f"Found all {len(videos)} videos, {frames}."
    return (
        f"Found {len(samples)} of {len(videos)} videos, {frames}. Results are not comparable with those on the full "
        f"dataset. Missing: {named(missing)}."
    )


def pair_frames(
    labels: Mapping[int, Target], frames: Mapping[int, Path], most: int, video: str, where: Path
) -> tuple[list[Sample[Target]], list[str]]:
    """Pair the labels of a video with its frames.

    Videos and labels round their lengths differently, so up to `most` labels at the end may lack a frame.

    Args:
        labels: label by frame number.
        frames: frame file by frame number. Frames without a label are left out.
        most: number of labels at the end that may lack a frame.
        video: name of the video.
        where: folder of the frames, for the message.

    Returns:
        The samples, and a list with the name of the video and the number of labels without a frame, if there are any.

    Raises:
        MissingFileError: other labels lack a frame.
    """
    missing = sorted(labels.keys() - frames.keys())
    if missing and (len(missing) > most or missing[0] < max(labels.keys() & frames.keys(), default=math.inf)):
        raise MissingFileError(
            f"{len(missing)} of {len(labels)} labeled frames of {video} are missing in {where}: frame number "
            f"{named(map(str, missing), 3)}; found {len(frames)} frames"
            f"{f', from {min(frames)} to {max(frames)}' if frames else ''}. Extract all frames of the video again"
        )
    samples = [Sample(frames[number], labels[number], video, number) for number in sorted(labels.keys() - missing)]
    return samples, [f"{video} ({len(missing)})"] if missing else []


def cut_note(cut: list[str]) -> list[str]:
    """Return a note on the videos of `pair_frames` whose last labels have no frame."""
    return [f"Labels at the end of a video that have no frame are excluded: {named(cut)}."] if cut else []


def absent_note(samples: Mapping[str, list[Sample]], labels: tuple[str, ...]) -> list[str]:
    """Return a note on the videos of single-label data in which at least one class never occurs."""
    absent = []
    for video, rows in samples.items():
        present = {row.target for row in rows}
        if len(present) < len(labels):
            absent.append(f"{video} ({', '.join(name for i, name in enumerate(labels) if i not in present)})")
    return [f"Videos in which at least one class never occurs: {named(absent)}."] if absent else []
