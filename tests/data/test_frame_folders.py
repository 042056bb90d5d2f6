import json
import threading

import pytest
from PIL import Image

from surgenet_hf.data import frame_folders
from surgenet_hf.data.frame_folders import extract_frames, extract_videos, find_frames
from tests.data.videos import second_of, write_video


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
    monkeypatch.setattr(frame_folders, "sample_video", None)
    assert extract_frames(path, tmp_path / "out") == first
    extract_videos({}, tmp_path)


def test_a_killed_extraction_goes_on(tmp_path, monkeypatch):
    path, out = write_video(tmp_path / "a.mp4", 100), tmp_path / "out"
    save, calls = frame_folders._save, []

    def dying(image, to):
        calls.append(to)
        if len(calls) == 3:
            to.with_name(f".{to.name}.1").write_bytes(b"half a picture")
            raise KeyboardInterrupt
        save(image, to)

    monkeypatch.setattr(frame_folders, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        extract_frames(path, out)
    assert not frame_folders.is_complete(out)
    kept = {file: file.stat().st_mtime_ns for file in out.glob("0*.jpg")}
    assert sorted(file.name for file in kept) == ["000000.jpg", "000001.jpg"]

    calls.clear()
    monkeypatch.setattr(frame_folders, "_save", lambda image, to: (calls.append(to.name), save(image, to)))
    frames = extract_frames(path, out)
    assert calls == ["000002.jpg", "000003.jpg"]
    assert [second_of(Image.open(frame)) for frame in frames] == [0, 1, 2, 3]
    assert all(file.stat().st_mtime_ns == before for file, before in kept.items())
    assert frame_folders.is_complete(out)


def test_frames_that_were_lost_come_back(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    frames = extract_frames(path, tmp_path / "out")
    frames[1].unlink()
    assert extract_frames(path, tmp_path / "out") == frames
    assert frames[1].exists()


def test_frames_of_other_settings_are_not_taken(tmp_path):
    path, out = write_video(tmp_path / "a.mp4", 60), tmp_path / "out"
    extract_frames(path, out)
    with pytest.raises(
        ValueError, match=r"frames_per_second=1\.0, max_side=None, but the current settings are .*=2.0, max_side=24"
    ):
        extract_frames(path, out, 2.0, 24)
    with pytest.raises(
        ValueError, match=r"frames_per_second=1\.0, but the current settings are frames_per_second=2\.0"
    ):
        find_frames(["out"], {"out": path}, tmp_path, frames_per_second=2.0)
    write_video(path, 80)
    with pytest.raises(ValueError, match=r"out contains frames extracted with bytes="):
        extract_frames(path, out)


def test_frames_from_elsewhere_are_not_mixed_with(tmp_path):
    path, out = write_video(tmp_path / "a.mp4", 60), tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (8, 8)).save(out / "frame_7.png")
    with pytest.raises(ValueError, match=r"out contains frames from another source \(frame_7\.png"):
        extract_frames(path, out)


def test_a_broken_video_is_named_and_what_was_read_is_kept(tmp_path):
    path, out = write_video(tmp_path / "a.mp4", 500, movflags="faststart"), tmp_path / "out"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"a\.mp4 .*\d s.*ffmpeg.* the \d+ frames before the error are in .*out"):
        extract_frames(path, out)
    assert 5 < len(list(out.glob("*.jpg"))) < 20
    assert not frame_folders.is_complete(out)


def test_several_videos_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_folders.os, "cpu_count", lambda: 4)
    threads, extract = set(), frame_folders.extract_frames
    barrier = threading.Barrier(2, timeout=30)  # passes only if two threads work at the same time

    def watched(*args):
        barrier.wait()
        threads.add(threading.get_ident())
        return extract(*args)

    monkeypatch.setattr(frame_folders, "extract_frames", watched)
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
        ["a_1.png", "a_2.png", "a_3.png"],  # numbered as by ffmpeg
        ["f0.jpg", "f25.jpg", "f50.jpg"],  # by the number in the video; alphabetically 100 would precede 25
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
        (["1.jpg", "2.jpg", "4.jpg"], r"frame 2\.jpg is followed by frame 4"),
        (["7.jpg", "8.jpg"], r"7\.jpg: the first frame must have number 0, 1"),
        (["1.jpg", "01.png"], "is followed by frame 1"),
        (["one.jpg"], r"one\.jpg: a frame's name must end with its number"),
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
    with pytest.raises(ValueError, match=r"a contains an incomplete extraction, and its video is missing"):
        find_frames(["a"], {}, tmp_path / "frames")
