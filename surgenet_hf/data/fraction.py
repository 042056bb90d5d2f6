"""Training on a fraction of the labeled videos."""

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import UserError
from ..rng import rng_for
from .names import no_video

if TYPE_CHECKING:
    from .base import SurgicalData

logger = logging.getLogger(__name__)

DRAW = 2**32 - 1  # index of the draw of videos in `rng_for`; frames have smaller indices


def take_fraction(data: "SurgicalData", fraction: float, seed: int) -> "SurgicalData":
    """Keep a random fraction of the videos of the train split. The other splits do not change.

    The number of kept videos is fraction x videos, rounded up. The draw depends on the seed and the names of the
    videos. The draws of one seed are nested: the videos at 10 % are among those at 25 %.

    Args:
        data: dataset with all of its training videos.
        fraction: fraction of the videos, greater than 0 and at most 1. 1 returns the data unchanged.
        seed: seed of the draw, at least 0.

    Raises:
        UserError: the fraction is not in this range, there is no train split, or its frames have no videos.
    """
    check_fraction(fraction)
    if fraction == 1:
        return data
    rows = data.split("train")
    video_of = rows.select_columns(["video"])[:]["video"]
    names = sorted(set(video_of))
    if names == [no_video("train")]:
        raise UserError(
            f"a fraction of {fraction} of the training videos was requested, but the frames of {data.name!r} have no "
            "videos: add a column video with the name of each frame's video, or omit --train_fraction"
        )
    count = math.ceil(round(fraction * len(names), 9))  # 0.07 x 100 is above 7 by rounding
    kept = {names[i] for i in rng_for(seed, 0, DRAW).permutation(len(names))[:count]}
    chosen = [i for i, video in enumerate(video_of) if video in kept]
    logger.info(f"Training on {count} of {len(names)} videos of {data.name} ({len(chosen):,} of {len(rows):,} frames)")
    splits = type(data.splits)({**data.splits, "train": rows.select(chosen)})
    return replace(data, splits=splits, train_fraction=fraction)


def check_fraction(fraction: float) -> None:
    """Check a fraction of the training videos.

    Raises:
        UserError: it is not greater than 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--train_fraction must be greater than 0 and at most 1, got {fraction}")


def training_videos(data: "SurgicalData") -> list[str]:
    """Return the sorted names of the videos of the train split."""
    return sorted(set(data.split("train").select_columns(["video"])[:]["video"]))
