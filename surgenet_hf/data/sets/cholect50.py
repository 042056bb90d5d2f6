"""CholecT50: 50 videos of laparoscopic cholecystectomy with action triplets: an instrument, a verb, and a target.

Citation: Nwoye et al., "Rendezvous: Attention Mechanisms for the Recognition of Surgical Action Triplets in Endoscopic
Videos", Medical Image Analysis 78:102433 (2022), arXiv 2109.03223. Splits: Nwoye and Padoy, arXiv 2204.05235.
License: CC BY-NC-SA 4.0 (non-commercial, attribution, share alike).
Request: https://github.com/CAMMA-public/cholect50

Layout of the official archive, limited to the files that this module reads:

    videos/VID01/000000.png, ...    frames, one per second, named by the second
    labels/VID01.json               `annotations`: {"0": rows of frame 0, ...}; `categories`: names of the classes

A frame has a row of 15 numbers for each triplet: triplet, instrument, its score and box (5), verb, target, its score
and box (5), and phase. -1 means none. The boxes, which most videos do not have, are not read.

Classes: six instruments (`TOOLS`), ten verbs (`VERBS`), fifteen targets (`TARGETS`), and 100 triplets (`TRIPLETS`), of
which a frame can have any number, and seven phases (`PHASES`). The verb and target "null" mark an instrument that does
nothing. Metrics of the triplets include the six triplets with them, as ivtmetrics does by default.

Splits, by video number:

    rendezvous                  35 train, 5 validation, 10 test, as in the Rendezvous paper (default)
    crossval-1 to crossval-5    the official cross-validation: fold k tests. As in the authors' loader, the last five
                                videos of the other folds, in their order, validate
    challenge                   40 train, 5 validation, 5 test, as in the CholecTriplet challenges

Overlap: 45 videos are from Cholec80, with the same numbers. The videos 92, 96, 103, 110, and 111 are not. Most
SurgeNet backbones were pretrained on 76 of the 80 videos of Cholec80. Mention this with any results.
"""

import json
from pathlib import Path

from ...errors import MissingFileError, UserError
from ..annotations import absent_note, count_note, cut_note, pair_frames
from ..base import MULTI, SINGLE, Sample, SurgicalData, build_splits
from ..colors import palette
from ..labels import read_text
from ..names import frame_number, named, require_folder
from ..splits import choose_protocol, require_splits

TOOLS = ("grasper", "bipolar", "hook", "scissors", "clipper", "irrigator")
VERBS = (
    "grasp",
    "retract",
    "dissect",
    "coagulate",
    "clip",
    "cut",
    "aspirate",
    "irrigate",
    "pack",
    "null_verb",
)
TARGETS = (
    "gallbladder",
    "cystic_plate",
    "cystic_duct",
    "cystic_artery",
    "cystic_pedicle",
    "blood_vessel",
    "fluid",
    "abdominal_wall_cavity",
    "liver",
    "adhesion",
    "omentum",
    "peritoneum",
    "gut",
    "specimen_bag",
    "null_target",
)
PHASES = (
    "preparation",
    "carlot-triangle-dissection",
    "clipping-and-cutting",
    "gallbladder-dissection",
    "gallbladder-packaging",
    "cleaning-and-coagulation",
    "gallbladder-extraction",
)
# The targets of the triplets of each instrument and verb, in the order of the ids of the triplets.
_PAIRS = (
    (0, 2, (1, 0, 10)),
    (0, 0, (3, 2, 4, 1, 0, 12, 8, 10, 11, 13)),
    (0, 8, (0,)),
    (0, 1, (2, 4, 1, 0, 12, 8, 10, 11)),
    (1, 3, (7, 5, 3, 2, 4, 1, 0, 8, 10, 11)),
    (1, 2, (9, 3, 2, 1, 0, 10)),
    (1, 0, (1, 8, 13)),
    (1, 1, (2, 4, 0, 8, 10)),
    (2, 3, (5, 3, 2, 4, 1, 0, 8, 10)),
    (2, 5, (5, 11)),
    (2, 2, (5, 3, 2, 1, 0, 10, 11)),
    (2, 1, (0, 8)),
    (3, 3, (10,)),
    (3, 5, (9, 5, 3, 2, 1, 8, 10, 11)),
    (3, 2, (1, 0, 10)),
    (4, 4, (5, 3, 2, 4, 1)),
    (5, 6, (6,)),
    (5, 2, (2, 4, 1, 0, 10)),
    (5, 7, (7, 4, 8)),
    (5, 1, (0, 8, 10)),
    *((tool, 9, (14,)) for tool in range(6)),
)
TRIPLET_IDS = tuple((tool, verb, target) for tool, verb, targets in _PAIRS for target in targets)
TRIPLETS = tuple(f"{TOOLS[tool]},{VERBS[verb]},{TARGETS[target]}" for tool, verb, target in TRIPLET_IDS)

