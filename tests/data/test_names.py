import os
import shutil

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.base import Sample, build_splits
from surgenet_hf.data.masks import lookup_table
from surgenet_hf.data.names import check_no_overlap, frame_number
from surgenet_hf.preparation.extraction import scan_videos
from surgenet_hf.preparation.shards import prepare_frames

LOOK_ALIKES = [
    ("video1", "video1\u200b"),  # zero-width space
    ("video1", "\ufeffvideo1"),  # byte order mark
    ("video1", "vid\u00adeo1"),  # soft hyphen
    ("video 1", "video\u00a01"),  # no-break space
    ("video1", "video1 "),
    ("Näh", "Na\u0308h"),  # full-width digit
    ("Näh", "Na\u200b\u0308h"),
    ("video1", "video\uff11"),  # full width
    ("video1", "video1\ufe0f"),  # variation selector
    ("video1", "video1\u034f"),  # combining grapheme joiner
]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES)
def test_two_names_of_one_look_are_refused(tmp_path, one, other):
    """Test that two names that look the same are refused, also within one split.

    Within a split one video would count as two.
    """
    path = tmp_path / "frame.png"
    frames = {name: Sample(path, 0, name, 0) for name in (one, other)}
    masked = {name: Sample(path, path, name, 0) for name in (one, other)}
    for samples, build in (
        (frames, build_splits),
        (masked, lambda splits: build_splits(splits, lookup_table({0: 0}))),
    ):
        for splits in (
            {"train": [samples[one]], "validation": [samples[other]]},
            {"train": [samples[one], samples[other]]},
        ):
            with pytest.raises(ValueError, match="look the same") as error:
                build(splits)
            assert ascii(one) in str(error.value)
            assert ascii(other) in str(error.value)


def test_names_that_look_different_are_kept():
    check_no_overlap({"train": ["video1", "Video1", "video 1", "video-1"], "test": ["video01", "Näh", "Nah"]})


def test_a_video_in_two_splits_of_masks_is_an_error(tmp_path):
    sample = Sample(tmp_path / "frame.png", tmp_path / "mask.png", "v", 0)
    with pytest.raises(ValueError, match="'v' is in train and in test, but splits must be by video"):
        build_splits({"train": [sample], "test": [sample]}, lookup_table({0: 0}))


def _save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16), value, np.uint8)).save(path)


@pytest.fixture
def masked(tmp_path):
    for name in ("a_1", "a_2", "b_1", "c_1"):
        _save(tmp_path / "images" / f"{name}.png")
        _save(tmp_path / "masks" / f"{name}.png", int(name[-1]) - 1)
    return tmp_path


