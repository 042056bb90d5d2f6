"""ATLAS-120k: clips of 14 minimally invasive procedures, with masks of anatomical structures. By the SurgeNet authors.

Citation: de Jong, Jaspers et al., "Surgical Anatomy Recognition with Context Learning using Foundation
Representations", arXiv 2606.22124.
License: CC BY-NC-SA 4.0 (non-commercial, attribution, share alike). The frames are from public YouTube videos.
Download: https://huggingface.co/datasets/TimJaspersTue/ATLAS-120k (masks only, after accepting the terms). The scripts
of https://github.com/TimJaspers0801/ATLAS download the videos and extract the frames into the same folder.

Layout after that, limited to the files that this module reads:

    train/ val/ test/
        <procedure>/<video>/                        for example cholecystectomy/J5bg8KTYrw0_ROBOT
            clip_index.json                         `clips`: {"clip_0001": [964, 965, ...]}, the frames of each clip;
                                                    `youtube_id`, `frame_digits` (digits in the names of frames)
            clip_0001/images/frame_000964.jpg       the frame
            clip_0001/machine_masks/frame_000964.png    its mask, the id as gray value

Version 0.1.0 has 121,018 frames in 502 clips of 100 videos.

Classes: the 30 training classes `LABELS`, to which `GROUPS` maps the 46 ids of the masks and the background, as the
authors' tools do. Ureter, kidney, mesocolon, adrenal gland, pancreas, duodenum, and excluded frames become background.
Background: class 0. The averages of ATLAS-bench exclude it.

Splits: official, by the folders: 70 videos train, 10 validation (`val`), 20 test. A video without any frames, for
example because YouTube no longer has it, is left out, and a note says so.

Overlap: the videos are from YouTube, as are many in the pretraining data of the SurgeNetXL backbones. It is unknown
which videos both have.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import MissingFileError, UserError
from ..base import Sample, SurgicalData, build_splits
from ..frame_folders import FRAME_SUFFIXES
from ..labels import read_text
from ..masks import check_ids, lookup_table
from ..names import named, require_folder
from ..splits import require_splits

LABELS = (
    "background",
    "tools or camera",
    "vein",
    "artery",
    "nerve",
    "small intestine",
    "colon or rectum",
    "abdominal wall",
    "diaphragm",
    "fat",
    "liver",
    "bile or lymph duct",
    "gallbladder",
    "hepatic ligament",
    "cystic plate",
    "stomach",
    "spleen",
    "uterus",
    "ovary",
    "oviduct",
    "prostate",
    "urethra",
    "ligated plexus",
    "seminal vesicles",
    "non anatomical",
    "bladder",
    "lung",
    "airway",
    "esophagus",
    "pericardium",
)
COLORS = (
    (0, 0, 0),
    (255, 255, 255),
    (0, 0, 255),
    (255, 0, 0),
    (255, 255, 0),
    (0, 255, 0),
    (0, 200, 100),
    (200, 150, 100),
    (250, 150, 100),
    (255, 200, 100),
    (150, 100, 50),
    (0, 255, 255),
    (0, 200, 255),
    (255, 150, 50),
    (255, 220, 200),
    (200, 100, 200),
    (200, 0, 200),
    (255, 0, 150),
    (255, 100, 200),
    (200, 100, 255),
    (150, 0, 100),
    (255, 200, 255),
    (150, 100, 75),
    (200, 0, 150),
    (50, 50, 50),
    (255, 150, 255),
    (150, 200, 255),
    (0, 150, 255),
    (255, 100, 100),
    (200, 200, 255),
)
# class of each id from 0 to 46
# fmt: off
GROUPS = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 2, 10, 11, 12, 2, 13, 14, 15, 11, 9, 11, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
    0, 26, 27, 28, 29, 2, 11, 4, 0, 24, 0, 0, 0, 0, 0,
)
# fmt: on
BACKGROUND_ID = 0
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
NUM_VIDEOS = {"train": 70, "validation": 10, "test": 20}
NUM_FRAMES = {"train": 84_102, "validation": 9_615, "test": 27_301}  # of version 0.1.0
SPLIT_PROTOCOL = "official (70 train, 10 validation, 20 test)"

_LAYOUT = (
    "expected the layout of ATLAS-120k: train/, val/, test/ with <procedure>/<video>/ that contain clip_index.json "
    "and clip_0001/ with images/ and machine_masks/. Get the masks from "
    "https://huggingface.co/datasets/TimJaspersTue/ATLAS-120k, and the frames with "
    "https://github.com/TimJaspers0801/ATLAS"
)


@dataclass(frozen=True)
class _Video:
    """Video with its clips.

    Attributes:
        name: "<procedure>_<video>".
        youtube_id: id of the original video.
        frames: number of frames in `clip_index.json`.
        samples: frames with their masks. Empty if no frame was extracted.
    """

    name: str
    youtube_id: str
    frames: int
    samples: list[Sample]


def load(data_dir: str | Path) -> SurgicalData:
    """Load ATLAS-120k from a folder in the official layout. If it holds only some frames, `notes` says so.

    Args:
        data_dir: folder with `train/`, `val/`, and `test/`.

    Raises:
        MissingFileError: a folder is missing or empty, a mask is missing, or only some frames of a video are there.
        UserError: a file is unreadable, or training or validation has no frames.
    """
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    videos = {
        split: [_read_video(path.parent) for path in sorted((root / folder).glob("*/*/clip_index.json"))]
        for split, folder in FOLDERS.items()
    }
    if not any(videos.values()):
        found = named(sorted(path.name for path in root.iterdir()))
        raise MissingFileError(
            f"{root} contains no train/<procedure>/<video>/clip_index.json (it contains {found}); {_LAYOUT}"
        )
    by_split = {split: [sample for video in found for sample in video.samples] for split, found in videos.items()}
    require_splits(by_split, ("train", "validation"), root, _LAYOUT)
    notes = [_count_note(videos), *_shared_notes(videos)]
    notes += check_ids([sample for part in by_split.values() for sample in part], range(len(GROUPS)))
    return SurgicalData(
        "atlas120k",
        "semantic-segmentation",
        LABELS,
        COLORS,
        build_splits(by_split, lookup_table(dict(enumerate(GROUPS)))),
        background_id=BACKGROUND_ID,
        notes=tuple(notes),
        videos_are_public=True,
        split_protocol=SPLIT_PROTOCOL,
    )


def _read_video(folder: Path) -> _Video:
    path = folder / "clip_index.json"
    try:
        index = json.loads(read_text(path))
        digits, youtube_id = int(index["frame_digits"]), str(index["youtube_id"])
        clips = {str(clip): [int(number) for number in numbers] for clip, numbers in index["clips"].items()}
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is malformed ({error!r}); expected `clips` with lists of frame numbers, `frame_digits`, and "
            "`youtube_id`. Download it again"
        ) from error
    name = f"{folder.parent.name}_{folder.name}"
    samples, missing = [], []
    for clip, numbers in clips.items():
        images, masks = (_by_stem(folder / clip / kind) for kind in ("images", "machine_masks"))
        for number in numbers:
            stem = f"frame_{number:0{digits}d}"
            if stem not in masks:
                mask = folder / clip / "machine_masks" / f"{stem}.png"
                raise MissingFileError(f"there is no mask {mask}, which {path} lists; download the masks again")
            if stem in images:
                samples.append(Sample(images[stem], masks[stem], name, number))
            else:
                missing.append(f"{clip}/images/{stem}.jpg")
    if samples and missing:
        raise MissingFileError(
            f"{len(missing)} of {len(missing) + len(samples)} frames of {folder} are missing: "
            f"{named(missing, 3)}; extract them again with download/process_atlas120k.py of the authors, "
            "or remove all folders images/ of the video"
        )
    return _Video(name, youtube_id, sum(map(len, clips.values())), samples)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return the images in a folder by name without suffix, or an empty dict if the folder does not exist."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.stem: path for path in paths if path.suffix.lower() in FRAME_SUFFIXES}


def _count_note(videos: Mapping[str, list[_Video]]) -> str:
    """Return a note on how many of the official frames and videos were found."""
    counts = {split: sum(len(video.samples) for video in found) for split, found in videos.items()}
    used = ", ".join(f"{number} {split}" for split, number in counts.items())
    number = sum(bool(video.samples) for found in videos.values() for video in found)
    if counts == NUM_FRAMES:
        return f"Found all {sum(counts.values())} frames of {number} videos ({used})."
    note = (
        f"Found {sum(counts.values())} frames of {number} videos ({used}); version 0.1.0 has "
        f"{sum(NUM_FRAMES.values())} frames of {sum(NUM_VIDEOS.values())} videos. Results are not comparable with "
        "those on the full dataset."
    )
    if absent := [video.name for found in videos.values() for video in found if not video.samples]:
        note += f" Videos without frames: {named(absent)}."
    return note


def _shared_notes(videos: Mapping[str, list[_Video]]) -> list[str]:
    """Return a note if two splits contain parts of the same original video, under two procedures."""
    splits: dict[str, set[str]] = {}
    for split, found in videos.items():
        for video in found:
            splits.setdefault(video.youtube_id, set()).add(split)
    shared = [f"{youtube_id} ({' and '.join(sorted(of))})" for youtube_id, of in splits.items() if len(of) > 1]
    return [f"The official splits share original videos: {named(shared)}."] if shared else []
