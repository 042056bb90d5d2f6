"""Names of videos, frames, and files, and checks that keep all frames of a video in one split."""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import MissingFileError, UserError

WHY_BY_VIDEO = (
    "splits must be by video: neighboring frames look alike, so a split by frame measures memorization, "
    "and its results are not comparable with any others"
)

# Invisible characters (Default_Ignorable_Code_Point) outside the categories of control and format characters.
_IGNORABLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
)


def printable(text: str | Path) -> str:
    """Return a text or path with bytes that are not UTF-8 written as `\\xe9`."""
    return os.fsencode(text).decode(errors="backslashreplace")


def no_video(split: str) -> str:
    """Return the name under which the frames of a split count as one video, because they have no videos."""
    return f"{split} (no video column)"


def require_unicode(path: Path) -> Path:
    """Return `path` if it is valid Unicode.

    Raises:
        UserError: the path is not valid Unicode, so tables cannot store it.
    """
    if not str(path).isascii() and printable(path) != str(path):
        raise UserError(f"the name of {printable(path)} is not valid UTF-8; rename it")
    return path


def require_folder(path: Path, expected: str) -> Path:
    """Return `path` if it is a folder that is not empty.

    Raises:
        MissingFileError: the folder is missing or empty, or is a file. The message starts with `expected` and says
            what was found.
        UserError: its name is not valid Unicode.
    """
    require_unicode(path)
    if path.is_dir():
        if any(path.iterdir()):
            return path
        found = f"{path} is empty"
    elif path.exists():
        found = f"{path} is a file, not a folder"
    else:
        there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        holds = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") if there else "nothing"
        found = f"{path} does not exist ({path.parent} contains {holds})"
    raise MissingFileError(
        f"{expected[0].upper()}{expected[1:]}. Found: {found}. Pass the folder with this layout as data_dir"
    )


def frame_number(digits: str, where: str | Path) -> int:
    """Convert the digits of a frame number to an int.

    Args:
        digits: decimal digits.
        where: source of the number, for the message.

    Raises:
        UserError: the number does not fit into 64 bits, the type of the column `frame`.
    """
    # By default, Python refuses to convert more than 4300 digits.
    if len(digits) > 255 or int(digits) >= 2**63:
        raise UserError(
            f"{where}: the number {digits[:24]}{'...' if len(digits) > 24 else ''} is too large; expected less "
            "than 2^63: use a smaller number"
        )
    return int(digits)


def number_in_name(path: Path) -> int | None:
    """Return the number at the end of a file name without its suffix, or None if there is none."""
    digits = re.search(r"\d+$", path.stem)
    return frame_number(digits[0], path) if digits else None


def named(items: Iterable, most: int = 8) -> str:
    """Join the first `most` items for a message, with the total count if there are more."""
    items = list(map(str, items))
    return ", ".join(items[:most]) + (f", ... ({len(items)} in all)" if len(items) > most else "")


def require_distinct(names: Iterable[str], kind: str, where: str | Path = "") -> None:
    """Check that different names do not look the same.

    Names can look the same because of an invisible character or another form of an accent.

    Args:
        names: the names. A name may occur several times.
        kind: what the names refer to, for the message.
        where: file with the names, for the message.

    Raises:
        UserError: two different names look the same.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_visible(name), name)
        if other != name:
            first, second = sorted((other, name))
            raise UserError(
                f"{_prefix(where)}two {kind} names look the same but differ, {first!a} and {second!a}; use one "
                "spelling"
            )


def check_no_overlap(videos: Mapping[str, Iterable[str]], where: str | Path = "") -> None:
    """Check that each video is in only one split.

    Args:
        videos: names of the videos by split.
        where: file with the names, for the message.

    Raises:
        UserError: a video is in two splits, or the names of two videos look the same.
    """
    home: dict[str, str] = {}
    for split, names in videos.items():
        for name in sorted(names):
            if home.setdefault(name, split) != split:
                raise UserError(
                    f"{_prefix(where)}video {name!r} is in {home[name]} and in {split}, but {WHY_BY_VIDEO}"
                )
    require_distinct(home, "video", where)


def _prefix(where: str | Path) -> str:
    return f"{where}: " if str(where) else ""


def _visible(name: str) -> str:
    """Return the visible part of a name in normalized form."""
    for _ in range(2):  # NFKC normalization can produce an invisible character
        name = re.sub(f"[{_IGNORABLE}]", "", name)
        name = "".join(character for character in name if unicodedata.category(character) not in ("Cc", "Cf"))
        name = unicodedata.normalize("NFKC", name)
    return name.strip()
