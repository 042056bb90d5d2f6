"""Masks: raw values, their class ids, and the check of all masks of a dataset."""

import os
from collections.abc import Mapping
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .base import IGNORE_INDEX, Sample
from .images import frame_size, read_mask


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
