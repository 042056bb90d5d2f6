"""Cholec80: 80 videos of laparoscopic cholecystectomy with surgical phases and the presence of tools.

Citation: Twinanda et al., "EndoNet: A Deep Architecture for Recognition Tasks on Laparoscopic Videos", IEEE
Transactions on Medical Imaging 36(1), 2017, arXiv 1602.03012. Made by CAMMA, University of Strasbourg.
License: CC BY-NC-SA 4.0 (non-commercial, attribution, share alike).
Request: https://camma.unistra.fr/datasets

Layout of the official archive, limited to the files that this module reads:

    videos/videoNN.mp4                      01 to 80, 25 frames per second
    phase_annotations/videoNN-phase.txt     tab-separated, header "Frame Phase", a row for every frame, from 0
    tool_annotations/videoNN-tool.txt       header "Frame Grasper Bipolar ...", a row for every 25th frame, 0 or 1
    frames/videoNN/000000.jpg, ...          one per second; extracted at the first call (about 20 GB in full size),
                                            unless another tool extracted them

Classes: the phases are `PHASES`, in their usual order. Some videos lack a phase (video 13 has no Preparation). The
order of the last three phases can vary, so phase ids do not always increase. The tools are `TOOLS`. Any number of
tools can be present.

Splits, with the names of Funke et al. 2023, "Metrics Matter in Surgical Phase Recognition" (arXiv 2305.13961):

    32/8/40     train 1-32, validation 33-40, test 41-80 (default: comparable with 40/40, with a validation split)
    40/8/32     train 1-40, validation 41-48, test 49-80
    40/40       train 1-40, test 41-80 (without a validation split, so nothing can select a checkpoint)
"""

from pathlib import Path

from ...errors import UserError
from ..annotations import absent_note, class_id, official_videos
from ..base import MULTI, SINGLE, SurgicalData, build_splits
from ..colors import palette
from ..names import require_folder
from ..splits import choose_protocol

PHASES = (
    "Preparation",
    "CalotTriangleDissection",
    "ClippingCutting",
    "GallbladderDissection",
    "GallbladderPackaging",
    "CleaningCoagulation",
    "GallbladderRetraction",
)
TOOLS = ("Grasper", "Bipolar", "Hook", "Scissors", "Clipper", "Irrigator", "SpecimenBag")
FRAME_RATE = 25
VIDEOS = tuple(f"video{number:02d}" for number in range(1, 81))
SPLITS = {
    "32/8/40": {"train": VIDEOS[:32], "validation": VIDEOS[32:40], "test": VIDEOS[40:]},
    "40/8/32": {"train": VIDEOS[:40], "validation": VIDEOS[40:48], "test": VIDEOS[48:]},
    "40/40": {"train": VIDEOS[:40], "test": VIDEOS[40:]},
}
_VIDEOS_OF = {
    "32/8/40": "train 1-32, validation 33-40, test 41-80",
    "40/8/32": "train 1-40, validation 41-48, test 49-80",
    "40/40": "train 1-40, test 41-80",
}

_LAYOUT = (
    "expected the official Cholec80 layout: videos/videoNN.mp4, phase_annotations/videoNN-phase.txt, "
    "tool_annotations/videoNN-tool.txt; request the dataset at https://camma.unistra.fr/datasets"
)


def load(
    data_dir: str | Path,
    task: str = "phase",
    split_protocol: str = "32/8/40",
    cache_dir: str | Path | None = None,
    max_side: int | None = None,
) -> SurgicalData:
    """Load Cholec80 from a folder in the official layout. If it holds only some videos, `notes` says so.

    Args:
        data_dir: folder with `videos/` and the annotations.
        task: "phase" (one of 7 classes per frame) or "tools" (any of 7 classes per frame).
        split_protocol: one of `SPLITS`.
        cache_dir: folder with one subfolder of frames per video. Missing frames are extracted into it, and an
            interrupted extraction resumes at the next call. None means `data_dir/frames`.
        max_side: largest side of extracted frames in pixels, or None for no limit.

    Raises:
        MissingFileError: a folder is missing or empty, or a video has no annotation.
        UserError: the task or the split protocol is unknown, a video is broken, or an annotation is unreadable. Also
            if the lengths of a video and its annotation differ by more than a second, or training or validation has no
            videos.
    """
    videos_of = choose_protocol(SPLITS, split_protocol)
    if task not in ("phase", "tools"):
        raise UserError(f"unknown task {task!r}; Cholec80 has 'phase' and 'tools'")
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    folder = f"{task.removesuffix('s')}_annotations"
    require_folder(root / folder, _LAYOUT)
    names = PHASES if task == "phase" else TOOLS
    by_split, samples, notes = official_videos(
        root,
        videos_of,
        lambda name: root / folder / f"{name}-{task.removesuffix('s')}.txt",
        num_values=1 if task == "phase" else len(TOOLS),
        parse=_phase if task == "phase" else _tools,
        rates=(FRAME_RATE,),
        cache_dir=cache_dir,
        max_side=max_side,
        layout=_LAYOUT,
    )
    if task == "phase":
        notes += absent_note(samples, PHASES)
    if "validation" not in videos_of:
        notes.append(
            f"The split protocol {split_protocol} has no validation videos, so no checkpoint can be selected. "
            "32/8/40 and 40/8/32 have validation videos."
        )
    return SurgicalData(
        f"cholec80-{task}",
        "phase-recognition" if task == "phase" else "image-classification",
        names,
        palette(len(names)),
        build_splits(by_split),
        problem_type=SINGLE if task == "phase" else MULTI,
        frames_per_second=1.0,
        notes=tuple(notes),
        videos_are_public=True,
        split_protocol=f"{split_protocol} ({_VIDEOS_OF[split_protocol]})",
    )


def _phase(values: tuple[str, ...], path: Path) -> int:
    return class_id(values[0], PHASES, 0, path)


def _tools(values: tuple[str, ...], path: Path) -> tuple[float, ...]:
    if not set(values) <= {"0", "1"}:
        raise UserError(f"{path}: the presence of a tool must be 0 or 1, found {' '.join(values)}")
    return tuple(map(float, values))
