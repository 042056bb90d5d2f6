"""Overlay videos: MP4 files of the frames with painted classes."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from PIL import Image

from ..atomic import atomic_write
from ..data.frame_folders import writing
from ..data.video import import_av

_CLOCK = 90_000  # time stamps per second
_OPTIONS = {"crf": "20", "g": "25"}  # quality of x264, and a key frame every 25 frames, to which players can jump


def write_overlay_video(path: Path, frames: Iterable[tuple[float, Path]], frames_per_second: float | None) -> None:
    """Write an H.264 video atomically, one picture at a time.

    The video has the size of the first picture, rounded down to even numbers, which H.264 requires. Other pictures are
    resized.

    Args:
        path: MP4 file.
        frames: time in seconds and image file of each picture, in ascending order.
        frames_per_second: frame rate, or None if it is unknown.
    """
    av = import_av()
    with writing(path), atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream, previous = None, -1
        for seconds, file in frames:
            with Image.open(file) as image:
                frame = av.VideoFrame.from_image(image)
            if stream is None:
                rate = Fraction(frames_per_second or 25).limit_denominator(1000)
                stream = container.add_stream("h264", rate=rate, options=_OPTIONS)
                stream.width, stream.height = max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2)
                stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, _CLOCK)
            frame = frame.reformat(stream.width, stream.height, "yuv420p")
            previous = max(previous + 1, round(seconds * _CLOCK))  # pictures of damaged videos may have equal times
            frame.pts, frame.time_base = previous, Fraction(1, _CLOCK)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
