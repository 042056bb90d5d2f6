"""Your own frames and masks, from a folder.

Layout:

    D/images/<video>_<frame>.jpg   or   D/images/<video>/<any name>.jpg     (jpg, jpeg, or png)
    D/masks/<video>_<frame>.png    or   D/masks/<video>/<the same name>.png
    D/classes.txt                  one class name per line; the first line names id 0. Optional
    D/splits.csv                   the columns video and split (train, validation, test). Optional

Classes: a mask has the size of its frame and holds class ids 0, 1, 2, ..., with 255 for pixels without a label. It
has one channel, or three equal channels. Without `classes.txt`, the classes are "class_0", "class_1", ... up to the
largest id in any mask.

Background: no class counts as background by default, whatever its id or name. All classes are then foreground in
metrics. Declare the background with `background_class`, or with `--background_class NAME` on the command line.

Splits: the videos are split, not the frames, because frames of one video look alike. Without `splits.csv`, a fifth of
the videos (at least one) validate, and there is no test split. The SHA-256 hash of a video's name decides, so the
split is the same on every machine.
"""

import re
from pathlib import Path

import numpy as np

from ...errors import MissingFileError, UserError
from ..base import IGNORE_INDEX, Sample, SurgicalData, build_splits
from ..colors import palette
from ..labels import read_classes
from ..masks import count_values, lookup_table, require_pairs
from ..names import frame_number, number_in_name, require_folder, require_unicode
from ..splits import SPLITS, no_test_note, require_splits, split_videos

_SUFFIXES = (".jpg", ".jpeg", ".png")
_LAYOUT = "expected images/<video>_<frame>.jpg (or images/<video>/<frame>.jpg) and masks/ with a .png of the same name"


def load(data_dir: str | Path, background_class: str | None = None) -> SurgicalData:
    """Load the dataset of a folder.

    Args:
        data_dir: the folder D.
        background_class: name of the background class, see `SurgicalData.background_id`.

    Raises:
        MissingFileError: a folder is missing or empty, a frame has no mask, or a mask has no frame.
        UserError: `background_class` is not a class. Also if a file name contains no video name, two frames have the
            same name, a file is unreadable, or fewer than two videos exist. Also if a mask has another size than its
            frame, has colors instead of ids, or has ids without a class. Also if `classes.txt` has blank lines,
            duplicates, or another encoding than UTF-8, or if fewer than two classes occur.
    """
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    names = read_classes(root / "classes.txt")
    samples = _find_samples(root)
    split_of, protocol = _split_of({sample.video for sample in samples}, root)

    counts = count_values(samples)
    labels = names or tuple(f"class_{i}" for i in range(1 + max(_ids(counts.sum(0)), default=0)))
    _check_ids(samples, counts, labels, root)
    if background_class is not None and background_class not in labels:
        raise UserError(
            f"{root} has no class {background_class!r}; its classes are {', '.join(labels)}. Choose one of them as "
            "background_class"
        )

    splits = {split: [sample for sample in samples if split_of[sample.video] == split] for split in SPLITS}
    require_splits(splits, ("train", "validation"), root, "assign videos to train and validation in splits.csv")
    splits = {split: found for split, found in splits.items() if found}
    in_training = np.array([split_of[sample.video] == "train" for sample in samples])
    unseen = sorted(set(range(len(labels))) - set(_ids(counts[in_training].sum(0))))
    videos = {split: sorted({sample.video for sample in found}) for split, found in splits.items()}
    notes = [
        f"Found {len(splits['train'])} training frames of {len(videos['train'])} video(s), "
        f"{len(splits['validation'])} validation frames of {len(videos['validation'])} video(s) "
        f"({', '.join(videos['validation'])})"
        + (f", {len(splits['test'])} test frames of {len(videos['test'])} video(s)" if "test" in splits else "")
        + ".",
    ]
    if not names:
        notes.append(f"There is no classes.txt: {len(labels)} classes, inferred from the largest id in the masks.")
    if background_class is None:
        notes.append(
            "No class is declared as background, so all classes count as foreground. Declare one with "
            "--background_class NAME."
        )
    if unseen:
        notes.append(f"No training pixel has class {', '.join(labels[i] for i in unseen)}: it cannot be learned.")
    notes += no_test_note(splits, "D/splits.csv")
    table = lookup_table({i: i for i in range(len(labels))})
    return SurgicalData(
        "folder",
        "semantic-segmentation",
        labels,
        palette(len(labels)),
        build_splits(splits, table),
        notes=tuple(notes),
        split_protocol=protocol,
        background_id=None if background_class is None else labels.index(background_class),
    )


