"""The authors' list of the frames of SurgeNetYoutube, and those frames in the videos it was made from.

A line of the list ends in `<video>_frame_<n>_Sample<i>.jpg`; `<procedure>/Batch<j>/` or anything else may come before.
Frame n is picture `n * max(1, int(fps))` of the video, counted from 0 in the order of decoding: the authors keep every
int(fps)-th picture, whatever its time stamp, and count those they keep. So n is close to seconds and, at 29.97 frames
a second, 3 % less. `<i>` and `<j>` count over the authors' own folder listing and mean nothing elsewhere. `<video>` is
the file's name up to its first dot, with `?` for `#`. Rule after create_SurgeNetXL.py of TimJaspers0801/SurgeNet.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data.names import frame_number
from ..errors import MissingFileError, UserError

_LINE = re.compile(r"(?:(?:^|.*/)(?P<procedure>[^/]+)/Batch\d+/|.*/|)(?P<video>[^/]+)_frame_(?P<n>\d+)_Sample\d+\.jpg")


def listed_name(file_name: str) -> str:
    """What the list calls the video in a file: no extension of any number, `?` for `#`."""
    name = re.match(r"\.*[^.]*", file_name)[0]
    return unicodedata.normalize("NFC", name).replace("#", "?")  # macOS stores accents as characters of their own


def _decoded(lines: Iterable[str], path: str | Path) -> Iterator[str]:
    """Yield the lines of a file, however many."""
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


class FrameList:
    """The frames of a list, by (video, n).

    Attributes:
        frames: video -> procedure of the lines (None where a line names none) -> numbers n.
        malformed: lines that name no frame.

    Raises:
        MissingFileError: there is no such file.
        UserError: no line of it names a frame, or it is not UTF-8 text.
    """

    def __init__(self, path: str | Path):
        self.frames: dict[str, dict[str | None, set[int]]] = {}
        self.malformed: list[str] = []
        if not Path(path).is_file():
            raise MissingFileError(f"there is no frame list {path}; check the path")
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(map(str.strip, _decoded(lines, path)), start=1):
                if not line:
                    continue
                match = _LINE.fullmatch(line)
                if match is None:
                    self.malformed.append(line)
                    continue
                video = unicodedata.normalize("NFC", match["video"])
                self.frames.setdefault(video, {}).setdefault(match["procedure"], set()).add(
                    frame_number(match["n"], f"{path}, line {number}")
                )
        if not self.frames:
            example = f"; its first line is {self.malformed[0]!r}" if self.malformed else " and is empty"
            raise UserError(f"{path} has no line like '<video>_frame_<n>_Sample<i>.jpg'{example}")

    def __len__(self) -> int:
        return sum(len(numbers) for lines in self.frames.values() for numbers in lines.values())

    def match(self, videos: Iterable[tuple[str, str]]) -> list[dict[str | None, set[int]]]:
        """For each video (file name, procedure) the lines that are about it; an empty dict where none is.

        Lines of a video's own procedure go before those of others, so that two procedures may have videos of one name.
        Where no line names the procedure, folders may be called otherwise here: a name that only one video has is
        enough. Lines without procedure are about every video of the name.
        """
        videos = list(videos)
        count = Counter(listed_name(name) for name, _ in videos)
        matched = []
        for name, procedure in videos:
            lines = self.frames.get(listed_name(name), {})
            if procedure in lines or count[listed_name(name)] > 1:
                lines = {key: lines[key] for key in (procedure, None) if key in lines}
            matched.append(lines)
        return matched
