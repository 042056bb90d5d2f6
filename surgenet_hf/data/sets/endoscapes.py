"""Endoscapes-Seg50: frames of laparoscopic cholecystectomy, with masks of the structures around Calot's triangle.

Citation: Murali et al., "The Endoscapes Dataset for Surgical Scene Segmentation, Object Detection, and Critical View
of Safety Assessment: Official Splits and Benchmark", arXiv 2312.12429. Made by CAMMA, University of Strasbourg.
License: CC BY-NC-SA 4.0 (non-commercial, attribution, share alike).
Download: https://github.com/CAMMA-public/Endoscapes

Layout of the official Endoscapes2023 archive, limited to the files that this module reads:

    train/ val/ test/               <video>_<frame>.jpg, 854x480, all frames with CVS labels
    train_seg/ val_seg/ test_seg/   symbolic links to the frames that have masks
    semseg/                         <video>_<frame>.png, 854x480, the class id in each of three equal channels

Classes: 0 background (`background_id`), 1 cystic plate, 2 hepatocystic triangle, 3 cystic artery, 4 cystic duct,
5 gallbladder, 6 tool; 255 is ignored.
Splits: videos 1 to 120 train, 121 to 161 validation, 162 to 201 test. Seg50 has 493 frames, 30 s apart, from 30, 10,
and 10 videos.

Known issues: where symbolic links are not supported, as on Windows, those in `*_seg` are unpacked as text files of
about 20 bytes. Frames are therefore read from `train/`, `val/`, and `test/` if they exist there. One public mask,
153_32700, contains pixels with the undefined id 7. Undefined ids are ignored, and `notes` states how many pixels have
them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import MissingFileError, UserError
from ..base import IGNORE_INDEX, Sample, SurgicalData, build_splits
from ..masks import count_values, lookup_table, stray_notes
from ..names import frame_number, require_folder
from ..splits import require_splits

LABELS = (
    "background",
    "cystic plate",
    "hepatocystic triangle",
    "cystic artery",
    "cystic duct",
    "gallbladder",
    "tool",
)
COLORS = (
    (127, 127, 127),
    (230, 159, 0),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (86, 180, 233),
)
NUM_FRAMES = 493
# split: (folder, first video, last video)
SPLITS = {"train": ("train", 1, 120), "validation": ("val", 121, 161), "test": ("test", 162, 201)}
SPLIT_PROTOCOL = "official (train 1-120, validation 121-161, test 162-201)"

SOURCE = "https://github.com/CAMMA-public/Endoscapes (free)"
_LAYOUT = (
    "expected the official Endoscapes2023 layout: train/, val/, test/ with <video>_<frame>.jpg and semseg/ with "
    "<video>_<frame>.png"
    f". Get it from {SOURCE}"
)


def load(data_dir: str | Path) -> SurgicalData:
    """Load Endoscapes-Seg50 from a folder in the official layout.

    `notes` of the result states how many of the official frames were found.

    Args:
        data_dir: folder of the unpacked archive.

    Raises:
        MissingFileError: a folder is missing or empty, a mask has no frame, or a frame in `*_seg` has no mask.
        UserError: a frame is in the folder of another split, a link was unpacked as text, or a file is unreadable.
            Also raised if a file name is invalid, a mask and its frame differ in size, or the train or validation
            split has no frames.
    """
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    masks = sorted(_files(require_folder(root / "semseg", _LAYOUT), ".png"), key=lambda file: file[1:])
    if not masks:
        raise MissingFileError(f"{root / 'semseg'} contains no mask <video>_<frame>.png; {_LAYOUT}")
    frames = _find_frames(root, {path.stem for path, _, _ in masks})

    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for path, video, frame in masks:
        split = split_of(path, video)
        if path.stem not in frames:
            folder = SPLITS[split][0]
            raise MissingFileError(
                f"the mask {path} has no frame: expected {root / folder / path.stem}.jpg (or in {folder}_seg/); "
                "unpack the frames of the archive too, or remove the mask"
            )
        samples[split].append(Sample(frames[path.stem], path, str(video), frame))
    numbers = {split: len(samples[split]) for split in SPLITS}
    require_splits(samples, ("train", "validation"), root, _LAYOUT)
    every = [sample for split in SPLITS for sample in samples[split]]
    names = [sample.target.name for sample in every]
    strays = stray_notes(count_values(every), names, range(len(LABELS), IGNORE_INDEX), "Id {} is not a class")
    notes = (_count_note(numbers), *strays)
    table = lookup_table({i: i for i in range(len(LABELS))})
    splits = build_splits(samples, table)
    return SurgicalData(
        "endoscapes",
        "semantic-segmentation",
        LABELS,
        COLORS,
        splits,
        notes=notes,
        videos_are_public=True,
        split_protocol=SPLIT_PROTOCOL,
        background_id=0,
    )


def _files(folder: Path, suffix: str) -> Iterator[tuple[Path, int, int]]:
    """Yield (path, video, frame) for each file in a folder that has the suffix and is not hidden."""
    for path in folder.iterdir():
        if path.suffix.lower() != suffix or path.name.startswith("."):
            continue
        match = re.fullmatch(r"(\d+)_(\d+)", path.stem)
        if not match:
            raise UserError(f"{path} is not named <video>_<frame>{suffix}; {_LAYOUT}")
        yield path, int(match[1]), frame_number(match[2], path)


def split_of(path: Path, video: int) -> str:
    for split, (_, first, last) in SPLITS.items():
        if first <= video <= last:
            return split
    raise UserError(f"{path}: there is no video {video}; Endoscapes has videos 1 to 201")


def _find_frames(root: Path, masks: set[str]) -> dict[str, Path]:
    """Return the paths of the frames by stem. Masks without a frame are left out.

    Args:
        root: folder of the dataset.
        masks: stems of the masks.
    """
    frames = {}
    for folder, *_ in SPLITS.values():
        for name in (f"{folder}_seg", folder):  # in this order, so that files replace links
            if not (root / name).is_dir():
                continue
            for path, video, _ in _files(root / name, ".jpg"):
                right = SPLITS[split_of(path, video)][0]
                if right != folder:
                    raise UserError(
                        f"{path} is in the wrong split: video {video} belongs to {right}/; move it "
                        "there to match the official split"
                    )
                if path.stem in masks:
                    frames[path.stem] = path
                elif name != folder:
                    raise MissingFileError(
                        f"the frame {path} has no mask: expected {root / 'semseg' / path.stem}.png; unpack all of "
                        "semseg/, or remove the frame"
                    )
    for path in frames.values():
        if path.parent.name.endswith("_seg") and not _is_jpeg(path):
            raise UserError(
                f"{path} is a symbolic link that was not unpacked correctly. Put the frame itself into "
                f"{root / path.parent.name.removesuffix('_seg')}/, or unpack the archive where links are supported"
            )
    return frames


def _is_jpeg(path: Path) -> bool:
    if not path.exists():  # a broken link
        return False
    with path.open("rb") as file:
        return file.read(2) == b"\xff\xd8"


def _count_note(numbers: dict[str, int]) -> str:
    total = sum(numbers.values())
    split = ", ".join(f"{number} {name}" for name, number in numbers.items())
    if total == NUM_FRAMES:
        return f"Found all {NUM_FRAMES} official frames ({split})."
    if total < NUM_FRAMES:
        return (
            f"Found {total} of the official {NUM_FRAMES} frames ({split}). Results are not comparable with those on "
            "the full dataset."
        )
    return (
        f"Found {total} frames ({split}), but the official dataset has {NUM_FRAMES}. Results are not comparable with "
        "those on the official dataset."
    )
