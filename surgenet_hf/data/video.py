"""Reader for all videos: frames by time stamp or by position in decoding order, with PyAV.

`iter_frames` samples a video at 0, 1/f, 2/f, ... seconds after its first frame. Each sample is the picture on screen
at that time. Frame k therefore belongs to time k/f, even if the frame rate of the video varies. A gap in a recording
repeats a picture and does not shift the labels after it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import MissingFileError, UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".webm", ".wmv")
# Hardly distinguishable from the video, at about 110 kB per frame of 854x480 pixels.
JPEG_QUALITY = 95

_TOLERANCE = 1e-3  # seconds, because some containers round time stamps to milliseconds
_JITTER = 1.0  # seconds backward, as B-frames can cause in some containers; more means another recording
_LONGEST_GAP = 60.0  # seconds; a longer gap is a jump of the clock, for example between joined recordings


def iter_frames(
    path: str | Path,
    frames_per_second: float = 1.0,
    max_side: int | None = None,
    threads: int = 0,
    max_decoded_side: int | None = None,
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (index, upright RGB picture) for each sampled frame of a video.

    Picture `index` is the picture on screen at time `index / frames_per_second`.

    Args:
        path: a video that FFmpeg can read.
        frames_per_second: sampling rate, independent of the frame rate of the video.
        max_side: pictures are shrunk if their longer side has more pixels than this. None means no limit.
        threads: number of decoder threads, or 0 for one per core.
        max_decoded_side: largest allowed side in pixels of a picture before shrinking. None means no limit. Each
            picture is checked, because it can be larger than the file header says.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not a video, ends early, or cannot be decoded to its end. Also if a picture exceeds
            `max_decoded_side`.
    """
    for index, frame in sample_video(Path(path), frames_per_second, threads, max_decoded_side):
        yield index, to_picture(frame, max_side)


def iter_listed_frames(
    path: str | Path, numbers: Iterable[int], max_side: int | None = None, threads: int = 0
) -> Iterator[tuple[int, float | None, Image.Image]]:
    """Yield (n, second, upright RGB picture) for the requested frame numbers that the video has, in ascending order.

    Frame n is picture `n * max(1, int(fps))` of the video, counted from 0 in decoding order. `second` is its time
    stamp relative to the first picture, or None without a time stamp. Decoding stops after the last requested number.

    Args:
        path: a video that FFmpeg can read.
        numbers: requested frame numbers n.
        max_side: as in `iter_frames`.
        threads: as in `iter_frames`.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not a video, or cannot be decoded up to its end or the last number.
    """
    path, wanted = Path(path), set(numbers)
    last = max(wanted, default=-1)
    require_video(path)
    av = import_av()
    index, start = -1, None
    try:
        with av.open(str(path)) as container:
            stream = _stream(container, path)
            stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
            step = max(1, int(stream.average_rate or 0))
            for index, frame in enumerate(container.decode(stream)):
                start = frame.time if index == 0 else start
                n = index // step
                if index % step == 0 and n in wanted:
                    second = None if start is None or frame.time is None else frame.time - start
                    yield n, second, to_picture(frame, max_side)
                if n >= last:
                    break
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be read beyond frame {index} ({error}); replace or repair it") from error
    if index < 0:
        raise UserError(f"{path} contains no frames; replace it")


