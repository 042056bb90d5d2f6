"""MultiBypass140: 140 videos of laparoscopic Roux-en-Y gastric bypass of two centers, with surgical phases and steps.

Citation: Lavanchy et al., "Challenges in Multi-centric Generalization: Phase and Step Recognition in Roux-en-Y Gastric
Bypass Surgery", International Journal of Computer Assisted Radiology and Surgery 2024, arXiv 2312.11250.
License: CC BY-NC-SA 4.0 (non-commercial, attribution, share alike).
Download: https://github.com/CAMMA-public/MultiBypass140 (labels, and links to the videos in five zip files)

Layout: `data_dir` is a clone of the repository. Its README describes how to extract the frames, one per second, and to
link them. The module reads:

    labels/<center>/labels_by70_splits/         <center> is bern or strasbourg
        labels/train/1fps_100_<fold>.pickle     {video: [label, ...]}, where a label is a dict with Frame_id,
                                                Original_frame_id, Phase_gt, and Step_gt; the folds are 0 to 4
        labels/val/1fps_<fold>.pickle
        labels/test/1fps_<fold>.pickle
        frames/BBP01/BBP01_00000001.jpg, ...    frame "Original_frame_id" + 1, in Strasbourg SBP01/SBP01_00000001.jpg

The pickles are read without running any code (see `plain_pickle`). Frames without a label, such as those before the
operation, are in no pickle and are left out.

Classes: the phases are `PHASES`, the steps are `STEPS`. The repository's tables also list "out_of_body" and
"severe_index", which are not in the labels of the splits.

Splits: the five official folds of each center, as in the pickles: 40 videos train, 10 validation, 20 test. The split
protocols are "bern-0" to "bern-4", "strasbourg-0" to "strasbourg-4", and "both-0" to "both-4", with the videos of both
centers. The test sets of the folds overlap, so their results are not independent.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ...errors import MissingFileError, UserError
from ..annotations import absent_note, count_note, cut_note, pair_frames
from ..base import SINGLE, Sample, SurgicalData, build_splits
from ..colors import palette
from ..names import named, require_folder
from ..plain_pickle import read_plain_pickle
from ..splits import choose_protocol, require_splits

PHASES = (
    "preparation",
    "gastric pouch creation",
    "omentum division",
    "gastrojejunal anastomosis",
    "anastomosis test",
    "jejunal separation",
    "closure Petersen space",
    "jejunojejunal anastomosis",
    "closure mesenteric defect",
    "cleaning coagulation",
    "disassembling",
    "other intervention",
)
STEPS = (
    "null step",
    "cavity exploration",
    "trocar placement",
    "retractor placement",
    "crura dissection",
    "His angle dissection",
    "horizontal stapling",
    "retrogastric dissection",
    "vertical stapling",
    "gastric remnant reinforcement",
    "gastric pouch reinforcement",
    "gastric opening",
    "omental lifting",
    "omental section",
    "adhesiolysis",
    "Treitz angle identification",
    "biliary limb measurement",
    "jejunum opening",
    "gastrojejunal stapling",
    "gastrojejunal defect closing",
    "mesenteric opening",
    "jejunal section",
    "gastric tube placement",
    "jejunal clamping",
    "ink injection",
    "visual assessment",
    "gastrojejunal anastomosis reinforcement",
    "Petersen space exposure",
    "Petersen space closing",
    "biliary limb opening",
    "alimentary limb measurement",
    "alimentary limb opening",
    "jejunojejunal stapling",
    "jejunojejunal defect closing",
    "jejunojejunal anastomosis reinforcement",
    "staple line reinforcement",
    "mesenteric defect exposure",
    "mesenteric defect closing",
    "anastomosis fixation",
    "coagulation",
    "irrigation aspiration",
    "parietal closure",
    "trocar removal",
    "calibration",
    "drainage insertion",
    "specimen retrieval",
)
TASKS = {"phase": ("Phase_gt", PHASES), "step": ("Step_gt", STEPS)}  # {task: (field of a label, classes)}
PREFIXES = {"bern": "BBP", "strasbourg": "SBP"}  # {center: first letters of its videos}
NUM_VIDEOS = 70  # of each center
FILES = {"train": "train/1fps_100_{}.pickle", "validation": "val/1fps_{}.pickle", "test": "test/1fps_{}.pickle"}
PROTOCOLS = {
    f"{name}-{fold}": {"centers": centers, "fold": fold}
    for name, centers in (("both", tuple(PREFIXES)), *((center, (center,)) for center in PREFIXES))
    for fold in range(5)
}

_LAYOUT = (
    "expected a clone of https://github.com/CAMMA-public/MultiBypass140, with labels/ and "
    "frames/<video>/<video>_00000001.jpg (one per second) in labels/<center>/labels_by70_splits/"
)


def load(data_dir: str | Path, task: str = "phase", split_protocol: str = "both-0") -> SurgicalData:
    """Load MultiBypass140 from a clone of its repository. If frames of videos are missing, `notes` says so.

    Args:
        data_dir: folder of the clone.
        task: "phase" (one of 12 classes per frame) or "step" (one of 46).
        split_protocol: a name of `PROTOCOLS`.

    Raises:
        MissingFileError: a folder or a file with labels is missing, or frames inside a video are missing.
        UserError: the task or the split protocol is unknown. Also if a file with labels is unreadable, refers to code,
            or is not as expected, or if training or validation has no frames.
    """
    protocol = choose_protocol(PROTOCOLS, split_protocol)
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; MultiBypass140 has 'phase' and 'step'")
    field, classes = TASKS[task]
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    by_split: dict[str, list[Sample]] = {split: [] for split in FILES}
    samples: dict[str, list[Sample]] = {}
    cut = []
    for center in protocol["centers"]:
        folder = root / "labels" / center / "labels_by70_splits"
        labels = require_folder(folder / "labels", _LAYOUT)
        frames = folder / "frames"
        if frames.is_symlink() and not frames.exists():
            raise MissingFileError(
                f"{frames} is a link to {os.readlink(frames)}, which does not exist; link it to the folder with the "
                "extracted frames, such as datasets/MultiBypass140/BernBypass70/frames"
            )
        require_folder(frames, _LAYOUT)
        for split, file in FILES.items():
            path = labels / file.format(protocol["fold"])
            for video, of_frames in _read_labels(path, field, len(classes), PREFIXES[center]).items():
                if not (found := _frames_of(frames / video)):
                    continue
                samples[video], short = pair_frames(of_frames, found, 1, video, frames / video)
                by_split[split] += samples[video]
                cut += short
    require_splits(by_split, ("train", "validation"), root, _LAYOUT)
    notes = cut_note(cut) + (absent_note(samples, PHASES) if task == "phase" else [])
    videos = [f"{PREFIXES[center]}{i:02d}" for center in protocol["centers"] for i in range(1, NUM_VIDEOS + 1)]
    return SurgicalData(
        f"multibypass140-{task}",
        "phase-recognition",
        classes,
        palette(len(classes)),
        build_splits(by_split),
        problem_type=SINGLE,
        frames_per_second=1.0,
        notes=(count_note(samples, videos), *notes),
        videos_are_public=True,
        split_protocol=f"official, fold {protocol['fold']} of {' and '.join(protocol['centers'])}",
    )


def _read_labels(path: Path, field: str, num_classes: int, prefix: str) -> dict[str, dict[int, int]]:
    """Return the labels of each video by frame number, counted from 0 at one frame per second."""
    if not path.is_file():
        raise MissingFileError(f"there is no {path}; {_LAYOUT}")
    content = read_plain_pickle(path)
    try:
        labels = {
            video: {row["Original_frame_id"]: _label(row, video, field, num_classes) for row in rows}
            for video, rows in content.items()
        }
        if not labels or not all(video.startswith(prefix) and video[len(prefix) :].isdecimal() for video in labels):
            raise ValueError(
                f"its videos are {named(labels, 3) or 'none'}, expected {prefix}01 to {prefix}{NUM_VIDEOS}"
            )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not as expected ({error!r}); expected a dict of videos whose values are lists of dicts with "
            f"Frame_id, Original_frame_id, and {field}. Get the file from the repository"
        ) from error
    return labels


def _label(row: Mapping, video: str, field: str, num_classes: int) -> int:
    number, label = row["Original_frame_id"], row[field]
    if row["Frame_id"] != f"{video}_{number + 1:08d}":
        raise ValueError(f"frame {number} of {video} has the Frame_id {row['Frame_id']!r}")
    if type(label) is not int or not 0 <= label < num_classes:
        raise ValueError(f"{field} of {row['Frame_id']} is {label!r}, expected 0 to {num_classes - 1}")
    return label


def _frames_of(folder: Path) -> dict[int, Path]:
    """Return the frames of a video by number from 0, or an empty dict if the folder does not exist."""
    if not folder.is_dir():
        return {}
    paths = [path for path in folder.iterdir() if path.suffix == ".jpg" and not path.name.startswith(".")]
    start = f"{folder.name}_"
    for path in paths:
        if not path.stem.startswith(start) or not path.stem[len(start) :].isdecimal():
            raise UserError(
                f"{path}: expected {start}00000001.jpg, ..., as util/extract_frames.py of the repository writes them; "
                "extract the frames with it"
            )
    return {int(path.stem[len(start) :]) - 1: path for path in paths}
