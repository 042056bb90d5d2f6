"""Masks: raw values, their class ids, and the check of all masks of a dataset."""

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
    """Return the uint8 table (256,) that turns raw mask values into class ids; values not in `ids` are ignored."""
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[list(ids)] = list(ids.values())
    return table


def count_values(samples: list[Sample]) -> np.ndarray:
    """Read every frame and mask once, and count the raw values of each mask: (number of samples, 256).

    Raises:
        UserError: a file cannot be read, a mask does not have the size of its frame, or it holds no class ids. The
            message names the file.
    """
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        counts = list(tqdm(pool.imap(_check, samples), desc="Checking masks", total=len(samples), unit="mask"))
    return np.stack(counts)


def _check(sample: Sample) -> np.ndarray:
    size, values = frame_size(sample.image), read_mask(sample.target)
    if values.shape != (size[1], size[0]):
        raise UserError(
            f"{sample.target} is {values.shape[1]}x{values.shape[0]} pixels, but its frame {sample.image} is "
            f"{size[0]}x{size[1]}: a mask must have the size of its frame; resize it with nearest-neighbor sampling"
        )
    return np.bincount(values.ravel(), minlength=256).astype(np.uint32)


def require_pairs(frames: Mapping, masks: Mapping, expected: Callable[[str, object], str], advice: str) -> None:
    """Check that each frame has a mask, and each mask a frame.

    Args:
        frames, masks: files by what a frame and its mask have in common.
        expected: function ("frame" or "mask", key) -> the file that is expected.
        advice: the last part of the message.

    Raises:
        MissingFileError: names the first file that is alone.
    """
    for files, others, kind, other in ((frames, masks, "frame", "mask"), (masks, frames, "mask", "frame")):
        if alone := sorted(files.keys() - others.keys()):
            raise MissingFileError(
                f"the {kind} {files[alone[0]]} has no {other}: expected {expected(other, alone[0])} ({len(alone)} of "
                f"{len(files)} {kind}s have none); {advice}"
            )


def stray_notes(counts: np.ndarray, names: Iterable[str], values: Iterable[int], text: str) -> list[str]:
    """Return a note on each raw value that is in a mask although it is no class.

    Args:
        counts: pixels of each value of each mask, (N, 256).
        names: name of each mask.
        values: values that are no class.
        text: beginning of the note, with {} for the value.
    """
    notes = []
    for value in values:
        if masks := [name for name, row in zip(names, counts, strict=True) if row[value]]:
            pixels = counts[:, value].sum()
            notes.append(
                f"{text.format(value)}, it counts as ignore: {pixels} px in {len(masks)} mask(s) ({named(masks, 3)})."
            )
    return notes
