import io
import json
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import video
from surgenet_hf.data.video import extract_frames, extract_videos, find_frames, frame_rate, iter_frames
from tests.data.videos import av, grey, second_of, write_video


def _write_jpegs(path, sizes, times=None):
    """JPEG after JPEG in Matroska, 25 to a second: of any sizes, of which the header knows the first, at any times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        (stream.width, stream.height), stream.pix_fmt = sizes[0], "yuvj420p"
        for i, size in enumerate(sizes):
            jpeg = io.BytesIO()
            Image.new("RGB", size).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts, packet.dts = times[i] if times else i, i - len(sizes)  # shown never before it is decoded
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_one_frame_per_second(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", 110)
    frames = list(iter_frames(path))
    assert [index for index, _ in frames] == [0, 1, 2, 3, 4]  # 4.4 s: a last, started second
    assert [second_of(image) for _, image in frames] == [0, 1, 2, 3, 4]
    assert frames[0][1].size == (48, 32)
    assert frames[0][1].mode == "RGB"
    assert frame_rate(path) == 25


@pytest.mark.parametrize(("num_frames", "expected"), [(75, 3), (76, 4), (1, 1)])
def test_the_number_of_frames_is_that_of_the_labels(tmp_path, num_frames, expected):
    """Of labels for every frame, those at 0, 25, 50, ... are used: as many as there are pictures."""
    assert len(list(iter_frames(write_video(tmp_path / "a.mp4", num_frames)))) == expected == -(-num_frames // 25)


def test_other_rates(tmp_path):
    path = write_video(tmp_path / "a.mp4", 90, rate=30)
    assert [second_of(image) for _, image in iter_frames(path)] == [0, 1, 2]
    assert [second_of(image) for _, image in iter_frames(path, 2)] == [0, 0, 1, 1, 2, 2]
    assert [second_of(image) for _, image in iter_frames(path, 0.5)] == [0, 2]
    with pytest.raises(ValueError, match="above 0"):
        list(iter_frames(path, 0))


def test_time_stamps_count_and_not_frames(tmp_path):
    """A recording that paused from 1 to 4 s: the picture stays, what comes after keeps its time."""
    times = [*range(25), *range(100, 150)]
    path = write_video(tmp_path / "a.mkv", 75, times=times)
    assert [second_of(image) for _, image in iter_frames(path)] == [0, 0, 0, 0, 1, 2]


def test_a_jump_of_the_clock_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mkv", 50, times=[*range(25), *range(25000, 25025)])
    with pytest.raises(ValueError, match=r"a\.mkv: its time stamps jump from 0\.96 s to 1000\.00 s"):
        list(iter_frames(path))


def test_time_stamps_that_step_back_by_a_few_frames(tmp_path):
    """As those of H.264 with B-frames in .avi do, where only the order of decoding is kept."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.max_b_frames = 48, 32, "yuv420p", 2
        for i in range(75):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), grey(i // 25), np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times != sorted(times)
    assert [(index, second_of(image)) for index, image in iter_frames(path)] == [(0, 0), (1, 1), (2, 2)]


def test_a_recording_joined_to_an_earlier_one_is_an_error(tmp_path):
    sizes = [(16, 16)] * 100
    path = _write_jpegs(tmp_path / "near.mkv", sizes, [*range(75), *range(52, 77)])  # 0.92 s back
    assert len(list(iter_frames(path))) == 4
    path = _write_jpegs(tmp_path / "far.mkv", sizes, [*range(75), *range(49, 74)])  # 1.04 s back
    with pytest.raises(ValueError, match=r"far\.mkv: its time stamps jump from 2\.96 s to 1\.96 s"):
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
        ((80, 16), r"a\.mkv holds pictures of more than 64 x 64 pixels: 80 x 16 after 2\.0 s"),
        ((16, 65), "holds pictures of more than 64 x 64 pixels: 16 x 65"),
        ((400, 400), r"a\.mkv cannot be read beyond .*, or pictures of more than 64 x 64 pixels"),  # by the decoder
    ],
)
def test_a_video_whose_pictures_grow(tmp_path, monkeypatch, size, message):
    path = _write_jpegs(tmp_path / "a.mkv", [(64, 64)] * 50 + [size] * 25)
    assert [image.size for _, image in iter_frames(path)] == [(64, 64), (64, 64), size]
    shown, picture = [], video._picture
    monkeypatch.setattr(video, "_picture", lambda frame, side: shown.append(frame.width) or picture(frame, side))
    with pytest.raises(ValueError, match=message):
        list(iter_frames(path, max_decoded_side=64))
    assert set(shown) == {64}  # what is too large was never made a picture


