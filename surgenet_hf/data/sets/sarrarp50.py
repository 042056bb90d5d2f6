"""SAR-RARP50: robot-assisted radical prostatectomy, suturing, with masks of instruments and with gestures.

Citation: Psychogyios et al., "SAR-RARP50: Segmentation of surgical instrumentation and Action Recognition on
Robot-Assisted Radical Prostatectomy Challenge", arXiv 2401.00496. EndoVis challenge of MICCAI 2022.
License: CC BY-NC-SA 4.0 (non-commercial, attribution, share alike).
Request: https://www.synapse.org/#!Synapse:syn27618412/wiki/ (free, with a Synapse account)

Layout, limited to the files that this module reads. The folders of the videos are in `data_dir`, or in subfolders such
as `train1`, `train2`, and `test`:

    train1/video_2/
        video_left.avi                  60 frames per second
        rgb/000000000.png, ...          optional: frames, named by the number of the frame in the video. The dataset's
                                        scripts extract every 6th frame into `rgb` or `frames`
        segmentation/000000000.png      a mask for every 60th frame, the class id as gray value
        action_discrete.txt             rows "frame,gesture", for every 6th frame
    frames_1hz/video_02/000000.jpg      one per second, for masks; extracted at the first call if frames are missing
    frames_10hz/video_02/000000.jpg     ten per second, for gestures; likewise (more than 130,000 frames)

Classes: background and the nine `LABELS`, with ids 0 to 9. Gestures: the eight `GESTURES`, numbered 0 to 7. The
dataset's own description numbers them 1 to 8, but the challenge's evaluation code and public code for the dataset use
0 to 7, so the number 8 is refused.

Splits: by operation. The test set is that of the challenge.

    27/13/10    train: the 27 operations of the second release, validation: the 13 of the first, test 41-50 (default)
    40/10       train 1-40, test 41-50 (the challenge's, without a validation split to select a checkpoint)

The operations 11, 15, 17, and 29 have two videos each, such as `video_11_1` and `video_11_2`.
"""

import re
from pathlib import Path

from ...errors import MissingFileError, UserError
from ..annotations import absent_note, class_id, count_note, cut_note, pair_frames, read_label_file
from ..base import SINGLE, Sample, SurgicalData, build_splits
from ..colors import palette
from ..frame_folders import FRAME_SUFFIXES, find_frames
from ..masks import check_ids, lookup_table
from ..names import frame_number, named, require_folder
from ..splits import choose_protocol, require_splits
from ..video import frame_rate

LABELS = (
    "background",
    "tool clasper",
    "tool wrist",
    "tool shaft",
    "suturing needle",
    "thread",
    "suction tool",
    "needle holder",
    "clamps",
    "catheter",
)
COLORS = (
    (0, 0, 0),
    (0, 255, 255),
    (125, 255, 12),
    (0, 0, 255),
    (255, 255, 125),
    (187, 155, 25),
    (123, 15, 175),
    (245, 166, 35),
    (255, 0, 0),
    (155, 155, 155),
)
GESTURES = (
    "other",
    "picking up the needle",
    "positioning the needle tip",
    "pushing the needle through the tissue",
    "pulling the needle out of the tissue",
    "tying a knot",
    "cutting the suture",
    "returning or dropping the needle",
)
BACKGROUND_ID = 0
FRAME_RATE = 60
RATES = {"segmentation": 1, "gestures": 10}  # labels per second

FIRST_RELEASE = (2, 4, 5, 6, 8, 9, 10, 11, 12, 15, 16, 17, 19)
TEST = tuple(range(41, 51))
OPERATIONS = range(1, 51)
SPLITS = {
    "27/13/10": {
        "train": tuple(number for number in range(1, 41) if number not in FIRST_RELEASE),
        "validation": FIRST_RELEASE,
        "test": TEST,
    },
    "40/10": {"train": tuple(range(1, 41)), "test": TEST},
}
_VIDEOS_OF = {
    "27/13/10": "train second release, validation first release, test 41-50",
    "40/10": "train 1-40, test 41-50",
}

