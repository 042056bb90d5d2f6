"""DSAD, the Dresden Surgical Anatomy Dataset: robot-assisted rectal resection, masks of abdominal structures.

Citation: Carstens et al., "The Dresden Surgical Anatomy Dataset for Abdominal Organ Segmentation in Surgical Data
Science", Scientific Data 10:3 (2023), doi 10.1038/s41597-022-01719-2.
License: CC BY 4.0 (attribution).
Download: figshare, article 21702600.

The dataset has 13,195 frames of 32 operations in eleven subsets, one for each structure. A subset labels only its own
structure (config "single_organ"). The frames of the stomach subset also have labels for the other visible structures
(config "multi_organ"). Layout of the archive according to the paper, limited to the files that this module reads:

    <structure>/<operation>/    image23.png, mask23.png: white where the structure is, black elsewhere
    multilabel/<operation>/     image23.png and, for each visible structure, mask23_<structure>.png

The module does not read `anno_1`, `anno_2`, `anno_3`, and `merged`, which hold preliminary masks, or
`weak_labels.csv`.

Classes: 0 background (declared as `background_id`) and the eleven `STRUCTURES` in the paper's alphabetical order. A
pixel that is in two masks, or is neither black nor white, has no label. `notes` counts these pixels.

Splits: `SPLITS`, by operation. Public code for the dataset uses this split and attributes it to Kolbinger et al.
(2023). Whether the paper itself gives a split is not known.
"""

import io
import os
import re
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from PIL import Image as PILImage
from tqdm import tqdm

from ...errors import MissingFileError, UserError
from ..base import IGNORE_INDEX, Sample, SurgicalData, build_splits
from ..colors import palette
from ..images import frame_size, read_mask
from ..masks import count_values, lookup_table, require_pairs
from ..names import frame_number, named, require_folder
from ..splits import require_splits

SOURCE = "figshare article 21702600 (doi 10.1038/s41597-022-01719-2, free)"

STRUCTURES = (
    "abdominal_wall",
    "colon",
    "inferior_mesenteric_artery",
    "intestinal_veins",
    "liver",
    "pancreas",
    "small_intestine",
    "spleen",
    "stomach",
    "ureter",
    "vesicular_glands",
)
LABELS = ("background", *(name.replace("_", " ") for name in STRUCTURES))
COLORS = palette(len(LABELS))
CONFIGS = ("multi_organ", "single_organ")
SPLITS = {
    "train": (1, 4, 5, 6, 8, 9, 10, 12, 15, 16, 17, 19, 22, 23, 24, 25, 27, 28, 29, 30, 31),
    "validation": (3, 21, 26),
    "test": (2, 7, 11, 13, 14, 18, 20, 32),
}
SPLIT_PROTOCOL = "by operation, as in public code on DSAD (21 train, 3 validation, 8 test)"
BACKGROUND_ID = 0
MIN_FRAMES, MIN_OPERATIONS = 1000, 20  # for a complete subset; the paper says "over a thousand" and 20 to 23

_SPLIT_OF = {operation: split for split, operations in SPLITS.items() for operation in operations}
_LAYOUT = (
    "expected the DSAD archive: multilabel/<operation>/ with image23.png and mask23_<structure>.png, and "
    "<structure>/<operation>/ with image23.png and mask23.png"
    f". Get it from {SOURCE}"
)


def load(data_dir: str | Path, config: str = "multi_organ", organ: str | None = None) -> SurgicalData:
    """Load DSAD from the folder of its archive.

    Args:
        data_dir: folder of the archive.
        config: "multi_organ" (background and eleven structures) or "single_organ" (background and `organ`).
        organ: one of `STRUCTURES`, only for "single_organ". The subsets are not combined into one dataset, because
            each shows the other structures without a label.

    Raises:
        MissingFileError: a folder is missing or empty, or a mask has no frame. Also if, in a subset of one structure,
            a frame has no mask.
        UserError: the config, the structure, or an operation is unknown, or a file is unreadable. Also if a mask has
            another size than its frame or holds no class ids, or if training or validation has no frames.
    """
    if config not in CONFIGS:
        raise UserError(f"config={config!r}: expected one of {', '.join(CONFIGS)} (single raters are not supported)")
    if (organ in STRUCTURES) != (config == "single_organ"):
        raise UserError(
            f"organ={organ!r} with config={config!r}: 'single_organ' needs one structure ({', '.join(STRUCTURES)}), "
            "'multi_organ' takes none"
        )
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    splits, notes = _from_single(root / organ) if organ else _from_multi(root / "multilabel")
    require_splits(splits, ("train", "validation"), root, _LAYOUT)
    ids = [BACKGROUND_ID, 1 + STRUCTURES.index(organ)] if organ else range(len(LABELS))
    return SurgicalData(
        "dsad",
        "semantic-segmentation",
        tuple(LABELS[i] for i in ids),
        tuple(COLORS[i] for i in ids),
        splits,
        notes=(_count_note(splits), *notes),
        videos_are_public=True,
        split_protocol=SPLIT_PROTOCOL,
        background_id=BACKGROUND_ID,
    )