def test_the_largest_size_that_is_allowed_is_read(tmp_path):
    path = write_video(tmp_path / "a.mp4", 25, size=(50, 50))  # which the decoder pads
    assert len(list(iter_frames(path, max_decoded_side=50))) == 1
    with pytest.raises(ValueError, match="more than 49 x 49 pixels"):
        list(iter_frames(path, max_decoded_side=49))


def test_a_turned_video_is_shown_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4", 25)
    content = path.read_bytes()
    matrix = content.find(b"tkhd") + 44  # what a phone writes when it is held upright
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    assert next(iter_frames(path))[1].size == (32, 48)


def test_extraction(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    frames = extract_frames(path, tmp_path / "out")
    assert [frame.name for frame in frames] == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert [second_of(Image.open(frame)) for frame in frames] == [0, 1, 2]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [frame.name for frame in frames] + [
        "extraction.json"
    ]


def test_a_complete_extraction_does_not_open_the_video_again(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 60)
    first = extract_frames(path, tmp_path / "out")
    monkeypatch.setattr(video, "_sample", None)
    assert extract_frames(path, tmp_path / "out") == first
    extract_videos({}, tmp_path)


def test_a_killed_extraction_goes_on(tmp_path, monkeypatch):
    path, out = write_video(tmp_path / "a.mp4", 100), tmp_path / "out"
    save, calls = video._save, []

    def dying(image, to):
        calls.append(to)
        if len(calls) == 3:
            to.with_name(f".{to.name}.1").write_bytes(b"half a picture")
            raise KeyboardInterrupt
        save(image, to)

    monkeypatch.setattr(video, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        extract_frames(path, out)
    assert not video.is_complete(out)
    kept = {file: file.stat().st_mtime_ns for file in out.glob("0*.jpg")}
    assert sorted(file.name for file in kept) == ["000000.jpg", "000001.jpg"]

    calls.clear()
    monkeypatch.setattr(video, "_save", lambda image, to: (calls.append(to.name), save(image, to)))
    frames = extract_frames(path, out)
    assert calls == ["000002.jpg", "000003.jpg"]
    assert [second_of(Image.open(frame)) for frame in frames] == [0, 1, 2, 3]
    assert all(file.stat().st_mtime_ns == before for file, before in kept.items())
    assert video.is_complete(out)


def test_frames_that_were_lost_come_back(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    frames = extract_frames(path, tmp_path / "out")
    frames[1].unlink()
    assert extract_frames(path, tmp_path / "out") == frames
    assert frames[1].exists()


def test_frames_of_other_settings_are_not_taken(tmp_path):
    path, out = write_video(tmp_path / "a.mp4", 60), tmp_path / "out"
    extract_frames(path, out)
    with pytest.raises(ValueError, match=r"frames_per_second=1\.0, max_side=None, now it is .*=2.0, max_side=24"):
        extract_frames(path, out, 2.0, 24)
    write_video(path, 80)
    with pytest.raises(ValueError, match=r"out holds frames extracted with bytes="):
        extract_frames(path, out)


def test_frames_from_elsewhere_are_not_mixed_with(tmp_path):
    path, out = write_video(tmp_path / "a.mp4", 60), tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (8, 8)).save(out / "frame_7.png")
    with pytest.raises(ValueError, match=r"out holds frames from elsewhere \(frame_7\.png"):
        extract_frames(path, out)


def test_a_broken_video_is_named_and_what_was_read_is_kept(tmp_path):
    path, out = write_video(tmp_path / "a.mp4", 500, movflags="faststart"), tmp_path / "out"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"a\.mp4 .*\d s.*ffmpeg.* the \d+ frames before that are in .*out"):
        extract_frames(path, out)
    assert 5 < len(list(out.glob("*.jpg"))) < 20
    assert not video.is_complete(out)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_download_that_stopped_between_two_frames(tmp_path, suffix):
    """The decoder takes it for the end; only the header knows better."""
    path = write_video(tmp_path / f"a.{suffix}", 250, **({"movflags": "faststart"} if suffix == "mp4" else {}))
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[100]])
    with pytest.raises(ValueError, match=rf"a\.{suffix} breaks off after [34]\.\d of 10\.0 s"):
        list(iter_frames(path))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read.*replace it"):
        list(iter_frames(tmp_path / "a.mp4"))
    with pytest.raises(FileNotFoundError, match=r"no video .*b\.mp4"):
        list(iter_frames(tmp_path / "b.mp4"))