_LAYOUT = (
    "expected the layout of SAR-RARP50: train1/, train2/, and test/ with video_<number>/ that contain video_left.avi, "
    "segmentation/, and action_discrete.txt; request the dataset at "
    "https://www.synapse.org/#!Synapse:syn27618412/wiki/"
)


def load(
    data_dir: str | Path,
    task: str = "segmentation",
    split_protocol: str = "27/13/10",
    cache_dir: str | Path | None = None,
    max_side: int | None = None,
) -> SurgicalData:
    """Load SAR-RARP50. If the folder holds only some operations, `notes` says so.

    Args:
        data_dir: folder with the folders of the videos, or with subfolders that contain them.
        task: "segmentation" (masks, one per second) or "gestures" (one of 8 classes, ten frames per second).
        split_protocol: one of `SPLITS`.
        cache_dir: folder for frames that are extracted from videos. None means `data_dir`.
        max_side: largest side of extracted frames in pixels, or None for no limit. Only for gestures.

    Raises:
        MissingFileError: a folder is missing or empty, or a video has neither labels nor frames.
        UserError: the task or the split protocol is unknown, a folder has an unexpected name, or a file is unreadable.
            Also if labels do not have the expected rate, or training or validation has no videos.
    """
    videos_of = choose_protocol(SPLITS, split_protocol)
    if task not in RATES:
        raise UserError(f"unknown task {task!r}; SAR-RARP50 has 'segmentation' and 'gestures'")
    if task == "segmentation" and max_side is not None:
        raise UserError("max_side is only for gestures, because masks have the size of the video; omit it")
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    folders = _find_videos(root)
    labels = {name: (_masks if task == "segmentation" else _gestures)(folder) for name, folder in folders.items()}
    rate = RATES[task]
    frames_dir = Path(cache_dir or root).absolute() / f"frames_{rate}hz"
    frames = _find_frames(folders, labels, frames_dir, rate, max_side)

    samples: dict[str, list[Sample]] = {}  # by operation
    cut = []
    for name, folder in folders.items():
        paired, short = pair_frames(labels[name], frames[name], rate, name, folder)
        samples.setdefault(name[: len("video_00")], []).extend(paired)
        cut += short
    by_split = {
        split: [sample for number in numbers for sample in samples.get(f"video_{number:02d}", [])]
        for split, numbers in videos_of.items()
    }
    require_splits(by_split, [split for split in videos_of if split != "test"], root, _LAYOUT)
    notes = [count_note(samples, [f"video_{number:02d}" for number in OPERATIONS], rate), *cut_note(cut)]
    if task == "segmentation":
        notes += check_ids([sample for part in by_split.values() for sample in part], range(len(LABELS)))
    else:
        notes += absent_note(samples, GESTURES)
    if "validation" not in videos_of:
        notes.append(
            f"The split protocol {split_protocol} has no validation videos, so no checkpoint can be selected."
        )
    described = f"{split_protocol} ({_VIDEOS_OF[split_protocol]})"
    if task == "segmentation":
        return SurgicalData(
            "sarrarp50-segmentation",
            "semantic-segmentation",
            LABELS,
            COLORS,
            build_splits(by_split, lookup_table({i: i for i in range(len(LABELS))})),
            background_id=BACKGROUND_ID,
            notes=tuple(notes),
            videos_are_public=True,
            split_protocol=described,
        )
    return SurgicalData(
        "sarrarp50-gestures",
        "phase-recognition",
        GESTURES,
        palette(len(GESTURES)),
        build_splits(by_split),
        problem_type=SINGLE,
        frames_per_second=float(rate),
        notes=tuple(notes),
        videos_are_public=True,
        split_protocol=described,
    )