def sample_video(
    path: Path, frames_per_second: float, threads: int = 0, max_decoded_side: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (index, PyAV frame) for the pictures of `iter_frames`, with the same arguments and errors."""
    if not frames_per_second > 0:
        raise UserError(f"frames_per_second must be above 0, got {frames_per_second}")
    for shown in sample_pictures(path, frames_per_second, threads, max_decoded_side):
        yield shown.index, shown.frame


@dataclass(frozen=True)
class Sampled:
    """Picture of a video at one time.

    Attributes:
        index: number of the sample, from 0.
        seconds: time of the sample after the first picture.
        number: number of the picture in the video, from 0 in decoding order.
        frame: picture as a PyAV frame, see `to_picture`.
    """

    index: int
    seconds: float
    number: int
    frame: Any


@dataclass
class VideoFacts:
    """What decoding a video has found so far.

    Attributes:
        rotation: rotation of the pictures by the file's metadata, in degrees counterclockwise.
        shortest, longest: shortest and longest time between two pictures, in seconds.
    """

    rotation: int = 0
    shortest: float = math.inf
    longest: float = 0.0

    def notes(self) -> list[str]:
        """Describe what is unusual, one phrase each."""
        found = [f"rotated by {self.rotation} degrees"] if self.rotation else []
        if self.longest > 1.5 * self.shortest + _TOLERANCE:
            found.append(f"variable frame rate, {self.shortest:.3f} to {self.longest:.3f} s between pictures")
        return found


def sample_pictures(
    path: Path,
    frames_per_second: float | None,
    threads: int = 0,
    max_decoded_side: int | None = None,
    facts: VideoFacts | None = None,
) -> Iterator[Sampled]:
    """Yield the pictures of `iter_frames`, or every picture with its own time if `frames_per_second` is None.

    The other arguments and the errors are those of `iter_frames`. `facts` is updated before each picture.
    """
    require_video(path)
    av = import_av()
    facts = VideoFacts() if facts is None else facts
    index, number, start, time, shown = 0, -1, None, 0.0, None
    repair = "replace it, or try to repair it (ffmpeg -i broken.mp4 -c copy repaired.mp4)"
    too_large, options = "", {}
    if max_decoded_side is not None:
        too_large = f"frames larger than {max_decoded_side} x {max_decoded_side} pixels"
        # FFmpeg enforces this limit before it allocates memory; the margin is for padding by the decoder
        options = {"max_pixels": str((max_decoded_side + 256) ** 2)}
    try:
        with av.open(str(path), options=options) as container:
            stream = _stream(container, path)
            stream.codec_context.options = options
            stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
            for frame in container.decode(stream):
                if frame.time is None:
                    raise UserError(f"{path}: its frames have no timestamps; {repair}")
                if max_decoded_side is not None and max(frame.width, frame.height) > max_decoded_side:
                    raise UserError(f"{path} contains {too_large}: {frame.width} x {frame.height} after {time:.1f} s")
                start = frame.time if start is None else start
                before, time = time, frame.time - start
                if not -_JITTER < time - before <= _LONGEST_GAP:
                    raise UserError(f"{path}: its timestamps jump from {before:.2f} s to {time:.2f} s; {repair}")
                if time > before:
                    facts.shortest, facts.longest = (
                        min(facts.shortest, time - before),
                        max(facts.longest, time - before),
                    )
                facts.rotation = facts.rotation or frame.rotation % 360
                time = max(before, time)
                if frames_per_second is not None:
                    while shown is not None and index / frames_per_second < time - _TOLERANCE:
                        yield Sampled(index, index / frames_per_second, number, shown)
                        index += 1
                number, shown = number + 1, frame
                if frames_per_second is None:
                    yield Sampled(number, time, number, frame)
            if shown is None:
                raise UserError(f"{path} contains no frames; {repair}")
            end = time + float((shown.duration or 0) * shown.time_base or 1 / (stream.average_rate or 25))
            while frames_per_second is not None and index / frames_per_second < end - _TOLERANCE:
                yield Sampled(index, index / frames_per_second, number, shown)
                index += 1
            declared = float((stream.duration or 0) * stream.time_base)
            if not declared and len(container.streams) == 1:  # the container may count its audio
                declared = (container.duration or 0) / av.time_base - start
            if end < declared - 1:
                raise UserError(f"{path} is truncated after {end:.1f} of {declared:.1f} s; {repair}")
    except av.FFmpegError as error:
        reason = f"{error}, or {too_large}" if too_large else error
        raise UserError(f"{path} cannot be read beyond {time:.1f} s ({reason}); {repair}") from error


def expected_frames(path: Path, frames_per_second: float | None) -> int:
    """Return about the number of pictures that `sample_pictures` will yield, or 0 if the video cannot be read.

    The file header has the length. If it has none, as in files of streams, the packets are read without decoding.
    """
    try:
        seconds = video_seconds(path) or _seconds_of_packets(path)
        return round(seconds * (frame_rate(path) if frames_per_second is None else frames_per_second))
    except UserError:  # reading the video will report the error
        return 0


def to_picture(frame, max_side: int | None) -> Image.Image:
    """Return a PyAV frame as an upright RGB picture, shrunk to at most `max_side` pixels on its longer side."""
    image = frame.to_image()
    turn = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    if frame.rotation % 360 in turn:  # counterclockwise in degrees, as in PIL
        image = image.transpose(turn[frame.rotation % 360])
    if max_side is not None and max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    return image


def frame_rate(path: Path) -> float:
    """Return the average number of frames per second of a video."""
    av = import_av()
    try:
        with av.open(str(path)) as container:
            return float(_stream(container, path).average_rate)
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be read as a video ({error}); replace or remove it") from error


def video_seconds(path: Path) -> float:
    """Return the length of a video in seconds from its header, or 0 if it is unknown or unreadable."""
    av = import_av()
    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / av.time_base
    except av.FFmpegError:
        return 0.0


def _seconds_of_packets(path: Path) -> float:
    """Return the time between the first and the last packet of a video, up to where it can be read."""
    av = import_av()
    first, last = math.inf, -math.inf
    try:
        with av.open(str(path)) as container:
            for packet in container.demux(_stream(container, path)):
                if packet.pts is not None:
                    seconds = float(packet.pts * packet.time_base)
                    first, last = min(first, seconds), max(last, seconds)
    except av.FFmpegError:  # reading the video will report the error
        pass
    return max(0.0, last - first)


def require_video(path: Path) -> Path:
    """Return `path` if it is a file.

    Raises:
        MissingFileError: the file does not exist.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no video {path}; check the path")
    return path


def import_av():
    """Return the module of PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("reading videos needs PyAV, which is not installed; run: pip install av") from error
    return av


def _stream(container, path: Path):
    stream = container.streams.best("video")
    if stream is None:
        raise UserError(f"{path} contains no video stream; replace or remove it")
    return stream
