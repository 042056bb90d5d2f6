"""Videos for tests, in which the gray value of a frame identifies its second."""

from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")


def gray(second: int) -> int:
    return 20 + 10 * second


def write_video(path: Path, num_frames: int, rate: int = 25, size: tuple[int, int] = (32, 48), times=None, **options):
    """Encode a video and return its path.

    Args:
        path: Output file.
        num_frames: Number of frames.
        rate: Frames per second.
        size: Size of a frame (height, width).
        times: Presentation times in frames, by default 0, 1, 2, ...
        options: Options of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i, time in enumerate(times or range(num_frames)):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), gray(i // rate), np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def second_of(image) -> float:
    """Return the second at which a frame of `write_video` was taken."""
    return round((np.asarray(image).mean() - 20) / 10)