# {task: (its name in `categories`, position in a row, classes)}
TASKS = {
    "triplets": ("triplet", 0, TRIPLETS),
    "tools": ("instrument", 1, TOOLS),
    "verbs": ("verb", 7, VERBS),
    "targets": ("target", 8, TARGETS),
    "phase": ("phase", 14, PHASES),
}
ROW_LENGTH = 15

FOLDS = (
    (79, 2, 51, 6, 25, 14, 66, 23, 50, 111),
    (80, 32, 5, 15, 40, 47, 26, 48, 70, 96),
    (31, 57, 36, 18, 52, 68, 10, 8, 73, 103),
    (42, 29, 60, 27, 65, 75, 22, 49, 12, 110),
    (78, 43, 62, 35, 74, 1, 56, 4, 13, 92),
)
VIDEOS = tuple(sorted(number for fold in FOLDS for number in fold))


def _protocol(validation: tuple[int, ...], test: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    train = tuple(number for number in VIDEOS if number not in {*validation, *test})
    return {"train": train, "validation": validation, "test": test}


SPLITS = {
    "rendezvous": _protocol((8, 12, 29, 50, 78), (6, 51, 10, 73, 14, 74, 32, 80, 42, 111)),
    **{f"crossval-{k}": _protocol(FOLDS[3 if k == 5 else 4][-5:], FOLDS[k - 1]) for k in range(1, 6)},
    "challenge": _protocol((5, 18, 36, 65, 74), (92, 96, 103, 110, 111)),
}

_LAYOUT = (
    "expected the official CholecT50 layout: videos/VIDnn/000000.png, one per second, and labels/VIDnn.json; request "
    "the dataset at https://github.com/CAMMA-public/cholect50"
)


def load(data_dir: str | Path, task: str = "triplets", split_protocol: str = "rendezvous") -> SurgicalData:
    """Load CholecT50 from a folder in the official layout. If it holds only some videos, `notes` says so.

    Args:
        data_dir: folder with `videos/` and `labels/`.
        task: "triplets", "tools", "verbs", or "targets" (any number of classes per frame), or "phase" (one per frame).
        split_protocol: one of `SPLITS`.

    Raises:
        MissingFileError: a folder is missing or empty, a video has no labels, or frames inside a video are missing.
        UserError: the task or the split protocol is unknown, or labels are not as expected. Also if training or
            validation has no videos.
    """
    videos_of = choose_protocol(SPLITS, split_protocol)
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; CholecT50 has {', '.join(map(repr, TASKS))}")
    classes = TASKS[task][2]
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    require_folder(root / "labels", _LAYOUT)
    require_folder(root / "videos", _LAYOUT)
    samples: dict[str, list[Sample]] = {}
    notes, cut = [], []
    for name in (f"VID{number:02d}" for number in VIDEOS):
        frames = _frames(root / "videos" / name)
        if not frames:
            continue
        labels, found = _read_labels(root / "labels" / f"{name}.json", task)
        samples[name], short = pair_frames(labels, frames, 1, name, root / "videos" / name)
        notes += found
        cut += short
    by_split = {
        split: [row for number in numbers for row in samples.get(f"VID{number:02d}", [])]
        for split, numbers in videos_of.items()
    }
    require_splits(by_split, ("train", "validation"), root, _LAYOUT)
    if task == "phase":
        notes += absent_note(samples, PHASES)
    sizes = ", ".join(f"{len(numbers)} {split}" for split, numbers in videos_of.items())
    return SurgicalData(
        f"cholect50-{task}",
        "phase-recognition" if task == "phase" else "image-classification",
        classes,
        palette(len(classes)),
        build_splits(by_split),
        problem_type=SINGLE if task == "phase" else MULTI,
        frames_per_second=1.0,
        notes=(count_note(samples, [f"VID{number:02d}" for number in VIDEOS]), *cut_note(cut), *notes),
        videos_are_public=True,
        split_protocol=f"{split_protocol} ({sizes})",
    )


def _frames(folder: Path) -> dict[int, Path]:
    """Return the frames of a video by number, or an empty dict if the folder does not exist."""
    if not folder.is_dir():
        return {}
    return {frame_number(path.stem, path): path for path in folder.glob("*.png") if path.stem.isdecimal()}


def _read_labels(path: Path, task: str) -> tuple[dict, list[str]]:
    """Return the labels of a video by frame number, and notes.

    For the phase, a label is a class id, and frames without a phase are left out. For other tasks, it has a 1.0 for
    each class that is present.
    """
    category, position, classes = TASKS[task]
    if not path.is_file():
        raise MissingFileError(f"video {path.stem} has no labels: expected {path}; {_LAYOUT}")
    try:
        content = json.loads(read_text(path))
        frames = {frame_number(number, path): _rows(rows) for number, rows in content["annotations"].items()}
        ids = {number: {row[position] for row in rows} - {-1} for number, rows in frames.items()}
        names = tuple(content["categories"][category][str(i)] for i in range(len(content["categories"][category])))
        if odd := sorted({i for present in ids.values() for i in present if i not in range(len(classes))}):
            raise ValueError(f"found the {category} {named(odd, 3)}, expected 0 to {len(classes) - 1} or -1")
        if task == "phase" and (odd := [number for number, present in ids.items() if len(present) > 1]):
            raise ValueError(f"frame {odd[0]} has the phases {named(sorted(ids[odd[0]]))}, expected one")
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is malformed ({error!r}); expected `annotations` with rows of {ROW_LENGTH} numbers, and "
            "`categories`. Get the file from the official archive"
        ) from error
    differing = [f"{i} {name}" for i, name in enumerate(names) if i >= len(classes) or name != classes[i]]
    if len(names) != len(classes) or any(name.split(" ", 1)[1] in classes for name in differing):
        raise UserError(
            f"{path}: the {category} classes are not those of CholecT50: found {len(names)}, with "
            f"{named(differing, 3) or 'the same names'}; expected {len(classes)}, {named(classes, 3)}. Get the file "
            "from the official archive"
        )
    other = sum(
        (row[1], row[7], row[8]) != TRIPLET_IDS[row[0]]
        for rows in frames.values()
        for row in rows
        if row[0] in range(len(TRIPLET_IDS))
    )
    notes = []
    if differing:
        notes.append(f"{path.stem}: the names of some {category} classes differ ({named(differing, 3)}).")
    if other:
        notes.append(f"{path.stem}: {other} rows have another instrument, verb, or target than their triplet.")
    if task != "phase":
        vectors = {present: _vector(present, len(classes)) for present in map(frozenset, ids.values())}
        return {number: vectors[frozenset(present)] for number, present in ids.items()}, notes
    labels = {number: present.pop() for number, present in ids.items() if present}
    if len(labels) < len(frames):
        notes.append(f"{path.stem}: {len(frames) - len(labels)} frames without a phase are excluded.")
    return labels, notes


def _rows(rows: list) -> list[tuple[int, ...]]:
    """Return the rows of a frame as integers. Boxes, which are fractions, become 0."""
    for row in rows:
        if len(row) != ROW_LENGTH or any(float(row[i]) != int(row[i]) for i in (0, 1, 7, 8, 14)):
            raise ValueError(f"a row is {row}")
    return [tuple(map(int, row)) for row in rows]


def _vector(present: frozenset[int], num_classes: int) -> tuple[float, ...]:
    return tuple(float(i in present) for i in range(num_classes))
