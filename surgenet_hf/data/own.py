"""Your own frames or videos with labels.

`load_csv`: any classification, from a table.

    D/labels.csv        with the columns
                            image       path of the frame, relative to D
                            video       the video that it is from
                            label       its class by name; or, instead of this column, one column for each class, with
                                        targets from 0 to 1 (several may apply)
                            frame       its number in the video; may be left out: then the number at the end of the
                                        image's name, or else the order of the rows
                            split       train, validation or test; may be left out: then a fifth of the videos validate
    D/classes.txt       for the column `label`: one class a line, in the order of ids. Or else by alphabet

`load_videos`: phases of whole videos.

    D/videos/<video>.mp4            or   D/frames/<video>/000000.jpg, ..., one per second
    D/phases/<video>.txt            "Frame Phase", separated by tabs or commas, header or none: a row for every
                                    frame of the video or for every second; phases by name, or by number from 0
    D/classes.txt                   one phase a line, in their usual order. May be left out: then in the order in which
                                    they appear; numbered ones are "phase_0", "phase_1", ...
    D/splits.csv                    the columns video, split. May be left out: then a fifth of the videos validate

Splits are by video, see `surgenet_hf.data.classification`; the fifth is chosen by the names of the videos alone.
"""

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path

from .classification import (
    MULTI,
    SINGLE,
    WHY_BY_VIDEO,
    ClassificationData,
    FrameSample,
    absent_note,
    build_splits,
    check_images,
    check_no_overlap,
    class_id,
    labelled_videos,
    named,
    read_label_file,
    require_splits,
    split_by_name,
)
from .folder import read_classes
from .segmentation import palette, require_folder
from .video import find_videos, frame_rate

_SPLITS = ("train", "validation", "test")
_NOT_CLASSES = ("image", "video", "split", "frame", "label")
_CSV_LAYOUT = "expected labels.csv with the columns image, video and label (or a column for each class)"
_VIDEO_LAYOUT = "expected phases/<video>.txt with videos/<video>.mp4 or frames/<video>/000000.jpg, ..."


def load_csv(data_dir: str | Path) -> ClassificationData:
    """The data set of `labels.csv`: single-label with a column `label`, else multi-label.

    Raises:
        FileNotFoundError: no labels.csv, or frames that it names and that are not there.
        ValueError: a missing column, a target outside 0 to 1, a class that is not in classes.txt, fewer than two
            classes or videos, a video in two splits, no frames to train on or to validate on, an unreadable frame.
    """
    root = require_folder(Path(data_dir).absolute(), _CSV_LAYOUT)
    path = root / "labels.csv"
    rows = _read_table(path, ("image", "video"), _CSV_LAYOUT)
    single = "label" in rows[0]
    classes = tuple(column for column in rows[0] if column not in _NOT_CLASSES)
    if single == bool(classes):
        raise ValueError(
            f"{path} has {'both' if single else 'neither'} a column 'label' {'and' if single else 'nor'} columns for "
            f"classes ({named(classes) or 'none'}); {_CSV_LAYOUT}"
        )
    labels = classes or read_classes(root / "classes.txt") or tuple(sorted({row["label"] for row in rows}))
    if single and len({row["label"] for row in rows}) < 2:
        raise ValueError(f"{path}: its column 'label' holds no two classes; there is nothing to tell apart")

    frames = _frame_numbers(rows, path)
    split_of = _splits({row["video"]: row.get("split", "") for row in rows}, _pairs(rows), path)
    samples: dict[str, list[FrameSample]] = {split: [] for split in _SPLITS}
    for line, (row, frame) in enumerate(zip(rows, frames, strict=True), start=2):
        target = _class(row["label"], labels, path, line) if single else _targets(row, labels, path, line)
        samples[split_of[row["video"]]].append(FrameSample(root / row["image"], target, row["video"], frame))
    require_splits(samples, ("train", "validation"), path, _CSV_LAYOUT)
    every = [sample.image for split in _SPLITS for sample in samples[split]]
    missing = [image for image in every if not image.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(every)} frames are not there: {named(map(str, missing), 3)}; paths are "
            f"relative to {root}"
        )
    check_images(every)
    kind = SINGLE if single else MULTI
    notes = [_count_note(samples)]
    if single:
        seen = {sample.labels for sample in samples["train"]}
        unseen = [label for i, label in enumerate(labels) if i not in seen]
        if unseen:
            notes.append(f"No training frame has the class {', '.join(unseen)}: it cannot be learnt.")
    splits = build_splits(samples, len(labels), kind)
    return ClassificationData("csv", labels, palette(len(labels)), splits, kind, notes=tuple(notes))


