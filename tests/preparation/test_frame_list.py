import unicodedata
from fractions import Fraction

import numpy as np
import pytest

from surgenet_hf.data.video import iter_listed_frames
from surgenet_hf.preparation.frame_list import FrameList, listed_name
from surgenet_hf.preparation.shards import FrameOptions, prepare_frames
from tests.data.videos import av, write_video
from tests.preparation.test_shards import read_index


def count_video(path, num_frames: int, rate):
    """Write a video in which frame k has the gray value 2 k, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)  # lossless, to identify each frame
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for k in range(num_frames):
            picture = np.full((32, 48, 3), 2 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def frame_list(path, *lines: str):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("video.mp4", "video"),
        ("video#.mp4.mweb", "video?"),
        ("Dr. Who, part 1.5 #2.mp4", "Dr"),
        ("#1 how? (4K).webm", "?1 how? (4K)"),
        ("no extension", "no extension"),
        ("..dots.mp4", "..dots"),
        (unicodedata.normalize("NFD", "é.mp4"), "é"),
    ],
)
def test_what_the_list_calls_a_video(file, name):
    assert listed_name(file) == name


def test_lines(tmp_path):
    frames = FrameList(
        frame_list(
            tmp_path / "list.txt",
            "colectomy/Batch0/a_frame_3_Sample17.jpg",
            "/data/SurgeNetXL/colectomy/Batch12/a_frame_40_Sample123456.jpg",
            "a_frame_7_Sample1.jpg",
            "",
            "elsewhere/a_frame_7_Sample2.jpg",
            "p/Batch1/b_frame_1_frame_2_Sample3.jpg",
            "  ?2 (x) é_frame_0_Sample0.jpg\r",
            "a_frame_x_Sample1.jpg",
            "a_frame_1.jpg",
        )
    )
    assert frames.frames == {
        "a": {"colectomy": {3, 40}, None: {7}},
        "b_frame_1": {"p": {2}},
        "?2 (x) é": {None: {0}},
    }
    assert len(frames) == 5
    assert frames.malformed == ["a_frame_x_Sample1.jpg", "a_frame_1.jpg"]


@pytest.mark.parametrize("lines", [[], ["index,name", "1,a"]])
def test_what_is_no_list(tmp_path, lines):
    with pytest.raises(ValueError, match=r"list\.txt has no line like '<video>_frame_<n>_Sample<i>\.jpg'"):
        FrameList(frame_list(tmp_path / "list.txt", *lines))


def test_videos_of_one_name(tmp_path):
    lines = ["p/Batch0/a_frame_1_Sample1.jpg", "q/Batch0/a_frame_2_Sample1.jpg", "a_frame_3_Sample1.jpg"]
    frames = FrameList(frame_list(tmp_path / "list.txt", *lines))
    assert frames.match([("a.mp4", "p"), ("a.mp4", "r")]) == [{"p": {1}, None: {3}}, {None: {3}}]
    assert frames.match([("a.mp4", "p")]) == [{"p": {1}, None: {3}}]  # the video of the other procedure is missing
    assert frames.match([("a.mp4", "P")]) == [{"p": {1}, "q": {2}, None: {3}}]  # folders have other names
    assert frames.match([("b.mp4", "p")]) == [{}]


@pytest.mark.parametrize(
    ("rate", "step"), [(5, 5), (Fraction(30000, 1001), 29), (Fraction(1, 2), 1)], ids=["5", "29.97", "0.5"]
)
def test_frame_n_is_picture_n_times_the_whole_part_of_the_rate(tmp_path, rate, step):
    path = count_video(tmp_path / "a.mkv", 90, rate)
    frames = {n: (second, image) for n, second, image in iter_listed_frames(path, [0, 1, 3, 1000])}
    assert list(frames) == [0, 1, 3]
    for n, (second, image) in frames.items():
        assert np.asarray(image).mean() == pytest.approx(2 * n * step, abs=1)
        assert second == pytest.approx(n * step / rate, abs=2e-3)


def test_pictures_count_and_not_time_stamps(tmp_path):
    """Test that listed frames are counted by position rather than time stamp.

    The recording pauses from 1 to 4 s, but the authors' count continues.
    """
    path = write_video(tmp_path / "a.mkv", 75, times=[*range(25), *range(100, 150)])
    seconds = [round(second) for _, second, _ in iter_listed_frames(path, [0, 1, 2])]
    assert seconds == [0, 4, 5]


def test_nothing_is_decoded_behind_the_last_number(tmp_path):
    path = write_video(tmp_path / "a.mp4", 500, movflags="faststart")
    path.write_bytes(path.read_bytes()[:-3000])
    assert [n for n, *_ in iter_listed_frames(path, [0, 2])] == [0, 2]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read beyond frame -1"):
        list(iter_listed_frames(tmp_path / "a.mp4", [0]))
    with pytest.raises(FileNotFoundError, match=r"no video .*b\.mp4"):
        list(iter_listed_frames(tmp_path / "b.mp4", [0]))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for name in ("p/#1 a.mp4.mkv", "p/b.mp4", "q/b.mp4", "q/unlisted.mp4"):
        write_video(root / name, 100)
    (root / "q" / "broken.mp4").write_bytes(b"")
    return root


def test_shards_of_a_list(videos, tmp_path):
    path = frame_list(
        tmp_path / "list.txt",
        "p/Batch0/?1 a_frame_2_Sample90.jpg",  # names and batches as on another file system
        "p/Batch7/?1 a_frame_0_Sample3.jpg",
        "p/Batch7/?1 a_frame_4_Sample3.jpg",  # beyond the 4 seconds of the video
        "p/Batch1/b_frame_1_Sample8.jpg",
        "q/Batch1/b_frame_3_Sample8.jpg",
        "q/Batch1/broken_frame_3_Sample8.jpg",
        "q/Batch1/absent_frame_3_Sample8.jpg",
        "what is this",
    )
    totals = prepare_frames(videos, tmp_path / "out", frame_list=path)["totals"]
    index = read_index(tmp_path / "out")
    assert index[["video", "number"]].to_numpy().tolist() == [
        ["p/#1 a.mp4.mkv", 0],
        ["p/#1 a.mp4.mkv", 2],
        ["p/b.mp4", 1],
        ["q/b.mp4", 3],
    ]
    assert index["second"].tolist() == [0, 2, 1, 3]
    assert sorted((tmp_path / "out" / "unmatched.txt").read_text().splitlines()) == [
        "the list does not name this video\tq/unlisted.mp4",
        "the video has no such frame\tp/?1 a_frame_4",
        "the video is broken\tq/broken_frame_3",
        "there is no such video\tq/absent_frame_3",
        "this line does not name a frame\twhat is this",
    ]
    assert totals == {
        "videos": 5, "shards": 2, "sampled": 4, "kept": 4, "black": 0, "duplicate": 0, "broken": 1,
        "listed": 7, "unmatched": 5,
    }  # fmt: skip


def test_a_frame_that_one_of_two_videos_has_is_matched(tmp_path):
    write_video(tmp_path / "v" / "p" / "a.mp4", 100)
    write_video(tmp_path / "v" / "q" / "a.mp4", 25)
    path = frame_list(tmp_path / "list.txt", "a_frame_3_Sample0.jpg", "a_frame_9_Sample0.jpg")
    prepare_frames(tmp_path / "v", tmp_path / "out", frame_list=path)
    assert read_index(tmp_path / "out")["video"].tolist() == ["p/a.mp4"]
    assert (tmp_path / "out" / "unmatched.txt").read_text() == "the video has no such frame\ta_frame_9\n"


def test_lists_that_do_not_fit(videos, tmp_path):
    path = frame_list(tmp_path / "list.txt", "z_frame_0_Sample0.jpg")
    with pytest.raises(
        ValueError, match=r"no video matches the frame list: the list has names such as 'z', but .* '\?1 a'"
    ):
        prepare_frames(videos, tmp_path / "out", frame_list=path)
    path = frame_list(tmp_path / "list.txt", "unlisted_frame_1000_Sample0.jpg")
    with pytest.raises(ValueError, match="no frames were found"):
        prepare_frames(videos, tmp_path / "out", frame_list=path)
    with pytest.raises(ValueError, match="leave frames_per_second at 1"):
        prepare_frames(videos, tmp_path / "out", FrameOptions(frames_per_second=2), frame_list=path)
    frame_list(path, "unlisted_frame_1_Sample0.jpg")
    with pytest.raises(
        ValueError, match=r"created with frame_list='\w+', but the current settings are frame_list='\w+'"
    ):
        prepare_frames(videos, tmp_path / "out", frame_list=path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        prepare_frames(videos, tmp_path / "out", frame_list=tmp_path / "nowhere.txt")