def _find_videos(root: Path) -> dict[str, Path]:
    """Return the folder of each video by name, such as "video_02" or "video_11_1"."""
    folders: dict[str, Path] = {}
    for path in sorted([*root.glob("video_*/"), *root.glob("*/video_*/")]):
        if path.parent.name in ("frames_1hz", "frames_10hz"):
            continue
        match = re.fullmatch(r"video_(\d+)(_\d+)?", path.name)
        if not match or frame_number(match[1], path) not in OPERATIONS:
            raise UserError(f"{path}: expected video_<number>, with a number from 1 to 50; {_LAYOUT}")
        number, name = int(match[1]), f"video_{int(match[1]):02d}{match[2] or ''}"
        if path.parent.name.startswith(("train", "test")) and (number in TEST) != path.parent.name.startswith("test"):
            raise UserError(
                f"{path} is in the wrong folder: the operations 41 to 50 are the test set, and 1 to 40 the training "
                "set; move it to match the official split"
            )
        if name in folders:
            raise UserError(f"{folders[name]} and {path} are the same video; remove one, or move it out of {root}")
        folders[name] = path
    if not folders:
        found = named(sorted(path.name for path in root.iterdir()))
        raise MissingFileError(f"{root} contains no folder video_<number> (it contains {found}); {_LAYOUT}")
    return folders


def _masks(folder: Path) -> dict[int, Path]:
    """Return the masks of a video by frame number."""
    masks = _numbered(require_folder(folder / "segmentation", _LAYOUT))
    if not masks or (odd := [number for number in masks if number % FRAME_RATE]):
        found = f"the numbers {named(sorted(odd), 3)}" if masks else "none"
        raise UserError(f"{folder / 'segmentation'}: expected a mask for every 60th frame, found {found}; {_LAYOUT}")
    return masks


def _gestures(folder: Path) -> dict[int, int]:
    """Return the gestures of a video by frame number."""
    path = folder / "action_discrete.txt"
    if not path.is_file():
        raise MissingFileError(f"{folder.name} has no gestures: expected {path}; {_LAYOUT}")
    file, step = read_label_file(path), FRAME_RATE // RATES["gestures"]
    if file.frames[0] != 0 or (len(file.frames) > 1 and file.step != step):
        raise UserError(
            f"{path}: expected a row for every {step}th frame, from 0, found the frames "
            f"{named(map(str, file.frames), 3)}; use the file of the dataset"
        )
    return {
        number: class_id(values[0], GESTURES, 0, path) for number, values in zip(file.frames, file.values, strict=True)
    }


def _find_frames(
    folders: dict[str, Path], labels: dict[str, dict], frames_dir: Path, rate: int, max_side: int | None
) -> dict[str, dict[int, Path]]:
    """Return the frames of each video by frame number, and extract them if the folder of the video lacks some."""
    frames: dict[str, dict[int, Path]] = {}
    videos: dict[str, Path] = {}
    for name, folder in folders.items():
        frames[name] = {}
        for subfolder in ("rgb", "frames"):
            if (folder / subfolder).is_dir() and not frames[name]:
                frames[name] = _numbered(folder / subfolder)
        if not labels[name].keys() <= frames[name].keys() and (folder / "video_left.avi").is_file():
            videos[name] = folder / "video_left.avi"
            found = frame_rate(videos[name])
            if abs(found / FRAME_RATE - 1) > 1e-4:  # later labels would belong to other frames
                raise UserError(
                    f"{videos[name]} has {found:g} frames per second, and the labels count frames at {FRAME_RATE}; "
                    f"use the video of the dataset, or extract its frames to {folder / 'rgb'}, with the frame number "
                    "as name"
                )
        elif not frames[name]:
            raise MissingFileError(f"{folder} contains neither video_left.avi nor frames in rgb/; {_LAYOUT}")
    for name, paths in find_frames(list(videos), videos, frames_dir, max_side, float(rate)).items():
        frames[name] = {k * FRAME_RATE // rate: path for k, path in enumerate(paths)}
    return frames


def _numbered(folder: Path) -> dict[int, Path]:
    """Return the image files in a folder whose name is a number, by number."""
    return {
        frame_number(path.stem, path): path
        for path in folder.iterdir()
        if path.suffix.lower() in FRAME_SUFFIXES and path.stem.isdecimal()
    }
