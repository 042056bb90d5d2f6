"""Your own labeled frames or videos.

`load_csv` reads any classification dataset from a table:

    D/labels.csv        with the columns
                            image       path of the frame, relative to D
                            video       name of its video
                            label       name of its class. Alternatively, one column per class instead of this one,
                                        with targets from 0 to 1 (several classes may apply)
                            frame       its number in the video. Optional. Default: the number at the end of the
                                        image name, or the order of the rows
                            split       train, validation, or test. Optional. Default: a fifth of the videos validate
    D/classes.txt       for the column `label`: one class per line, in the order of ids. Optional. Default:
                        alphabetical order

`load_videos` reads the phases of whole videos:

    D/videos/<video>.mp4            or   D/frames/<video>/000000.jpg, ..., one per second
    D/phases/<video>.txt            "Frame Phase", separated by tabs or commas, with or without a header: a row for
                                    every frame of the video or for every second; phases by name, or by number from 0
    D/classes.txt                   one phase per line, in their usual order. Optional. Default: the order in which
                                    they appear; numbered phases are "phase_0", "phase_1", ...
    D/splits.csv                    the columns video and split. Optional. Default: a fifth of the videos validate

Splits are by video, see `surgenet_hf.data.splits`. By default, the names of the videos determine which fifth
validates.
"""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import MissingFileError, UserError
from ..annotations import absent_note, class_id, labeled_videos, read_label_file
from ..base import IGNORE_INDEX, MULTI, SINGLE, Sample, SurgicalData, build_splits
from ..colors import palette
from ..frame_folders import find_videos
from ..images import check_images
from ..labels import read_classes, read_table
from ..names import frame_number, named, number_in_name, require_distinct, require_folder, require_unicode
from ..splits import (
    BY_NAME,
    SPLITS,
    no_test_note,
    require_splits,
    split_by_name,
    split_by_pairs,
    split_pairs,
    split_videos,
)
from ..video import frame_rate

_NOT_CLASSES = ("image", "video", "split", "frame", "label")
_CSV_LAYOUT = "expected labels.csv with the columns image, video and label (or a column for each class)"
_VIDEO_LAYOUT = "expected phases/<video>.txt with videos/<video>.mp4 or frames/<video>/000000.jpg, ..."


def load_csv(data_dir: str | Path) -> SurgicalData:
    """Load the dataset of `labels.csv`.

    The dataset is single-label if the table has a column `label`, and multi-label otherwise.

    Args:
        data_dir: the folder D.

    Raises:
        MissingFileError: `labels.csv` or a frame that it lists is missing.
        UserError: a column is missing, a target is outside 0 to 1, a class is not in `classes.txt`, or a frame is
            unreadable. Also if there are fewer than two classes or videos, a video is in two splits, or training or
            validation has no frames.
    """
    root = require_folder(Path(data_dir).absolute(), _CSV_LAYOUT)
    path = root / "labels.csv"
    lines, rows = zip(*read_table(path, ("image", "video"), _CSV_LAYOUT), strict=True)
    single = "label" in rows[0]
    classes = tuple(column for column in rows[0] if column not in _NOT_CLASSES)
    if single == bool(classes):
        raise UserError(
            f"{path} has {'both' if single else 'neither'} a column 'label' {'and' if single else 'nor'} columns for "
            f"classes ({named(classes) or 'none'}); {_CSV_LAYOUT}"
        )
    for line, row in zip(lines, rows, strict=True):
        if single and not row["label"]:
            raise UserError(f"{path}, line {line}: label is empty; fill it in")
    labels = classes or read_classes(root / "classes.txt") or tuple(sorted({row["label"] for row in rows}))
    require_distinct(labels, "class", path)
    if single and len({row["label"] for row in rows}) < 2:
        raise UserError(f"{path}: the column 'label' contains a single class; at least two are needed")

    frames = _frame_numbers(rows, lines, path)
    pairs = split_pairs(rows)
    split_of = split_by_pairs(pairs, path) if pairs else split_by_name([row["video"] for row in rows], path)
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for line, row, frame in zip(lines, rows, frames, strict=True):
        target = _class(row["label"], labels, path, line) if single else _targets(row, labels, path, line)
        samples[split_of[row["video"]]].append(Sample(root / row["image"], target, row["video"], frame))
    require_splits(samples, ("train", "validation"), path, _CSV_LAYOUT)
    every = [sample.image for split in SPLITS for sample in samples[split]]
    missing = [image for image in every if not os.path.isfile(image)]  # Path.is_file fails for very long names
    if missing:
        raise MissingFileError(
            f"{path}: {len(missing)} of {len(every)} frames are missing: {named(map(str, missing), 3)}; paths are "
            f"relative to {root}"
        )
    check_images(every)
    notes = [_count_note(samples)]
    if single:
        seen = {sample.target for sample in samples["train"]}
        unseen = [label for i, label in enumerate(labels) if i not in seen]
        if unseen:
            notes.append(f"No training frame has the class {', '.join(unseen)}: it cannot be learned.")
    notes += no_test_note(samples, "D/labels.csv")
    protocol = "by the column split of labels.csv" if pairs else BY_NAME
    return SurgicalData(
        "csv",
        "image-classification",
        labels,
        palette(len(labels)),
        build_splits(samples),
        problem_type=SINGLE if single else MULTI,
        notes=tuple(notes),
        split_protocol=protocol,
    )


