"""Frame list of SurgeNetYoutube by its authors, and lookup of these frames in the source videos.

A line of the list ends in `<video>_frame_<n>_Sample<i>.jpg`. Before it, `<procedure>/Batch<j>/` or anything else may
come. `<i>` and `<j>` are positions in the authors' own folder listing and have no meaning elsewhere. `<video>` is the
file name up to its first dot, with `?` for `#`.

Frame n is picture `n * max(1, int(fps))` of the video, counted from 0 in decoding order. The authors keep every
int(fps)-th picture, whatever its time stamp, and count the pictures they keep. So n is close to seconds, but 3 % less
at 29.97 frames per second. The rule follows create_SurgeNetXL.py of TimJaspers0801/SurgeNet.
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
    """Return the name that the list uses for a video file: without any extensions, and with `?` for `#`."""
    name = re.match(r"\.*[^.]*", file_name)[0]
    return unicodedata.normalize("NFC", name).replace("#", "?")  # macOS stores accents as separate characters


def _decoded(lines: Iterable[str], path: str | Path) -> Iterator[str]:
    """Yield the lines of a file, and convert decoding errors to `UserError`."""
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


class FrameList:
    """Frames of a frame list, by video and frame number.

    Args:
        path: path of the frame list.

    Attributes:
        frames: {video: {procedure: frame numbers n}}. The procedure is None for lines that name none.
        malformed: lines that do not name a frame.

    Raises:
        MissingFileError: the file does not exist.
        UserError: no line names a frame, or the file is not UTF-8 text.
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
        """Return the list entries of each video, or an empty dict for a video without entries.

        Lines of a video's own procedure take precedence over lines of other procedures, so two procedures may have
        videos of the same name. If no line names the video's procedure, its folder may have another name. The name
        alone then decides, if only one video has it. Lines without a procedure apply to every video with the name.

        Args:
            videos: (file name, procedure) of each video.

        Returns:
            A dict {procedure: frame numbers n} for each video.
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
