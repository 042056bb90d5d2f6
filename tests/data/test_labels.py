import json

import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.labels import read_classes, read_table
from surgenet_hf.preparation.frame_list import FrameList


def _csv(tmp_path, content):
    for name in "12":
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,video,label\n1.png,p,a\n2.png,q," + b"b" * 200_000, "line 3: cannot be read as CSV .*field limit"),
        (b'image,video,label\n1.png,p,a\n2.png,q,"' + b"b\n" * 100_000, "cannot be read as CSV .*unclosed"),
        (b"image,video,label\n1.png,p,a\n2.png,q\0,b\n", "line 3: found a NUL byte"),
        ("image,video,label\n1.png,p,a\n".encode("utf-16-le"), "line 1: found a NUL byte"),
        ("image,video,label\n1.png,caf\u00e9,a\n".encode("latin-1"), "is not UTF-8 text"),
        (b"image,video,label\n1.png,p,a\n2.png,q,\n", "line 3: label is empty"),
        (b"image,video,label\n\n1.png,p,a\n\n2.png,,b\n", "line 5: video is empty"),  # blank lines are counted
        (b'image,video,label\n"1.png",p,"a\nb"\n2.png,q\n', "line 4: expected 3 values"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"labels\.csv.*{message}"):
        load_data("csv", _csv(tmp_path, content))


def test_an_image_name_that_no_file_can_have(tmp_path):
    content = b"image,video,label\n1.png,p,a\n" + b"x" * 5000 + b".png,q,b\n"
    with pytest.raises(FileNotFoundError, match=r"labels\.csv: 1 of 2 frames are missing: .*xxx\.png"):
        load_data("csv", _csv(tmp_path, content))


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_rows_and_their_lines(tmp_path, newline):
    path = tmp_path / "table.csv"
    path.write_bytes(newline.join(["a; b", "1;two,three", "", ' 4 ;"five;six"', ""]).encode("utf-8-sig"))
    rows = read_table(path, ("a",), "")
    assert rows == [(2, {"a": "1", "b": "two,three"}), (4, {"a": "4", "b": "five;six"})]


def test_classes_that_are_not_text(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes(b"liver\nfat\0\n")
    with pytest.raises(ValueError, match=r"classes\.txt, line 2: found a NUL byte"):
        read_classes(path)
    path.write_bytes(b"liver\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"classes\.txt is not UTF-8 text"):
        read_classes(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a_frame_1_Sample1.jpg\ncaf\xe9_frame_1_Sample1.jpg\n", "is not UTF-8 text"),
        (b"\na_frame_" + b"9" * 5000 + b"_Sample1.jpg\n", r", line 2: the number 9+\.\.\. is too large"),
    ],
)
def test_lists_of_frames_that_cannot_be_read(tmp_path, line, message):
    path = tmp_path / "list.txt"
    path.write_bytes(line)
    with pytest.raises(ValueError, match=rf"list\.txt{message}| {message}"):
        FrameList(path)


def _endoscapes(tmp_path, **changes):
    for folder, video in (("train", 1), ("val", 121)):
        (tmp_path / folder).mkdir(exist_ok=True)
        entry = {"file_name": f"{video}_5.jpg", "video_id": video, "is_ds_keyframe": True, "ds": [0, 0.5, 1]}
        Image.new("RGB", (16, 16)).save(tmp_path / folder / entry["file_name"])
        entries = [entry | changes] if folder == "train" else [entry]
        (tmp_path / folder / "annotation_ds_coco.json").write_text(json.dumps({"images": entries}))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [{"video_id": "one"}, {"video_id": None}, {"ds": 1}, {"ds": ["a", 0, 0]}, {"file_name": 5}],
)
def test_ratings_that_are_not_as_they_should_be(tmp_path, changes):
    load_data("endoscapes-cvs", _endoscapes(tmp_path))
    with pytest.raises(ValueError, match=r"annotation_ds_coco\.json is malformed"):
        load_data("endoscapes-cvs", _endoscapes(tmp_path, **changes))


@pytest.mark.parametrize("row", ['one,5,"[0,0,0]",True', "1,5,[0,True", "1,5,,True", "1,5,5,True"])
def test_ratings_in_a_table_that_are_not_as_they_should_be(tmp_path, row):
    root = _endoscapes(tmp_path)
    (root / "train" / "annotation_ds_coco.json").unlink()
    (root / "all_metadata.csv").write_text(f"vid,frame,avg_cvs,is_ds_keyframe\n1,7,,False\n{row}\n")
    with pytest.raises(ValueError, match=r"all_metadata\.csv, line 3"):
        load_data("endoscapes-cvs", root)


def test_a_name_of_twenty_digits_in_ratings(tmp_path):
    with pytest.raises(ValueError, match=r"1_12345678901234567890\.jpg: the number .* is too large"):
        load_data("endoscapes-cvs", _endoscapes(tmp_path, file_name="1_12345678901234567890.jpg"))


def test_a_record_of_an_extraction_that_is_damaged(tmp_path):
    for name in "ab":
        folder = tmp_path / "frames" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "0.png")
        (tmp_path / "phases").mkdir(exist_ok=True)
        (tmp_path / "phases" / f"{name}.txt").write_text("0\tcut\n")
    (tmp_path / "phases" / "b.txt").write_text("0\tsuture\n")
    (tmp_path / "frames" / "a" / "extraction.json").write_text('{"video')
    with pytest.raises(ValueError, match=r"a.extraction\.json cannot be read .*remove its folder"):
        load_data("videos", tmp_path)