def test_several_videos_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(video.os, "cpu_count", lambda: 4)
    threads, extract = set(), video.extract_frames
    barrier = threading.Barrier(2, timeout=30)  # passes only if two are at work at once

    def watched(*args):
        barrier.wait()
        threads.add(threading.get_ident())
        return extract(*args)

    monkeypatch.setattr(video, "extract_frames", watched)
    extract_videos({name: write_video(tmp_path / f"{name}.mp4", 60) for name in "ab"}, tmp_path / "out")
    assert len(threads) == 2
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 6


def test_one_broken_video_does_not_stop_the_others_and_all_are_named(tmp_path):
    videos = {name: write_video(tmp_path / f"{name}.mp4", 60) for name in "abc"}
    for name in "ac":
        videos[name].write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"(?s)a\.mp4 cannot be read.*also: .*c\.mp4 cannot be read"):
        extract_videos(videos, tmp_path / "out")
    assert len(list((tmp_path / "out" / "b").glob("*.jpg"))) == 3


def _frames(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


@pytest.mark.parametrize(
    "names",
    [
        ["000000.jpg", "000001.jpg", "000002.jpg"],
        ["a_1.png", "a_2.png", "a_3.png"],  # as ffmpeg counts
        ["f0.jpg", "f25.jpg", "f50.jpg"],  # by the number in the video; 100 would come before 25 by letters
        ["25.jpg", "50.jpg", "75.jpg", "100.jpg"],
    ],
)
def test_frames_that_are_there_already(tmp_path, names):
    _frames(tmp_path / "v", names)
    (tmp_path / "v" / "._f0.jpg").write_bytes(b"what macOS leaves")
    found = find_frames(["v", "absent"], {}, tmp_path)
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {"v": names}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg", "2.jpg", "4.jpg"], r"after frame 2\.jpg comes 4"),
        (["7.jpg", "8.jpg"], r"7\.jpg: the first frame must have number 0, 1"),
        (["1.jpg", "01.png"], "comes 1"),
        (["one.jpg"], r"one\.jpg: a frame's name must end in its number"),
    ],
)
def test_frames_that_cannot_be_aligned(tmp_path, names, message):
    _frames(tmp_path / "v", names)
    with pytest.raises(ValueError, match=message):
        find_frames(["v"], {}, tmp_path)


def test_an_empty_frame_is_named(tmp_path):
    _frames(tmp_path / "v", ["0.jpg", "1.jpg"])
    (tmp_path / "v" / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.jpg is empty"):
        find_frames(["v"], {}, tmp_path)


def test_frames_outlive_the_video_if_they_are_complete(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    extract_frames(path, tmp_path / "frames" / "a")
    path.unlink()
    assert len(find_frames(["a"], {}, tmp_path / "frames")["a"]) == 3
    marker = tmp_path / "frames" / "a" / "extraction.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "frames": None}))
    with pytest.raises(ValueError, match=r"a: the extraction was not finished and its video is not there"):
        find_frames(["a"], {}, tmp_path / "frames")