def _find_samples(root: Path) -> list[Sample]:
    """Return frames with their masks, sorted by video and frame."""
    images, masks = _files(root / "images", _SUFFIXES), _files(root / "masks", (".png",))
    places = {"frame": ("images", "jpg"), "mask": ("masks", "png")}
    require_pairs(
        images,
        masks,
        lambda kind, key: f"{root / places[kind][0] / key}.{places[kind][1]}",
        "add the missing files, or move the unpaired files elsewhere",
    )
    in_folders = {"/" in key for key in images}
    if len(in_folders) == 2:
        loose = next(images[key] for key in sorted(images) if "/" not in key)
        raise UserError(
            f"{loose} is not in the folder of a video, but other frames are; use the same layout for all frames"
        )
    samples = []
    for position, key in enumerate(sorted(images)):
        video, frame = _video_and_frame(key, position, images[key])
        samples.append(Sample(images[key], masks[key], video, frame))
    return sorted(samples, key=lambda sample: (sample.video, sample.frame, sample.image))


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files below `folder`, by relative path without suffix and with forward slashes."""
    require_folder(folder, _LAYOUT)
    files: dict[str, Path] = {}
    others = 0
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() not in suffixes:
            others += 1
            continue
        key = require_unicode(path).relative_to(folder).with_suffix("").as_posix()
        if key in files:
            raise UserError(f"{files[key]} and {path} have the same name, so their mask would be the same; rename one")
        files[key] = path
    if not files:
        raise MissingFileError(
            f"{folder} contains no files ending in {' or '.join(suffixes)} ({others} other files); {_LAYOUT}"
        )
    return files


def _video_and_frame(key: str, position: int, path: Path) -> tuple[str, int]:
    if "/" in key:
        number = number_in_name(path)
        return key.split("/")[0], position if number is None else number
    match = re.fullmatch(r"(.+)_(\d+)", key)
    if not match:
        raise UserError(
            f"{path}: the name does not identify a video, but frames must be split by video. Name it "
            "<video>_<frame number>, or put the frames of each video into a separate folder in images/"
        )
    return match[1], frame_number(match[2], path)


def _split_of(videos: set[str], root: Path) -> tuple[dict[str, str], str]:
    """Return the split of each video and the split protocol, see `splits.split_videos`."""
    if videos <= {"train", "val", "valid", "validation", "test"}:
        raise UserError(
            f"the videos in {root / 'images'} ({', '.join(sorted(videos))}) are named like splits, but splits are "
            "assigned by video. Name the folders, or the part before the last underscore, after the videos"
        )
    if len(videos) < 2:
        raise UserError(
            f"{root / 'images'} contains a single video ({', '.join(videos)}), but training and validation need "
            "different videos, because frames of one video look alike. The video of a frame is its folder in images/, "
            "or its name up to the last underscore"
        )
    return split_videos(root, videos)


def _ids(counts: np.ndarray) -> list[int]:
    """Return the class ids that occur, given the pixel count (256,) of each raw value."""
    return [i for i in range(IGNORE_INDEX) if counts[i]]


def _check_ids(samples: list[Sample], counts: np.ndarray, labels: tuple[str, ...], root: Path) -> None:
    for sample, row in zip(samples, counts, strict=True):
        beyond = [i for i in _ids(row) if i >= len(labels)]
        if beyond:
            raise UserError(
                f"{sample.target} contains id {', '.join(map(str, beyond))}, but {root / 'classes.txt'} names "
                f"{len(labels)} classes with ids 0 to {len(labels) - 1} ({IGNORE_INDEX} is ignored); add the missing "
                "names or correct the mask"
            )
    found = _ids(counts.sum(0))
    if len(found) < 2:
        raise UserError(
            f"the masks in {root / 'masks'} contain fewer than two classes (ids found: {found or 'none'}; "
            f"{IGNORE_INDEX} is ignored and not a class). Save a foreground drawn as 255 as 1"
        )
