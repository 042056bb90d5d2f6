"""AutoLaparo, task 1: 21 videos of laparoscopic hysterectomy with surgical phases.

Citation: Wang et al., "AutoLaparo: A New Dataset of Integrated Multi-tasks for Image-guided Surgical Automation in
Laparoscopic Hysterectomy", MICCAI 2022, arXiv 2208.02049.
License: terms that come with the data, on request; for research.
Request: https://autolaparo.github.io

Layout of the official archive, as far as it is read here:

    videos/NN.mp4               01 to 21, 25 frames per second
    labels/label_NN.txt         tab-separated, header "Frame Phase", a row for every second, from 1; phases 1 to 7
    frames/NN/000000.jpg, ...   one per second; extracted at the first call, unless they were extracted by other means

Labels with a row for every frame of the video are recognized by their length.

Classes: the phases are `PHASES`, 1 to 7 in the files, 0 to 6 here.
Splits: videos 1 to 10 train, 11 to 14 validation, 15 to 21 test.
"""

from pathlib import Path

from ...errors import MissingFileError
from ..annotations import absent_note, class_id, count_note, labeled_videos, read_label_file
from ..base import SINGLE, SurgicalData, build_splits
from ..colors import palette
from ..frame_folders import find_videos
from ..names import require_folder
from ..splits import require_splits

PHASES = (
    "Preparation",
    "Dividing Ligament and Peritoneum",
    "Dividing Uterine Vessels and Ligament",
    "Transecting the Vagina",
    "Specimen Removal",
    "Suturing",
    "Washing",
)
VIDEOS = tuple(f"{number:02d}" for number in range(1, 22))
SPLITS = {"train": VIDEOS[:10], "validation": VIDEOS[10:14], "test": VIDEOS[14:]}
SPLIT_PROTOCOL = "official (train 1-10, validation 11-14, test 15-21)"

_LAYOUT = (
    "expected the official AutoLaparo layout: videos/NN.mp4 and labels/label_NN.txt; request it at "
    "https://autolaparo.github.io"
)


def load(data_dir: str | Path, cache_dir: str | Path | None = None, max_side: int | None = None) -> SurgicalData:
    """Load AutoLaparo from a folder in the official layout. If it holds only some videos, `notes` says so.

    Args:
        data_dir: the folder with videos/ and labels/.
        cache_dir: where the frames are, or are extracted to, one folder a video; `data_dir/frames` if None. An
            extraction that was interrupted goes on at the next call.
        max_side: shrink frames to this when extracting them.

    Raises:
        MissingFileError: a missing or empty folder, a video without labels.
        UserError: a broken video, labels that cannot be read or are longer or shorter than their video by more than
            a second, no videos to train on or to validate on.
    """
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    require_folder(root / "labels", _LAYOUT)
    frames_dir = Path(cache_dir).absolute() if cache_dir is not None else root / "frames"
    videos = find_videos(root / "videos")

    labels = {}
    for name in VIDEOS:
        path = root / "labels" / f"label_{name}.txt"
        if path.exists():
            labels[name] = read_label_file(path)
        elif name in videos or (frames_dir / name).is_dir():
            raise MissingFileError(f"video {name} has no labels: expected {path}; {_LAYOUT}")

    def parse(values: tuple[str, ...], path: Path) -> int:
        return class_id(values[0], PHASES, 1, path)

    samples, notes = labeled_videos(labels, videos, frames_dir, parse, lambda name: (1, 25), max_side)
    by_split = {split: [row for name in names for row in samples.get(name, [])] for split, names in SPLITS.items()}
    require_splits(by_split, ("train", "validation"), root, _LAYOUT)

    splits = build_splits(by_split)
    notes = (count_note(samples, VIDEOS), *notes, *absent_note(samples, PHASES))
    return SurgicalData(
        "autolaparo",
        "phase-recognition",
        PHASES,
        palette(len(PHASES)),
        splits,
        problem_type=SINGLE,
        frames_per_second=1.0,
        notes=notes,
        videos_are_public=True,
        split_protocol=SPLIT_PROTOCOL,
    )
