"""The one schema of frame labels (classes, criteria, tools, phases), and what the loaders share: checks, label files.

Splits are by video, always. Neighbouring frames of a video are nearly the same picture, so a model that is tested on
frames between those that it was trained on shows how well it remembers, not how well it recognises.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value
from tqdm import tqdm

from .images import DecodeFrames, frame_size, to_cell
from .labels import read_lines
from .names import WHY_BY_VIDEO, check_no_overlap, frame_number, named
from .video import find_frames

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
BY_NAME = "by video name, one fifth validates"  # the split protocol of `split_by_name`


@dataclass(frozen=True)
class ClassificationData:
    """Frames with labels, split by video.

    A row of a split is `{"image": PIL RGB image, "labels": int or float32 array (num_labels,), "video": str,
    "frame": int, "split": str}`; it is decoded when it is indexed. Single-label data has an int, the class;
    multi-label data an array of targets from 0 to 1, which may be soft (the mean of several raters). The rows of a
    video are consecutive and in the order of time. Indexing by a column name decodes every image too;
    `splits[...].select_columns(["labels", "video"])[:]` does not.

    Attributes:
        name: what the data set is called in `load_classification`.
        labels: names of the classes, in the order of their ids or of the array.
        colors: one RGB colour (0 to 255) for each class, for figures.
        splits: "train", "validation" and, where the data has it, "test".
        problem_type: "single_label_classification" or "multi_label_classification", as in a model's config.
        frames_per_second: of the consecutive rows of a video, for phase recognition; None where they are not
            regular.
        notes: what checking the data found, one sentence each.
        videos_are_public: whether the videos have the official names of a public data set. If not, they are taken
            for the user's own, whose names `surgenet_hf.privacy` keeps from being published.
        split_protocol: which videos belong to which split, in one short phrase for results files.
    """

    name: str
    labels: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    splits: DatasetDict
    problem_type: str
    frames_per_second: float | None = None
    notes: tuple[str, ...] = ()
    videos_are_public: bool = False
    split_protocol: str = "unknown"


@dataclass(frozen=True)
class FrameSample:
    """One frame and its labels: the path of an image file or its encoded bytes; a class, or a target for each."""

    image: Path | bytes
    labels: int | tuple[float, ...]
    video: str
    frame: int


class _DecodeRows(DecodeFrames):
    """Transform that decodes frames and turns targets into arrays."""

    def __call__(self, batch: dict) -> dict:
        batch = super().__call__(batch)
        if "labels" in batch:  # not after select_columns without it
            batch["labels"] = [np.asarray(labels, np.float32) for labels in batch["labels"]]
        return batch


def build_splits(samples: Mapping[str, list[FrameSample]], num_labels: int, problem_type: str) -> DatasetDict:
    """`{split: samples}` to data sets of the schema; splits without samples are left out.

    Videos keep the order in which they first appear, their frames are put in the order of their numbers.

    Raises:
        ValueError: a video in two splits, two names of videos that look the same, or two frames of a video with one
            number.
    """
    check_no_overlap({split: {sample.video for sample in samples[split]} for split in samples})
    multi = problem_type == MULTI
    features = Features(
        {
            "image": Image(decode=False),  # the transform decodes
            "labels": Sequence(Value("float32"), length=num_labels) if multi else Value("int64"),
            "video": Value("string"),
            "frame": Value("int64"),
            "split": Value("string"),
        }
    )

    def rows(split: str) -> Dataset:
        ordered = _in_order(samples[split])
        columns = {
            "image": [to_cell(sample.image) for sample in ordered],
            "labels": [sample.labels for sample in ordered],
            "video": [sample.video for sample in ordered],
            "frame": [sample.frame for sample in ordered],
            "split": [split] * len(ordered),
        }
        decode = _DecodeRows() if multi else DecodeFrames()
        return Dataset.from_dict(columns, features=features).with_transform(decode)

    return DatasetDict({split: rows(split) for split in samples if samples[split]})


def _in_order(samples: list[FrameSample]) -> list[FrameSample]:
    order = {video: i for i, video in enumerate(dict.fromkeys(sample.video for sample in samples))}
    ordered = sorted(samples, key=lambda sample: (order[sample.video], sample.frame))
    for first, second in pairwise(ordered):
        if (first.video, first.frame) == (second.video, second.frame):
            raise ValueError(
                f"video {first.video!r} has two frames with the number {first.frame} ({_source(first)} and "
                f"{_source(second)}); remove one, or number them by time"
            )
    return ordered


def _source(sample: FrameSample) -> str:
    return "bytes" if isinstance(sample.image, bytes) else str(sample.image)


def require_splits(samples: Mapping[str, list], needed: Iterable[str], where: Path, expected: str) -> None:
    """Raise ValueError if a split that is needed has no frames."""
    for split in needed:
        if not samples.get(split):
            raise ValueError(f"{where} has no frames for the split {split!r}; {expected}")


def choose_split(splits: Mapping[str, Mapping], name: str) -> Mapping:
    """`splits[name]`; the error of an unknown name also says why there are no random ones."""
    if name not in splits:
        raise ValueError(f"unknown split {name!r}; the known ones are {', '.join(splits)}. No others: {WHY_BY_VIDEO}")
    return splits[name]


def split_by_name(videos: Iterable[str], where: Path) -> dict[str, str]:
    """`{video: split}`: a fifth of the videos, at least one, validate; which ones is a function of their names alone.

    By SHA-256 of the name, as in `folder`: the same on every machine.
    """
    by_hash = sorted(set(videos), key=lambda video: hashlib.sha256(video.encode()).digest())
    if len(by_hash) < 2:
        raise ValueError(
            f"{where} holds a single video ({', '.join(by_hash) or 'none'}), but one to train on and another to "
            f"validate on are needed; {WHY_BY_VIDEO}"
        )
    number = max(1, round(len(by_hash) / 5))
    return {video: "validation" if i < number else "train" for i, video in enumerate(by_hash)}


def check_images(paths: list[Path]) -> None:
    """Read every frame once, in low resolution; errors as in `images.read_frame`."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        sizes = pool.imap(frame_size, paths)
        for _ in tqdm(sizes, desc="Checking frames", total=len(paths), unit="frame"):
            pass


