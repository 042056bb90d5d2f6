"""Endoscapes-CVS201: frames of laparoscopic cholecystectomy, rated for the critical view of safety (CVS).

Citation, license, download, and splits: as in `endoscapes` (Murali et al., arXiv 2312.12429, CC BY-NC-SA 4.0,
https://github.com/CAMMA-public/Endoscapes).

Layout of the official Endoscapes2023 archive, limited to the files that this module reads:

    train/ val/ test/                           <video>_<frame>.jpg, 854x480
    train/annotation_ds_coco.json, val/..., test/...
                                                `images` has an entry for each rated frame: file_name, video_id,
                                                is_ds_keyframe, and `ds`, the mean rating for each criterion
    all_metadata.csv                            the same values in the columns vid, frame, avg_cvs, and
                                                is_ds_keyframe; used if a folder has no annotation_ds_coco.json

Classes: three criteria, each rated by three surgeons. C1: two and only two structures enter the gallbladder. C2: the
hepatocystic triangle is cleared of fat and fibrous tissue. C3: the lower third of the gallbladder is dissected off the
cystic plate. The target is the mean rating (0, 1/3, 2/3, or 1). A criterion counts as met at 0.5 or more.

CVS201 has 11,090 rated frames of 201 videos, 5 s apart. The training split has 6,960 of them.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import MissingFileError, UserError
from ..base import MULTI, Sample, SurgicalData, build_splits
from ..colors import palette
from ..images import check_images
from ..labels import read_table, read_text
from ..names import frame_number, named, require_folder
from ..splits import require_splits
from .endoscapes import SPLIT_PROTOCOL, SPLITS, split_of

LABELS = ("C1 two structures", "C2 hepatocystic triangle", "C3 cystic plate")
NUM_FRAMES, NUM_TRAIN_FRAMES = 11_090, 6_960

_LAYOUT = (
    "expected the official Endoscapes2023 layout: train/, val/, test/ with <video>_<frame>.jpg and "
    "annotation_ds_coco.json (or all_metadata.csv next to them). Get it from https://github.com/CAMMA-public/Endoscapes"
)


def load(data_dir: str | Path) -> SurgicalData:
    """Load Endoscapes-CVS201 from a folder in the official layout.

    `notes` of the result states how many frames were found, and whether they are all of the official ones.

    Args:
        data_dir: folder of the unpacked archive.

    Raises:
        MissingFileError: a folder is missing or empty, the ratings are missing, or a rated frame is missing.
        UserError: ratings are malformed or outside 0 to 1, a video is in the folder of another split, or a frame is
            unreadable. Also raised if the train or validation split has no frames.
    """
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    samples: dict[str, list[Sample]] = {}
    for split, (folder, *_) in SPLITS.items():
        if (root / folder).is_dir():
            rows = _read_json(root / folder) or _read_csv(root, split)
            samples[split] = sorted(rows, key=lambda row: (int(row.video), row.frame))
    require_splits(samples, ("train", "validation"), root, _LAYOUT)

    every = [row for rows in samples.values() for row in rows]
    missing = [row.image for row in every if not os.path.exists(row.image)]  # Path.exists rejects long names
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(every)} rated frames are missing: {named(map(str, missing), 3)}; unpack all "
            "frames of the archive"
        )
    check_images([row.image for row in every])
    notes = (_count_note(samples), _positive_note(samples))
    return SurgicalData(
        "endoscapes-cvs",
        "image-classification",
        LABELS,
        palette(len(LABELS)),
        build_splits(samples),
        problem_type=MULTI,
        notes=notes,
        videos_are_public=True,
        split_protocol=SPLIT_PROTOCOL,
    )


def _read_json(folder: Path) -> list[Sample]:
    """Return the rated frames of `annotation_ds_coco.json`, or an empty list if the file does not exist."""
    path = folder / "annotation_ds_coco.json"
    if not path.exists():
        return []
    text = read_text(path)
    with _malformed(path):
        entries = json.loads(text)["images"]
        rated = [entry for entry in entries if entry.get("is_ds_keyframe", True) and entry.get("ds") is not None]
        rows = [(folder / entry["file_name"], int(entry["video_id"]), [*map(float, entry["ds"])]) for entry in rated]
    return [_sample(*row, folder.name, path) for row in rows]


def _read_csv(root: Path, split: str) -> list[Sample]:
    """Return the rated frames of one split in `all_metadata.csv`."""
    path = root / "all_metadata.csv"
    folder, first, last = SPLITS[split]
    if not path.exists():
        raise MissingFileError(f"neither {root / folder}/annotation_ds_coco.json nor {path} exists; {_LAYOUT}")
    rows = []
    for line, row in read_table(path, ("vid", "frame", "is_ds_keyframe"), _LAYOUT):
        if row["is_ds_keyframe"].lower() != "true":
            continue
        with _malformed(f"{path}, line {line}"):
            video = int(row["vid"])
            targets = [*map(float, json.loads(row["avg_cvs"]))] if first <= video <= last else None
        if targets is not None:
            image = root / folder / f"{row['vid']}_{row['frame']}.jpg"
            rows.append(_sample(image, video, targets, folder, f"{path}, line {line}"))
    return rows


@contextmanager
def _malformed(where: Path | str) -> Iterator[None]:
    """Convert errors about missing or malformed values to a `UserError` that names the source of the values."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{where} is malformed ({error!r}); {_LAYOUT}") from error


def _sample(image: Path, video: int, targets: list[float], folder: str, source: Path | str) -> Sample:
    number, _, frame = image.stem.partition("_")
    if number != str(video) or not frame.isdecimal():
        raise UserError(f"{source}: {image.name} is listed for video {video}, but is not named <video>_<frame>.jpg")
    right = SPLITS[split_of(image, video)][0]
    if right != folder:
        raise UserError(
            f"{source}: {image.name} is in the wrong split: video {video} belongs to {right}/; move it there to "
            "match the official split"
        )
    if len(targets) != len(LABELS) or not all(0 <= target <= 1 for target in targets):
        raise UserError(f"{source}: {image.name} has the ratings {targets}; expected three means from 0 to 1")
    return Sample(image, tuple(targets), str(video), frame_number(frame, image))


def _count_note(samples: dict[str, list[Sample]]) -> str:
    total = sum(map(len, samples.values()))
    counts = ", ".join(f"{len(samples.get(split, []))} {split}" for split in SPLITS)
    if total == NUM_FRAMES and len(samples["train"]) == NUM_TRAIN_FRAMES:
        return f"Found all {NUM_FRAMES} official frames ({counts})."
    return (
        f"Found {total} frames ({counts}); the official dataset has {NUM_FRAMES}, {NUM_TRAIN_FRAMES} of them for "
        "training. Results are not comparable with those on the official dataset."
    )


def _positive_note(samples: dict[str, list[Sample]]) -> str:
    parts = []
    for split, rows in samples.items():
        met = [sum(row.target[i] >= 0.5 for row in rows) for i in range(len(LABELS))]
        parts.append(
            f"{split} " + ", ".join(f"{label[:2]} {number}" for label, number in zip(LABELS, met, strict=True))
        )
    return f"Frames that meet each criterion (mean rating of at least 0.5): {'; '.join(parts)}."
