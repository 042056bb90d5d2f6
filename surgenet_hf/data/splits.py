"""Assignment of videos to splits.

Splits are by video, because neighboring frames of a video are nearly identical. If some frames of a video train and
others test, the metrics measure memorization instead of recognition.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import UserError
from .labels import read_table
from .names import WHY_BY_VIDEO, check_no_overlap, named, require_distinct

SPLITS = ("train", "validation", "test")
BY_NAME = "by video name, one fifth validates"  # split protocol of `split_by_name`


def require_splits(samples: Mapping[str, list], needed: Iterable[str], where: Path, expected: str) -> None:
    """Check that each needed split has frames.

    Raises:
        UserError: a needed split has no frames.
    """
    for split in needed:
        if not samples.get(split):
            raise UserError(f"{where} has no frames for the split {split!r}; {expected}")


def choose_protocol(protocols: Mapping[str, Mapping], name: str) -> Mapping:
    """Return the split protocol of a given name.

    Raises:
        UserError: the name is unknown. The message also explains why there are no random splits.
    """
    if name not in protocols:
        raise UserError(
            f"unknown split protocol {name!r}; expected one of {', '.join(protocols)}. There are no random splits: "
            f"{WHY_BY_VIDEO}"
        )
    return protocols[name]


def split_by_name(videos: Iterable[str], where: Path) -> dict[str, str]:
    """Assign one fifth of the videos, at least one, to validation and the rest to training.

    The SHA-256 hash of a video's name decides, so the split is the same on every machine.

    Returns:
        A dict {video: split}.

    Raises:
        UserError: there are fewer than two videos.
    """
    by_hash = sorted(set(videos), key=lambda video: hashlib.sha256(video.encode()).digest())
    if len(by_hash) < 2:
        raise UserError(
            f"{where} contains fewer than two videos ({', '.join(by_hash) or 'none'}), but training and validation "
            f"need different videos; {WHY_BY_VIDEO}"
        )
    number = max(1, round(len(by_hash) / 5))
    return {video: "validation" if i < number else "train" for i, video in enumerate(by_hash)}


def split_videos(root: Path, videos: Iterable[str]) -> tuple[dict[str, str], str]:
    """Read the split of each video from `splits.csv`, or split by name if the file does not exist.

    Args:
        root: folder of the data.
        videos: names of its videos.

    Returns:
        A dict {video: split}, and the split protocol as a short phrase.

    Raises:
        UserError: a video has no row or is in two splits, a split has an unknown name, or two video names look the
            same. Without `splits.csv`, also if there are fewer than two videos.
    """
    videos, table = list(videos), root / "splits.csv"
    if not table.exists():
        require_distinct(videos, "video", root)
        return split_by_name(videos, root), BY_NAME
    rows = read_table(table, ("video", "split"), "expected the columns video and split")
    pairs = split_pairs(row for _, row in rows)
    require_distinct([*videos, *(video for video, _ in pairs)], "video", table)
    if unassigned := [name for name in videos if name not in dict(pairs)]:
        raise UserError(f"{table} assigns no split to {named(unassigned)}; add a row for each video")
    return split_by_pairs(pairs, table), "by splits.csv"


def split_pairs(rows: Iterable[dict[str, str]]) -> set[tuple[str, str]]:
    """Return the (video, split) pairs of table rows, or an empty set without a column `split`."""
    return {(row["video"], row["split"]) for row in rows if "split" in row}


def split_by_pairs(pairs: set[tuple[str, str]], where: Path) -> dict[str, str]:
    """Convert (video, split) pairs to `{video: split}`.

    Raises:
        UserError: a split has an unknown name, or a video is in two splits.
    """
    for video, split in sorted(pairs):
        if split not in SPLITS:
            raise UserError(f"{where}: the split of {video!r} is {split!r}; expected {', '.join(SPLITS)}")
    check_no_overlap({split: [video for video, other in pairs if other == split] for split in SPLITS}, where)
    return dict(pairs)


def no_test_note(samples: Mapping[str, list], where: str) -> list[str]:
    """Return a note if the data has no test split.

    Args:
        samples: samples by split.
        where: name of the file that can define a test split.
    """
    if samples.get("test"):
        return []
    return [
        "There is no test split. Results on the validation split, which selects the checkpoint, are optimistic. To "
        f"create a test split, assign videos to it in {where} (columns video and split: train, validation, test)."
    ]
