"""DSAD, the Dresden Surgical Anatomy Dataset: robot-assisted rectal resections, abdominal structures by pixel.

Citation: Carstens et al., "The Dresden Surgical Anatomy Dataset for Abdominal Organ Segmentation in Surgical Data
Science", Scientific Data 10:3 (2023), doi 10.1038/s41597-022-01719-2.
Licence: CC BY 4.0 (attribution).
Download: figshare article 21702600, or the authors' mirror on the Hub, https://huggingface.co/datasets/nct-tso/dsad

13,195 frames of 32 operations in eleven subsets, one for each structure, in each of which that structure alone is
labelled (config "single_organ"); for the frames of the subset of the stomach the other visible structures are, too
(config "multi_organ"). Layout of the archive, by the paper, as far as it is read here:

    <structure>/<operation>/    image23.png, mask23.png: white where the structure is, black elsewhere
    multilabel/<operation>/     image23.png and, for each visible structure, mask23_<structure>.png

(`anno_1`, `anno_2`, `anno_3`, `merged`, masks on the way to the final ones, and `weak_labels.csv` are not read.)

Classes: 0 background (declared as `background_id`) and the eleven `STRUCTURES` in the paper's, alphabetical order. A
pixel in two masks, or neither black nor white, is no label; `notes` counts them.

Split: `SPLITS`, by operation, is the one that public code on the set uses and attributes to Kolbinger et al. (2023);
whether the data paper itself gives one was not found out.

The mirror has the configs single_organ, multi_organ, single_organ_multi_rater and multi_organ_multi_rater, each with
the splits train, validation and test, and a column `organ` in single_organ. NOT KNOWN when this was written: its other
columns, whose names in `COLUMNS` are assumptions (`columns=` corrects them), how its multi-organ masks code classes
(read here as ids in the order above), and whether its split is the one above, which is applied in any case. Look at
the pictures of `show` before a figure from the mirror is believed.
"""

import io
import os
import re
from collections.abc import Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage
from pyarrow.lib import ArrowInvalid
from tqdm import tqdm

from ..images import frame_size
from ..names import frame_number
from ..segmentation import (
    FEATURES,
    IGNORE_INDEX,
    DecodeRows,
    Sample,
    SegmentationData,
    build_splits,
    count_values,
    lookup_table,
    palette,
    read_mask,
    require_folder,
)

HUB_NAME = "nct-tso/dsad"
SOURCE = f"figshare article 21702600 (doi 10.1038/s41597-022-01719-2), or --data_dir {HUB_NAME} for the Hub (free)"

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
COLUMNS = {"image": "image", "mask": "mask", "organ": "organ", "video": "surgery_id", "frame": "frame_id"}
MIN_FRAMES, MIN_OPERATIONS = 1000, 20  # of a whole subset: the paper has "over a thousand" and 20 to 23

_SPLIT_OF = {operation: split for split, operations in SPLITS.items() for operation in operations}
_LAYOUT = (
    "expected the archive's multilabel/<operation>/ with image23.png and mask23_<structure>.png, and "
    "<structure>/<operation>/ with image23.png and mask23.png; or the mirror's .parquet files"
    f". Get it from {SOURCE}"
)


