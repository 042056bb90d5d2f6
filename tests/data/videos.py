"""Videos for tests: each second has a grey of its own, so that a frame tells when it was taken."""

from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")


def grey(second: int) -> int:
    return 20 + 10 * second


def write_video(path: Path, num_frames: int, rate: int = 25, size: tuple[int, int] = (32, 48), times=None, **options):
    """Encode `num_frames` frames of `size` (height, width); `times` (in frames) replaces 0, 1, 2, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i, time in enumerate(times or range(num_frames)):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), grey(i // rate), np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def second_of(image) -> float:
    """The second that a picture of `write_video` is of."""
    return round((np.asarray(image).mean() - 20) / 10)