def load_videos(
    data_dir: str | Path,
    cache_dir: str | Path | None = None,
    max_side: int | None = None,
    labels_per_second: float | None = None,
) -> ClassificationData:
    """The phases of whole videos, one frame per second.

    Args:
        data_dir: the folder with phases/ and videos/ or frames/.
        cache_dir: where frames are, or are extracted to; `data_dir/frames` if None.
        max_side: shrink frames to this when extracting them.
        labels_per_second: how fast the frame numbers in the label files advance. None: by 1, or by the frame rate of
            the video, whichever fits its length; without a video, by 1.

    Raises:
        FileNotFoundError: no phases/, or a video without labels or labels without a video.
        ValueError: a broken video, labels that cannot be read or are longer or shorter than their video by more than
            a second, phases that are not in classes.txt, fewer than two videos or phases, an error in splits.csv.
    """
    root = require_folder(Path(data_dir).absolute(), _VIDEO_LAYOUT)
    require_folder(root / "phases", _VIDEO_LAYOUT)
    files = sorted(path for path in (root / "phases").glob("*.txt") if not path.name.startswith("."))
    labels = {path.stem: read_label_file(path) for path in files}
    frames_dir = Path(cache_dir).absolute() if cache_dir is not None else root / "frames"
    videos = find_videos(root / "videos")
    unlabelled = [name for name in videos if name not in labels]
    if unlabelled:
        raise FileNotFoundError(f"no labels for {named(unlabelled)}: expected {root / 'phases' / unlabelled[0]}.txt")
    values = [row[0] for file in labels.values() for row in dict.fromkeys(file.values)]
    phases = read_classes(root / "classes.txt") or _phase_names(values, root / "phases")
    if len(set(values)) < 2:
        raise ValueError(f"{root / 'phases'} holds no two phases ({named(values) or 'no labels'}); {_VIDEO_LAYOUT}")

    def rates(name: str) -> Iterable[float]:
        if labels_per_second is not None:
            return (labels_per_second,)
        return (1, frame_rate(videos[name])) if name in videos else (1,)

    def parse(row: tuple[str, ...], path: Path) -> int:
        return class_id(row[0], phases, 0, path)

    found, notes = labelled_videos(labels, videos, frames_dir, parse, rates, max_side)
    lost = [name for name in labels if name not in found]
    if lost:
        raise FileNotFoundError(
            f"there are labels but no frames for {named(lost)}: expected {root / 'videos' / lost[0]}.mp4 or "
            f"{frames_dir / lost[0]}/000000.jpg, ...; add them, or remove the labels"
        )
    table = root / "splits.csv"
    pairs = _pairs(_read_table(table, ("video", "split"), "")) if table.exists() else set()
    unassigned = [name for name in found if pairs and name not in dict(pairs)]
    if unassigned:
        raise ValueError(f"{table} names no split for {named(unassigned)}; add a row for each")
    split_of = _splits({name: dict(pairs).get(name, "") for name in found}, pairs, table if pairs else root)
    samples = {split: [row for name in found if split_of[name] == split for row in found[name]] for split in _SPLITS}
    require_splits(samples, ("train", "validation"), table if pairs else root, "the others need it")
    notes = (_count_note(samples), *notes, *absent_note(found, phases))
    splits = build_splits(samples, len(phases), SINGLE)
    return ClassificationData("videos", phases, palette(len(phases)), splits, SINGLE, 1.0, notes)