def load_videos(
    data_dir: str | Path,
    cache_dir: str | Path | None = None,
    max_side: int | None = None,
    labels_per_second: float | None = None,
) -> SurgicalData:
    """Load the phases of whole videos at one frame per second.

    Args:
        data_dir: folder with `phases/` and `videos/` or `frames/`.
        cache_dir: folder with the frames. Missing frames are extracted into it. None means `data_dir/frames`.
        max_side: largest side of extracted frames in pixels, or None for no limit.
        labels_per_second: increase of the frame numbers in the label files per second. If None, it is 1 or the frame
            rate of the video, whichever fits its length better. Without a video file, it is 1.

    Raises:
        MissingFileError: `phases/` is missing, a video has no labels, or labels have no frames.
        UserError: a video is broken, labels are unreadable, or the lengths of a video and its labels differ by more
            than a second. Also if a phase is not in `classes.txt`, `splits.csv` has an error, or there are fewer than
            two videos or phases.
    """
    root = require_folder(Path(data_dir).absolute(), _VIDEO_LAYOUT)
    require_folder(root / "phases", _VIDEO_LAYOUT)
    files = sorted(path for path in (root / "phases").glob("*.txt") if not path.name.startswith("."))
    labels = {require_unicode(path).stem: read_label_file(path) for path in files}
    frames_dir = Path(cache_dir).absolute() if cache_dir is not None else root / "frames"
    videos = find_videos(root / "videos")
    unlabeled = [name for name, path in videos.items() if require_unicode(path).stem not in labels]
    if unlabeled:
        raise MissingFileError(f"no labels for {named(unlabeled)}: expected {root / 'phases' / unlabeled[0]}.txt")
    values = [row[0] for file in labels.values() for row in dict.fromkeys(file.values)]
    require_distinct(values, "phase", root / "phases")
    phases = read_classes(root / "classes.txt") or _phase_names(values, root / "phases")
    if len(set(values)) < 2:
        raise UserError(
            f"{root / 'phases'} contains fewer than two phases ({named(values) or 'no labels'}); {_VIDEO_LAYOUT}"
        )

    def rates(name: str) -> Iterable[float]:
        if labels_per_second is not None:
            return (labels_per_second,)
        return (1, frame_rate(videos[name])) if name in videos else (1,)

    def parse(row: tuple[str, ...], path: Path) -> int:
        return class_id(row[0], phases, 0, path)

    found, notes = labeled_videos(labels, videos, frames_dir, parse, rates, max_side)
    lost = [name for name in labels if name not in found]
    if lost:
        raise MissingFileError(
            f"there are labels but no frames for {named(lost)}: expected {root / 'videos' / lost[0]}.mp4 or "
            f"{frames_dir / lost[0]}/000000.jpg, ...; add them, or remove the labels"
        )
    split_of, protocol = split_videos(root, found)
    samples = {split: [row for name in found if split_of[name] == split for row in found[name]] for split in SPLITS}
    require_splits(samples, ("train", "validation"), root, "assign videos to train and validation in splits.csv")
    all_notes = (_count_note(samples), *notes, *absent_note(found, phases), *no_test_note(samples, "D/splits.csv"))
    return SurgicalData(
        "videos",
        "phase-recognition",
        phases,
        palette(len(phases)),
        build_splits(samples),
        problem_type=SINGLE,
        frames_per_second=1.0,
        notes=all_notes,
        split_protocol=protocol,
    )


def _frame_numbers(rows: Sequence[dict[str, str]], lines: Sequence[int], path: Path) -> list[int]:
    if "frame" in rows[0]:
        for line, row in zip(lines, rows, strict=True):
            if not row["frame"].isdecimal():
                raise UserError(f"{path}, line {line}: the frame number is {row['frame']!r}; expected 0, 1, 2, ...")
        return [frame_number(row["frame"], f"{path}, line {line}") for line, row in zip(lines, rows, strict=True)]
    numbers = [number_in_name(Path(row["image"])) for row in rows]
    known = [number for number in numbers if number is not None]
    return known if len(known) == len(rows) else list(range(len(rows)))


def _class(label: str, labels: Sequence[str], path: Path, line: int) -> int:
    if label not in labels:
        raise UserError(f"{path}, line {line}: {label!r} is not in classes.txt ({named(labels)})")
    return labels.index(label)


def _targets(row: dict[str, str], labels: tuple[str, ...], path: Path, line: int) -> tuple[float, ...]:
    targets = []
    for label in labels:
        try:
            targets.append(float(row[label]))
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {label} is {row[label]!r}; expected a number") from error
        if not (math.isfinite(targets[-1]) and 0 <= targets[-1] <= 1):
            raise UserError(f"{path}, line {line}: {label} is {row[label]}; expected a target from 0 to 1")
    return tuple(targets)


def _phase_names(values: list[str], where: Path) -> tuple[str, ...]:
    numbered = {value.isdecimal() for value in values}
    if numbered == {True}:
        largest = max(values, key=lambda value: frame_number(value, where))
        if int(largest) >= IGNORE_INDEX:
            raise UserError(f"{where}: found the phase {largest}; expected numbers from 0 to {IGNORE_INDEX - 1}")
        return tuple(f"phase_{i}" for i in range(1 + int(largest)))
    if len(numbered) == 2:
        raise UserError(f"{where}: phases must be names or numbers, found both ({named(dict.fromkeys(values))})")
    return tuple(dict.fromkeys(values))


def _count_note(samples: dict[str, list[Sample]]) -> str:
    parts = [f"{len(rows)} of {len({row.video for row in rows})} videos ({split})" for split, rows in samples.items()]
    return f"Found frames: {', '.join(parts)}."
