"""Raw mask values, their class ids, and a check of all masks of a dataset."""

import os
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm import tqdm

from ..errors import MissingFileError, UserError
from .base import IGNORE_INDEX, Sample
from .images import frame_size, read_mask
from .names import named


def lookup_table(ids: Mapping[int, int]) -> np.ndarray:
    """Return the uint8 table (256,) from raw mask values to class ids.

    Values that are not in `ids` map to `IGNORE_INDEX`.
    """
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[list(ids)] = list(ids.values())
    return table


def count_values(samples: list[Sample]) -> np.ndarray:
    """Read every frame and mask once, and count the pixels of each raw mask value.

    Returns:
        A uint32 array (number of samples, 256).

    Raises:
        UserError: a file cannot be read, a mask does not have the size of its frame, or a mask holds no class ids. The
            message names the file.
    """
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        counts = list(tqdm(pool.imap(_check, samples), desc="Checking masks", total=len(samples), unit="mask"))
    return np.stack(counts)


def check_ids(samples: list[Sample], ids: Iterable[int], most: int = 2000) -> list[str]:
    """Read at most `most` evenly spaced frames and masks, with the errors of `count_values`.

    This is for datasets whose masks take minutes to read.

    Args:
        samples: frames and masks.
        ids: raw values of the classes.
        most: number of masks to read.

    Returns:
        A note for each other value, and a note if only a part of the masks was read.
    """
    read = [samples[i * len(samples) // most] for i in range(most)] if len(samples) > most else samples
    names = [f"{sample.video} frame {sample.frame}" for sample in read]
    notes = stray_notes(count_values(read), names, sorted(set(range(256)) - set(ids)), "Id {} is not a class")
    if len(read) < len(samples):
        notes.append(f"Checked {len(read)} of {len(samples)} masks.")
    return notes


def _check(sample: Sample) -> np.ndarray:
    size, values = frame_size(sample.image), read_mask(sample.target)
    if values.shape != (size[1], size[0]):
        raise UserError(
            f"{sample.target} has {values.shape[1]}x{values.shape[0]} pixels, but its frame {sample.image} has "
            f"{size[0]}x{size[1]}. Resize the mask to the size of its frame with nearest-neighbor interpolation"
        )
    return np.bincount(values.ravel(), minlength=256).astype(np.uint32)


def require_pairs(frames: Mapping, masks: Mapping, expected: Callable[[str, object], str], advice: str) -> None:
    """Check that each frame has a mask and each mask has a frame.

    Args:
        frames: frame files by a key that a frame and its mask share.
        masks: mask files by the same key.
        expected: function ("frame" or "mask", key) -> expected file, for the message.
        advice: last part of the message.

    Raises:
        MissingFileError: a file has no counterpart. The message names the first such file.
    """
    for files, others, kind, other in ((frames, masks, "frame", "mask"), (masks, frames, "mask", "frame")):
        if alone := sorted(files.keys() - others.keys()):
            raise MissingFileError(
                f"the {kind} {files[alone[0]]} has no {other}: expected {expected(other, alone[0])} ({len(alone)} of "
                f"{len(files)} {kind}s have none); {advice}"
            )


def stray_notes(counts: np.ndarray, names: Iterable[str], values: Iterable[int], text: str) -> list[str]:
    """Return a note for each raw value that occurs in a mask but is not a class.

    Args:
        counts: pixels of each value in each mask, (N, 256).
        names: name of each mask.
        values: raw values that are not classes.
        text: beginning of the note, with {} for the value.
    """
    notes = []
    for value in values:
        if masks := [name for name, row in zip(names, counts, strict=True) if row[value]]:
            pixels = counts[:, value].sum()
            notes.append(
                f"{text.format(value)} and is ignored: {pixels} px in {len(masks)} mask(s) ({named(masks, 3)})."
            )
    return notes