def _from_single(folder: Path) -> tuple[DatasetDict, list[str]]:
    images, masks = _files(folder, r"image(\d+)\.png"), _files(folder, r"mask(\d+)\.png")
    names = {"frame": "image", "mask": "mask"}
    require_pairs(
        images, masks, lambda kind, key: f"{names[kind]}{key[1]}.png in the same folder", "unpack the archive again"
    )
    samples = [Sample(images[key], masks[key], key[0], frame_number(key[1], images[key])) for key in sorted(images)]
    counts = count_values(samples)
    notes = []
    if odd := [sample.target for sample, row in zip(samples, counts, strict=True) if row[1:255].any()]:
        notes.append(_odd_note("are neither black nor white", counts[:, 1:255].sum(), odd))
    return _split(samples, lookup_table({0: 0, 255: 1})), notes


def _from_multi(folder: Path) -> tuple[DatasetDict, list[str]]:
    images = _files(folder, r"image(\d+)\.png")
    masks: dict[tuple[str, str], dict[int, Path]] = {key: {} for key in images}
    for (operation, name), path in _files(folder, r"mask(\d+_\w+)\.png").items():
        frame, structure = name.split("_", 1)
        if structure not in STRUCTURES:
            raise UserError(f"{path}: {structure!r} is not a structure of DSAD; expected {', '.join(STRUCTURES)}")
        if (operation, frame) not in images:
            raise MissingFileError(
                f"{path} has no image: expected image{frame}.png in the same folder; unpack the archive again"
            )
        masks[operation, frame][1 + STRUCTURES.index(structure)] = path

    keys = sorted(key for key in images if masks[key])
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        work = pool.imap(lambda key: _combine(images[key], masks[key]), keys)
        combined = list(tqdm(work, desc="Combining masks", total=len(keys), unit="frame"))
    samples = [
        Sample(images[key], mask, key[0], frame_number(key[1], images[key]))
        for key, (mask, _, _) in zip(keys, combined, strict=True)
    ]
    notes = []
    if bare := [images[key] for key in sorted(images) if not masks[key]]:
        notes.append(f"{len(bare)} frame(s) have no mask and are excluded ({_named(bare)}).")
    for column, what in ((1, "are in the masks of two structures"), (2, "are neither black nor white")):
        if odd := [images[key] for key, row in zip(keys, combined, strict=True) if row[column]]:
            notes.append(_odd_note(what, sum(row[column] for row in combined), odd))
    return _split(samples, lookup_table({i: i for i in range(len(LABELS))})), notes


def _files(folder: Path, pattern: str) -> dict[tuple[str, str], Path]:
    """Return files by operation (such as "02") and by the match of the pattern's group."""
    files = {}
    for operation in sorted(require_folder(folder, _LAYOUT).iterdir()):
        if not re.fullmatch(r"\d+", operation.name) or not operation.is_dir():
            continue
        _operation(operation)
        for path in operation.iterdir():
            if match := re.fullmatch(pattern, path.name):
                files[operation.name, match[1]] = path
    return files


def _combine(image: Path, masks: dict[int, Path]) -> tuple[bytes, int, int]:
    """Combine one mask per class into a mask of class ids.

    Returns:
        The encoded PNG, the number of pixels in two masks, and the number of pixels that are neither black nor white.
    """
    width, height = frame_size(image)
    ids, times = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    odd = np.zeros((height, width), bool)
    for i, path in masks.items():
        values = read_mask(path)
        if values.shape != ids.shape:
            raise UserError(
                f"{path} has {values.shape[1]}x{values.shape[0]} pixels, but its frame {image} has {width}x{height}; "
                "unpack the archive again"
            )
        ids[values == 255] = i
        times += values == 255
        odd |= (values != 0) & (values != 255)
    ids[(times > 1) | odd] = IGNORE_INDEX
    buffer = io.BytesIO()
    PILImage.fromarray(ids).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), int((times > 1).sum()), int(odd.sum())


def _split(samples: list[Sample], table: np.ndarray) -> DatasetDict:
    parts = {split: [sample for sample in samples if _SPLIT_OF[int(sample.video)] == split] for split in SPLITS}
    return build_splits(parts, table)


def _operation(folder: Path) -> int:
    number = frame_number(folder.name, folder)
    if number not in _SPLIT_OF:
        raise UserError(f"{folder}: there is no operation {number}; DSAD has operations 1 to {len(_SPLIT_OF)}")
    return number


def _count_note(splits: DatasetDict) -> str:
    frames = sum(split.num_rows for split in splits.values())
    operations = {video for split in splits.values() for video in split.select_columns("video")[:]["video"]}
    note = f"Found {frames} frames ({', '.join(f'{split.num_rows} {name}' for name, split in splits.items())}) of "
    note += f"{len(operations)} operations"
    if frames < MIN_FRAMES or len(operations) < MIN_OPERATIONS:
        return (
            f"{note}; a complete subset has more than {MIN_FRAMES} frames of at least {MIN_OPERATIONS} operations. "
            "Results are not comparable with those on a complete subset."
        )
    return f"{note}."


def _odd_note(what: str, pixels: int, paths: list[Path]) -> str:
    return f"{pixels} px {what} and are ignored ({len(paths)} frame(s): {_named(paths)})."


def _named(paths: list[Path]) -> str:
    return named((f"{path.parent.name}/{path.name}" for path in paths), 3)