def _read_table(path: Path, needed: tuple[str, ...], layout: str) -> list[dict[str, str]]:
    """Rows of a CSV file, separated by commas or, as some spreadsheets write it, by semicolons."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; {layout}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = ";" if header.count(";") > header.count(",") else ","
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    columns = [column.strip() for column in reader.fieldnames or []]
    absent = [column for column in needed if column not in columns]
    if absent:
        why = f": {WHY_BY_VIDEO}" if "video" in absent else ""
        raise ValueError(f"{path} has no column {', '.join(absent)} (its columns: {named(columns)}){why}; {layout}")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path} has two columns of one name (its columns: {named(columns)}); rename or remove one")
    table = []
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {line}: expected {len(columns)} values, one for each column")
        table.append(dict(zip(columns, (value.strip() for value in row.values()), strict=True)))
        empty = [column for column in needed if not table[-1][column]]
        if empty:
            raise ValueError(f"{path}, line {line}: {', '.join(empty)} is empty")
    if not table:
        raise ValueError(f"{path} has no rows; {layout}")
    return table


def _pairs(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(row["video"], row["split"]) for row in rows if "split" in row}


def _splits(names: dict[str, str], pairs: set[tuple[str, str]], where: Path) -> dict[str, str]:
    """`{video: split}`, by what the (video, split) pairs say or, if there are none, by the names of the videos."""
    if not pairs:
        return split_by_name(names, where)
    for video, split in sorted(pairs):
        if split not in _SPLITS:
            raise ValueError(f"{where}: the split of {video!r} is {split!r}; expected {', '.join(_SPLITS)}")
    check_no_overlap({split: [video for video, other in pairs if other == split] for split in _SPLITS})
    return dict(pairs)


def _frame_numbers(rows: list[dict[str, str]], path: Path) -> list[int]:
    if "frame" in rows[0]:
        for line, row in enumerate(rows, start=2):
            if not row["frame"].isdecimal():
                raise ValueError(f"{path}, line {line}: the frame number is {row['frame']!r}; expected 0, 1, 2, ...")
        return [int(row["frame"]) for row in rows]
    numbers = [re.search(r"\d+$", Path(row["image"]).stem) for row in rows]
    if all(numbers):
        return [int(number[0]) for number in numbers]
    return list(range(len(rows)))


def _class(label: str, labels: tuple[str, ...], path: Path, line: int) -> int:
    if label not in labels:
        raise ValueError(f"{path}, line {line}: {label!r} is not in classes.txt ({named(labels)})")
    return labels.index(label)


def _targets(row: dict[str, str], labels: tuple[str, ...], path: Path, line: int) -> tuple[float, ...]:
    targets = []
    for label in labels:
        try:
            targets.append(float(row[label]))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {label} is {row[label]!r}; expected a number") from error
        if not (math.isfinite(targets[-1]) and 0 <= targets[-1] <= 1):
            raise ValueError(f"{path}, line {line}: {label} is {row[label]}; expected a target from 0 to 1")
    return tuple(targets)


def _phase_names(values: list[str], where: Path) -> tuple[str, ...]:
    numbered = {value.isdecimal() for value in values}
    if numbered == {True}:
        return tuple(f"phase_{i}" for i in range(1 + max(map(int, values))))
    if len(numbered) == 2:
        raise ValueError(f"{where}: phases are by name or by number, found both ({named(dict.fromkeys(values))})")
    return tuple(dict.fromkeys(values))


def _count_note(samples: dict[str, list[FrameSample]]) -> str:
    parts = [f"{len(rows)} of {len({row.video for row in rows})} videos ({split})" for split, rows in samples.items()]
    return f"Found frames: {', '.join(parts)}."
