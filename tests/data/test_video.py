import io
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import video
from surgenet_hf.data.video import frame_rate, iter_frames
from tests.data.videos import av, gray, second_of, write_video


def _write_jpegs(path, sizes, times=None):
    """Write JPEG frames to a Matroska file at 25 frames per second.

    Args:
        path: Output file.
        sizes: Size (width, height) of each frame; the header declares only the first.
        times: Presentation times in frames, in any order; consecutive by default.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        (stream.width, stream.height), stream.pix_fmt = sizes[0], "yuvj420p"
        for i, size in enumerate(sizes):
            jpeg = io.BytesIO()
            Image.new("RGB", size).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            # a frame is never shown before it is decoded
            packet.pts, packet.dts = times[i] if times else i, i - len(sizes)
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_one_frame_per_second(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", 110)
    frames = list(iter_frames(path))
    assert [index for index, _ in frames] == [0, 1, 2, 3, 4]  # 4.4 s include part of a fifth second
    assert [second_of(image) for _, image in frames] == [0, 1, 2, 3, 4]
    assert frames[0][1].size == (48, 32)
    assert frames[0][1].mode == "RGB"
    assert frame_rate(path) == 25


@pytest.mark.parametrize(("num_frames", "expected"), [(75, 3), (76, 4), (1, 1)])
def test_the_number_of_frames_is_that_of_the_labels(tmp_path, num_frames, expected):
    """Test that the number of frames equals the number of labels used.

    Of labels for every frame, those at 0, 25, 50, ... are used.
    """
    assert len(list(iter_frames(write_video(tmp_path / "a.mp4", num_frames)))) == expected == -(-num_frames // 25)


def test_other_rates(tmp_path):
    path = write_video(tmp_path / "a.mp4", 90, rate=30)
    assert [second_of(image) for _, image in iter_frames(path)] == [0, 1, 2]
    assert [second_of(image) for _, image in iter_frames(path, 2)] == [0, 0, 1, 1, 2, 2]
    assert [second_of(image) for _, image in iter_frames(path, 0.5)] == [0, 2]
    with pytest.raises(ValueError, match="above 0"):
        list(iter_frames(path, 0))


def test_time_stamps_count_and_not_frames(tmp_path):
    """Test that time stamps determine the second of a frame, not its position.

    The recording pauses from 1 to 4 s. The last picture persists, and later frames keep their times.
    """
    times = [*range(25), *range(100, 150)]
    path = write_video(tmp_path / "a.mkv", 75, times=times)
    assert [second_of(image) for _, image in iter_frames(path)] == [0, 0, 0, 0, 1, 2]


def test_a_jump_of_the_clock_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mkv", 50, times=[*range(25), *range(25000, 25025)])
    with pytest.raises(ValueError, match=r"a\.mkv: its timestamps jump from 0\.96 s to 1000\.00 s"):
        list(iter_frames(path))


def test_time_stamps_that_step_back_by_a_few_frames(tmp_path):
    """Test time stamps that step back by a few frames.

    H.264 with B-frames in .avi has such time stamps, since it keeps only the decoding order.
    """
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.max_b_frames = 48, 32, "yuv420p", 2
        for i in range(75):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), gray(i // 25), np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times != sorted(times)
    assert [(index, second_of(image)) for index, image in iter_frames(path)] == [(0, 0), (1, 1), (2, 2)]


def test_a_recording_joined_to_an_earlier_one_is_an_error(tmp_path):
    sizes = [(16, 16)] * 100
    path = _write_jpegs(tmp_path / "near.mkv", sizes, [*range(75), *range(52, 77)])  # back by 0.92 s
    assert len(list(iter_frames(path))) == 4
    path = _write_jpegs(tmp_path / "far.mkv", sizes, [*range(75), *range(49, 74)])  # back by 1.04 s
    with pytest.raises(ValueError, match=r"far\.mkv: its timestamps jump from 2\.96 s to 1\.96 s"):
        list(iter_frames(path))


def test_a_video_that_starts_late_starts_at_0(tmp_path):
    path = write_video(tmp_path / "a.mkv", 50, times=range(60, 110))
    assert [second_of(image) for _, image in iter_frames(path)] == [0, 1]


def test_pictures_are_shrunk_but_not_enlarged(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1)
    assert next(iter_frames(path, max_side=24))[1].size == (24, 16)
    assert next(iter_frames(path, max_side=100))[1].size == (48, 32)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((80, 16), r"a\.mkv contains frames larger than 64 x 64 pixels: 80 x 16 after 2\.0 s"),
        ((16, 65), "contains frames larger than 64 x 64 pixels: 16 x 65"),
        # the decoder refuses this size
        ((400, 400), r"a\.mkv cannot be read beyond .*, or frames larger than 64 x 64 pixels"),
    ],
)
def test_a_video_whose_pictures_grow(tmp_path, monkeypatch, size, message):
    path = _write_jpegs(tmp_path / "a.mkv", [(64, 64)] * 50 + [size] * 25)
    assert [image.size for _, image in iter_frames(path)] == [(64, 64), (64, 64), size]
    shown, picture = [], video.to_picture
    monkeypatch.setattr(video, "to_picture", lambda frame, side: shown.append(frame.width) or picture(frame, side))
    with pytest.raises(ValueError, match=message):
        list(iter_frames(path, max_decoded_side=64))
    assert set(shown) == {64}  # oversized frames are never converted


def test_the_largest_size_that_is_allowed_is_read(tmp_path):
    path = write_video(tmp_path / "a.mp4", 25, size=(50, 50))  # the decoder pads this size
    assert len(list(iter_frames(path, max_decoded_side=50))) == 1
    with pytest.raises(ValueError, match="larger than 49 x 49 pixels"):
        list(iter_frames(path, max_decoded_side=49))


def test_a_turned_video_is_shown_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4", 25)
    content = path.read_bytes()
    matrix = content.find(b"tkhd") + 44  # a phone held upright writes this matrix
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    assert next(iter_frames(path))[1].size == (32, 48)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_download_that_stopped_between_two_frames(tmp_path, suffix):
    """Test a download that stopped between two frames.

    The decoder treats the cut as the end; only the header contains the true duration.
    """
    path = write_video(tmp_path / f"a.{suffix}", 250, **({"movflags": "faststart"} if suffix == "mp4" else {}))
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[100]])
    with pytest.raises(ValueError, match=rf"a\.{suffix} is truncated after [34]\.\d of 10\.0 s"):
        list(iter_frames(path))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read.*replace it"):
        list(iter_frames(tmp_path / "a.mp4"))
    with pytest.raises(FileNotFoundError, match=r"no video .*b\.mp4"):
        list(iter_frames(tmp_path / "b.mp4"))