@dataclass(frozen=True)
class LabelFile:
    """A text file with labels for the frames of one video: every frame, or every `step`-th.

    Attributes:
        frames: numbers of the labelled frames, evenly spaced.
        values: the other columns of each row, as text.
    """

    path: Path
    frames: tuple[int, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def step(self) -> int:
        return self.frames[1] - self.frames[0] if len(self.frames) > 1 else 1

    def count(self, labels_per_second: float) -> int:
        """How many frames at 1 per second have a label, if frame numbers advance by `labels_per_second`."""
        return math.ceil(len(self.frames) * self.step / labels_per_second - 1e-6)

    def row(self, second: int, labels_per_second: float) -> tuple[str, ...]:
        """The values in force at a time."""
        return self.values[int(second * labels_per_second / self.step + 1e-6)]


def read_label_file(path: Path, num_values: int = 1) -> LabelFile:
    """Read `Frame Phase` or `Frame Tool Tool ...`: separated by tabs, commas, semicolons or blanks, header or none.

    Raises:
        ValueError: another number of columns, a frame number that is none, numbers that are not evenly spaced or do
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
            raise ValueError(
                f"{path}, line {number}: expected a frame number and {num_values} value(s), found {line!r}"
            )
        frames.append(frame_number(fields[0], f"{path}, line {number}"))
        values.append(tuple(fields[1:]))
        if len(frames) > 2 and frames[-1] - frames[-2] != frames[1] - frames[0]:
            raise ValueError(
                f"{path}, line {number}: frame {frames[-1]} follows {frames[-2]}, but the rows before are "
                f"{frames[1] - frames[0]} apart; a row is missing or doubled"
            )
    if not frames:
        raise ValueError(f"{path} holds no labels; expected rows of a frame number and {num_values} value(s)")
    if frames[0] not in (0, 1) or (len(frames) > 1 and frames[1] <= frames[0]):
        raise ValueError(f"{path}: frame numbers must ascend from 0 or 1, found {named(map(str, frames), 2)}")
    return LabelFile(path, tuple(frames), tuple(values))


def match_labels(
    labels: LabelFile, num_frames: int, labels_per_second: Iterable[float]
) -> tuple[list[tuple[str, ...]], str | None]:
    """The values for each second of a video of `num_frames` frames (1 per second), and a note if lengths differ.

    One second more or less is cut off at the end: videos and labels are rounded differently. `labels_per_second` are
    the rates that the frame numbers may have; the one that fits best is taken.

    Raises:
        ValueError: the lengths differ by more than a second.
    """
    rate = min(labels_per_second, key=lambda rate: abs(math.log(labels.count(rate) / num_frames)))
    labelled = labels.count(rate)
    if abs(labelled - num_frames) > 1:
        raise ValueError(
            f"{labels.path} labels {labelled} s ({len(labels.frames)} rows, frame numbers at {rate:g} per second), "
            f"but there are {num_frames} frames at 1 per second: the video and its labels must be of the same length, "
            "to a second; one of them belongs to another video or is incomplete"
        )
    common = min(labelled, num_frames)
    note = None if labelled == num_frames else f"{num_frames} s of video but {labelled} s of labels"
    return [labels.row(second, rate) for second in range(common)], note


def class_id(value: str, labels: tuple[str, ...], first: int, path: Path) -> int:
    """A class by its name, or by its number if counting starts with `first`."""
    if value in labels:
        return labels.index(value)
    if value.isdecimal() and first <= frame_number(value, path) < first + len(labels):
        return int(value) - first
    raise ValueError(
        f"{path}: {value!r} is no class; expected one of {', '.join(labels)}, or a number from {first} to "
        f"{first + len(labels) - 1}"
    )


def labelled_videos(
    labels: Mapping[str, LabelFile],
    videos: Mapping[str, Path],
    frames_dir: Path,
    parse: Callable[[tuple[str, ...], Path], int | tuple[float, ...]],
    rates: Callable[[str], Iterable[float]],
    max_side: int | None,
) -> tuple[dict[str, list[FrameSample]], list[str]]:
    """The labelled frames, one per second, of each video that has frames or a file to extract them from; and notes.

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
            FrameSample(path, parsed[values], name, second)
            for second, (path, values) in enumerate(zip(paths, rows, strict=False))
        ]
        if note:
            cut.append(f"{name} ({note})")
    return samples, [f"The last second was left out, as lengths differ: {named(cut)}."] if cut else []


def absent_note(samples: Mapping[str, list[FrameSample]], labels: tuple[str, ...]) -> list[str]:
    """A note on the videos in which some class of single-label data never appears."""
    absent = []
    for video, rows in samples.items():
        present = {row.labels for row in rows}
        if len(present) < len(labels):
            absent.append(f"{video} ({', '.join(name for i, name in enumerate(labels) if i not in present)})")
    return [f"Videos without some class: {named(absent)}."] if absent else []
