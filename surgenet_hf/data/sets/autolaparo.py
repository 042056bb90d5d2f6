"""AutoLaparo, task 1: 21 videos of laparoscopic hysterectomy with surgical phases.

Citation: Wang et al., "AutoLaparo: A New Dataset of Integrated Multi-tasks for Image-guided Surgical Automation in
Laparoscopic Hysterectomy", MICCAI 2022, arXiv 2208.02049.
License: research use. The data and its terms are available on request.
Request: https://autolaparo.github.io

Layout of the official archive, limited to the files that this module reads:

    videos/NN.mp4               01 to 21, 25 frames per second
    labels/label_NN.txt         tab-separated, header "Frame Phase", one row per second, numbered from 1; phases 1 to 7
    frames/NN/000000.jpg, ...   one per second; extracted by the first call, unless another tool extracted them

Label files with one row per video frame are also accepted, and are recognized by their length.

Classes: the phases in `PHASES`, numbered 1 to 7 in the files and 0 to 6 here.
Splits: videos 1 to 10 train, 11 to 14 validation, 15 to 21 test.
"""

from pathlib import Path

from ..annotations import absent_note, class_id, official_videos
from ..base import SINGLE, SurgicalData, build_splits
from ..colors import palette
from ..names import require_folder

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
    "expected the official AutoLaparo layout: videos/NN.mp4 and labels/label_NN.txt; request the dataset at "
    "https://autolaparo.github.io"
)


def load(data_dir: str | Path, cache_dir: str | Path | None = None, max_side: int | None = None) -> SurgicalData:
    """Load AutoLaparo from a folder in the official layout.

    `notes` of the result states how many of the official videos were found.

    Args:
        data_dir: folder with `videos/` and `labels/`.
        cache_dir: folder with one subfolder of frames per video. Missing frames are extracted into it, and an
            interrupted extraction resumes at the next call. None means `data_dir/frames`.
        max_side: maximum length of the longer side of extracted frames in pixels, or None for no limit.

    Raises:
        MissingFileError: a folder is missing or empty, or a video has no labels.
        UserError: a video is broken, labels are unreadable, or the lengths of a video and its labels differ by more
            than a second. Also raised if the train or validation split has no videos.
    """
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    require_folder(root / "labels", _LAYOUT)

    def parse(values: tuple[str, ...], path: Path) -> int:
        return class_id(values[0], PHASES, 1, path)

    by_split, samples, notes = official_videos(
        root,
        SPLITS,
        lambda name: root / "labels" / f"label_{name}.txt",
        num_values=1,
        parse=parse,
        rates=(1, 25),
        cache_dir=cache_dir,
        max_side=max_side,
        layout=_LAYOUT,
    )
    return SurgicalData(
        "autolaparo",
        "phase-recognition",
        PHASES,
        palette(len(PHASES)),
        build_splits(by_split),
        problem_type=SINGLE,
        frames_per_second=1.0,
        notes=(*notes, *absent_note(samples, PHASES)),
        videos_are_public=True,
        split_protocol=SPLIT_PROTOCOL,
    )