def load(
    data_dir: str | Path,
    config: str = "multi_organ",
    organ: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> SegmentationData:
    """DSAD from the folder of its archive, from a folder with the mirror's parquet files, or from the Hub.

    Args:
        data_dir: the folder, or "nct-tso/dsad" for the Hub.
        config: "multi_organ", background and eleven structures; or "single_organ", background and `organ`.
        organ: for "single_organ", one of `STRUCTURES`. The subsets are not read as one set: in the frames of one the
            other structures are there, but not labelled.
        columns: for parquet files, what they call those of `COLUMNS` that they name otherwise.

    Raises:
        FileNotFoundError: a missing or empty folder; a mask without frame; in a subset of one structure, a frame
            without mask.
        ValueError: another config, structure or operation; an unreadable file, masks that are not of their frame's
            size or hold no class ids, a parquet file without a column; no frames to train on or to validate on.
    """
    if config not in CONFIGS:
        raise ValueError(f"config={config!r}: expected one of {', '.join(CONFIGS)} (masks of raters are not read)")
    if (organ in STRUCTURES) != (config == "single_organ"):
        raise ValueError(
            f"organ={organ!r} with config={config!r}: 'single_organ' needs one structure ({', '.join(STRUCTURES)}), "
            "'multi_organ' none"
        )
    if str(data_dir) == HUB_NAME and not Path(HUB_NAME).exists():
        splits, notes = _from_mirror(_load_dataset(HUB_NAME, config), organ, columns)
    else:
        root = require_folder(Path(data_dir).absolute(), _LAYOUT)
        if files := _parquet_files(root, config):
            splits, notes = _from_mirror(_load_dataset("parquet", data_files=files), organ, columns)
        elif organ:
            splits, notes = _from_single(root / organ)
        else:
            splits, notes = _from_multi(root / "multilabel")
    for split in ("train", "validation"):
        if split not in splits:
            raise ValueError(f"{data_dir} has no {split} frame (operations {', '.join(map(str, SPLITS[split]))})")
    notes = (_count_note(splits), *notes)
    ids = [BACKGROUND_ID, 1 + STRUCTURES.index(organ)] if organ else range(len(LABELS))
    return SegmentationData(
        "dsad",
        tuple(LABELS[i] for i in ids),
        tuple(COLORS[i] for i in ids),
        splits,
        notes=notes,
        videos_are_public=True,
        split_protocol=SPLIT_PROTOCOL,
        background_id=BACKGROUND_ID,
    )


# The archive


def _from_single(folder: Path) -> tuple[DatasetDict, list[str]]:
    samples, images = [], _files(folder, r"image(\d+)\.png")
    masks = _files(folder, r"mask(\d+)\.png")
    for one, other, what in ((images, masks, "mask"), (masks, images, "image")):
        if bare := sorted(one.keys() - other.keys()):
            path = one[bare[0]]
            raise FileNotFoundError(
                f"{path} has no {what}: expected {what}{bare[0][1]}.png beside it ({len(bare)} of {len(one)} have "
                "none); unpack the archive again"
            )
    samples = [Sample(images[key], masks[key], key[0], frame_number(key[1], images[key])) for key in sorted(images)]
    counts = count_values(samples)
    notes = []
    if odd := [sample.mask for sample, row in zip(samples, counts, strict=True) if row[1:255].any()]:
        notes.append(_odd_note("are neither black nor white", counts[:, 1:255].sum(), odd))
    return _split(samples, lookup_table({0: 0, 255: 1})), notes


def _from_multi(folder: Path) -> tuple[DatasetDict, list[str]]:
    images = _files(folder, r"image(\d+)\.png")
    masks: dict[tuple[str, str], dict[int, Path]] = {key: {} for key in images}
    for (operation, name), path in _files(folder, r"mask(\d+_\w+)\.png").items():
        frame, structure = name.split("_", 1)
        if structure not in STRUCTURES:
            raise ValueError(f"{path}: {structure!r} is no structure of DSAD; expected {', '.join(STRUCTURES)}")
        if (operation, frame) not in images:
            raise FileNotFoundError(
                f"{path} has no image: expected image{frame}.png beside it; unpack the archive again"
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
        notes.append(f"{len(bare)} frame(s) have no mask at all and are left out ({_some(bare)}).")
    for column, what in ((1, "are in the masks of two structures"), (2, "are neither black nor white")):
        if odd := [images[key] for key, row in zip(keys, combined, strict=True) if row[column]]:
            notes.append(_odd_note(what, sum(row[column] for row in combined), odd))
    return _split(samples, lookup_table({i: i for i in range(len(LABELS))})), notes


def _files(folder: Path, pattern: str) -> dict[tuple[str, str], Path]:
    """Files by operation ("02") and by what the pattern's group holds."""
    files = {}
    for operation in sorted(require_folder(folder, _LAYOUT).iterdir()):
        if not re.fullmatch(r"\d+", operation.name) or not operation.is_dir():
            continue
        _operation(operation.name, operation)
        for path in operation.iterdir():
            if match := re.fullmatch(pattern, path.name):
                files[operation.name, match[1]] = path
    return files


def _combine(image: Path, masks: dict[int, Path]) -> tuple[bytes, int, int]:
    """A PNG of class ids from one mask for each class, and the pixels in two masks and of neither black nor white."""
    width, height = frame_size(image)
    ids, times = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    odd = np.zeros((height, width), bool)
    for i, path in masks.items():
        values = read_mask(path)
        if values.shape != ids.shape:
            raise ValueError(
                f"{path} is {values.shape[1]}x{values.shape[0]} pixels, but its frame {image} is {width}x{height}"
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
    return build_splits({split: part for split, part in parts.items() if part}, table)


# The mirror


def _parquet_files(root: Path, config: str) -> dict[str, list[str]]:
    """Files of a configuration by split; files of other configurations are told by their folder."""
    files: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.parquet")):
        parts = path.relative_to(root).parts
        if config not in parts and any(part.startswith(CONFIGS) for part in parts):
            continue
        named = [match[1] for part in parts if (match := re.match(r"(train|validation|test)(?:[-_.]|$)", part))]
        if not named:
            raise ValueError(f"{path}: no split can be told; expected train-..., validation-... or test-....parquet")
        files.setdefault(named[-1], []).append(str(path))
    return files


def _load_dataset(*args, **kwargs) -> DatasetDict:
    try:
        return load_dataset(*args, **kwargs)
    except (DatasetGenerationError, ArrowInvalid) as error:  # its log names the file
        raise ValueError(
            f"the parquet files cannot be read ({error.__cause__ or error}); download them again"
        ) from error


def _from_mirror(
    data: DatasetDict, organ: str | None, columns: Mapping[str, str] | None
) -> tuple[DatasetDict, list[str]]:
    names = {key: name for key, name in {**COLUMNS, **(columns or {})}.items() if key != "organ" or organ}
    rows = concatenate_datasets(list(data.values()))
    if missing := [name for name in names.values() if name not in rows.column_names]:
        raise ValueError(
            f"the parquet files have no column {', '.join(missing)}, only {', '.join(rows.column_names)}; say with "
            f"columns={{'{next(key for key in names if names[key] in missing)}': ...}} what they call it"
        )
    text = rows.select_columns([name for key, name in names.items() if key not in ("image", "mask")])[:]
    operations = [_operation(value, f"row {i}") for i, value in enumerate(text[names["video"]])]
    frames = [_number(value, f"row {i}") for i, value in enumerate(text[names["frame"]])]
    chosen = range(len(rows))
    if organ:
        chosen = [i for i in chosen if text[names["organ"]][i].lower().replace(" ", "_") == organ]

    rows = rows.select_columns([names["image"], names["mask"]])
    rows = rows.rename_columns({names[key]: key for key in ("image", "mask") if names[key] != key})
    rows = rows.add_column("video", [f"{operation:02d}" for operation in operations]).add_column("frame", frames)
    rows = rows.add_column("split", [_SPLIT_OF[operation] for operation in operations])
    for column, feature in FEATURES.items():
        rows = rows.cast_column(column, feature)
    table, notes = _check_rows(rows.select(chosen), organ)

    theirs = [split for split, part in data.items() for _ in range(len(part))]
    if moved := sorted({operations[i] for i in chosen if theirs[i] != _SPLIT_OF[operations[i]]}):
        notes.append(f"The files have operation(s) {_some(moved)} in other splits than those used here.")
    parts = {split: [i for i in chosen if _SPLIT_OF[operations[i]] == split] for split in SPLITS}
    decode = DecodeRows(table.tobytes())
    return DatasetDict({s: rows.select(part).with_transform(decode) for s, part in parts.items() if part}), notes


def _check_rows(rows: Dataset, organ: str | None) -> tuple[np.ndarray, list[str]]:
    """The table from values in the masks to ids, and notes, from a look at all of them."""
    pixels = np.zeros(256, np.int64)
    for row in tqdm(rows, desc="Checking masks", unit="mask"):
        where = f"operation {row['video']}, frame {row['frame']}"
        width, height = frame_size(row["image"], f"{where}: the frame")
        values = read_mask(row["mask"], f"{where}: the mask")
        if values.shape != (height, width):
            raise ValueError(
                f"{where}: the mask has {values.shape[1]}x{values.shape[0]} pixels, the frame {width}x{height}: "
                "download the files again"
            )
        pixels += np.bincount(values.ravel(), minlength=256)
    found = np.flatnonzero(pixels[1:]) + 1
    if organ:
        if len(found) > 1:
            raise ValueError(f"the masks of {organ} hold 0 and {_some(list(found))}, but one structure has one value")
        return lookup_table({0: 0, **{int(value): 1 for value in found}}), []
    classes = range(1, len(LABELS))
    if not set(found) & set(classes):
        raise ValueError(
            f"the multi-organ masks hold 0 and {_some(list(found))}, no class id from 1 to {classes[-1]}: they are "
            "coded in another way than this loader knows; use the archive"
        )
    notes = [
        "That the mirror's masks hold 1 to 11, for the structures in alphabetical order, is an assumption: look at "
        "some frames before figures are believed."
    ]
    if odd := [int(value) for value in found if value not in classes and value != IGNORE_INDEX]:
        notes.append(f"The values {_some(odd)} are no class, they count as ignore: {pixels[odd].sum()} px.")
    return lookup_table({i: i for i in range(len(LABELS))}), notes


# Words and numbers


def _number(value: int | str, where: str | Path) -> int:
    """A number, or the last one in a text such as "image23.png"."""
    digits = re.findall(r"\d+", str(value))
    if not digits:
        raise ValueError(f"{where}: there is no number in {value!r}")
    return frame_number(digits[-1], where)


def _operation(value: int | str, where: str | Path) -> int:
    number = _number(value, where)
    if number not in _SPLIT_OF:
        raise ValueError(f"{where}: there is no operation {number}; DSAD has operations 1 to {len(_SPLIT_OF)}")
    return number


def _count_note(splits: DatasetDict) -> str:
    frames = sum(split.num_rows for split in splits.values())
    operations = {video for split in splits.values() for video in split.select_columns("video")[:]["video"]}
    note = f"Found {frames} frames ({', '.join(f'{split.num_rows} {name}' for name, split in splits.items())}) of "
    note += f"{len(operations)} operations"
    if frames < MIN_FRAMES or len(operations) < MIN_OPERATIONS:
        return (
            f"{note}: a whole subset has over {MIN_FRAMES} of {MIN_OPERATIONS} or more, figures are not those of one."
        )
    return f"{note}."


def _odd_note(what: str, pixels: int, paths: list[Path]) -> str:
    return f"{pixels} px {what}, they count as ignore ({len(paths)} frame(s): {_some(paths)})."


def _some(items: list) -> str:
    names = [f"{item.parent.name}/{item.name}" if isinstance(item, Path) else str(item) for item in items[:3]]
    return ", ".join(names) + (", ..." if len(items) > 3 else "")