@pytest.fixture
def table(tmp_path):
    def write(*rows, header="image,video,label"):
        for name in "12":
            _save(tmp_path / f"{name}.png")
        (tmp_path / "labels.csv").write_text("\n".join((header, *rows)), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def phases(tmp_path):
    def write(name, text):
        for i in range(2):
            _save(tmp_path / "frames" / name / f"{i}.png")
        path = tmp_path / "phases" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for name in ("a", "b", "Näh"):
        write(name, "0\tcut\n1\tsuture\n")
    return write


def test_look_alikes_of_each_data_set(tmp_path, table, phases):
    with pytest.raises(ValueError, match=r"two video names look the same but differ, 'p' and 'p\\u200b'"):
        load_data("csv", table("1.png,p,a", "2.png,p\u200b,b"))
    root = table("1.png,p,a,train", "2.png,p\u200b,b,validation", header="image,video,label,split")
    with pytest.raises(ValueError, match=r"labels\.csv: two video names look the same but differ, 'p' and 'p\\u200b'"):
        load_data("csv", root)
    with pytest.raises(ValueError, match=r"labels\.csv: two class names look the same but differ, 'a' and 'a\\xad'"):
        load_data("csv", table("1.png,p,a", "2.png,q,a\u00ad"))
    (tmp_path / "splits.csv").write_text("video,split\na,train\nb,validation\nNa\u0308h,train\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"splits\.csv: two video names look the same .* 'Na\\u0308h' and 'N\\xe4h'"):
        load_data("videos", tmp_path)
    (tmp_path / "classes.txt").write_text("cut\nsuture\ncut\u200b\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes\.txt: two class names look the same but differ, 'cut'"):
        load_data("videos", tmp_path)
    (tmp_path / "classes.txt").unlink()
    phases("a", "0\tcut\n1\tcut\u200b\n")
    with pytest.raises(ValueError, match=r"phases: two phase names look the same but differ, 'cut' and 'cut\\u200b'"):
        load_data("videos", tmp_path)


LONG = "12345678901234567890"


def test_numbers_of_twenty_digits_are_named(masked, table, phases):
    for folder in ("images", "masks"):
        (masked / folder / "b_1.png").rename(masked / folder / f"b_{LONG}.png")
    with pytest.raises(ValueError, match=rf"b_{LONG}\.png: the number {LONG} is too large"):
        load_data("folder", masked)
    for folder in ("images", "masks"):
        for video in "abc":
            (masked / folder / video).mkdir()
        for path in (masked / folder).glob("?_*.png"):
            path.rename(masked / folder / path.name[0] / path.name)
    with pytest.raises(ValueError, match=rf"b_{LONG}\.png: the number {LONG} is too large"):
        load_data("folder", masked)

    with pytest.raises(ValueError, match=rf"x{LONG}\.png: the number {LONG} is too large"):
        load_data("csv", table(f"x{LONG}.png,p,a", "2.png,q,b"))
    for number in (LONG, "9" * 5000):  # more digits than Python converts to int
        with pytest.raises(ValueError, match=rf"labels\.csv, line 2: the number {number[:20]}.* is too large"):
            load_data("csv", table(f"1.png,p,a,{number}", "2.png,q,b,1", header="image,video,label,frame"))

        phases("a", f"0\tcut\n{number}\tsuture\n")
        with pytest.raises(ValueError, match=rf"a\.txt, line 2: the number {number[:20]}.* is too large"):
            load_data("videos", masked)
    phases("a", "0\tcut\n1\tsuture\n")
    _save(masked / "frames" / "a" / f"{LONG}.png")
    with pytest.raises(ValueError, match=rf"{LONG}\.png: the number {LONG} is too large"):
        load_data("videos", masked)


def test_the_largest_number_fits(masked):
    number = 2**63 - 1
    for folder in ("images", "masks"):
        (masked / folder / "b_1.png").rename(masked / folder / f"b_{number}.png")
    splits = load_data("folder", masked).splits
    assert number in [frame for split in splits.values() for frame in split.select_columns(["frame"])[:]["frame"]]
    assert frame_number("0" * 30 + "7", "here") == 7


def test_a_phase_number_that_names_no_class(tmp_path, phases):
    for name in ("a", "b", "Näh"):
        phases(name, "0\t0\n1\t999999999999\n")
    with pytest.raises(ValueError, match="found the phase 999999999999; expected numbers from 0 to 254"):
        load_data("videos", tmp_path)


def _latin(folder, name):
    """Return the path of a file whose name is not UTF-8, or skip if the file system does not allow it."""
    path = folder / os.fsdecode(name)
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system has Unicode names only")
    path.unlink()
    return path


def test_file_names_that_are_not_unicode_are_named(masked, phases):
    video = _latin(masked / "phases", b"caf\xe9.txt")
    (masked / "phases" / "b.txt").rename(video)
    with pytest.raises(ValueError, match=r"caf\\xe9\.txt is not valid UTF-8; rename it"):
        load_data("videos", masked)
    video.unlink()
    shutil.rmtree(masked / "frames" / "b")
    frames = _latin(masked / "frames" / "a", b"caf\xe9_1.png")
    (masked / "frames" / "a" / "1.png").rename(frames)
    with pytest.raises(ValueError, match=r"caf\\xe9_1\.png is not valid UTF-8; rename it"):
        load_data("videos", masked)

    for folder in ("images", "masks"):
        (masked / folder / "b_1.png").rename(_latin(masked / folder, b"caf\xe9_1.png"))
    with pytest.raises(ValueError, match=r"caf\\xe9_1\.png is not valid UTF-8; rename it"):
        load_data("folder", masked)
    root = masked.rename(_latin(masked.parent, b"caf\xe9"))
    with pytest.raises(ValueError, match=r"caf\\xe9 is not valid UTF-8; rename it"):
        load_data("folder", root)


def test_a_broken_video_with_a_name_that_is_not_unicode(tmp_path):
    """Test that the report on a broken video is valid Unicode."""
    pytest.importorskip("av")
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    _latin(tmp_path, b"caf\xe9").mkdir()
    _latin(folder, b"b\xe9.mp4").write_bytes(b"no video")
    (video,) = scan_videos(folder)
    assert (video.procedure, video.name) == ("caf\\xe9", "b\\xe9.mp4")
    with pytest.raises(ValueError, match=r"no frames were found in 1 videos\n.*b\\xe9\.mp4 cannot be read"):
        prepare_frames(folder, tmp_path / "out", num_workers=1)
