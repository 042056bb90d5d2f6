import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import endoscapes

SHARED = Path(__file__).parents[4] / "shared" / "data" / "endoscapes"


def _frame(root, folder, stem, size=(24, 16)):
    path = root / folder / f"{stem}.jpg"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (150, 60, 50)).save(path)
    return path


def _mask(root, stem, values=(0, 1, 6, 255), size=(24, 16)):
    path = root / "semseg" / f"{stem}.png"
    path.parent.mkdir(exist_ok=True)
    array = np.zeros(size[::-1], np.uint8)
    array[0, : len(values)] = values
    Image.fromarray(array).convert("RGB").save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Return a folder with two training videos, one validation video, and one test video.

    It also contains a CVS frame without a mask and unrelated files.
    """
    for folder, stem in (
        ("train", "4_100"),
        ("train", "10_25"),
        ("train", "10_9"),
        ("val", "121_1"),
        ("test", "201_1"),
    ):
        _frame(tmp_path, folder, stem)
        _mask(tmp_path, stem)
    _frame(tmp_path, "train", "11_1")
    (tmp_path / "train" / "annotation_coco.json").write_text("{}")
    (tmp_path / "train" / "._4_100.jpg").write_bytes(b"what macOS leaves")
    (tmp_path / "semseg" / "._4_100.png").write_bytes(b"what macOS leaves")
    return tmp_path


def test_layout(root):
    data = load_data("endoscapes", root)
    assert data.name == "endoscapes"
    assert data.videos_are_public
    assert data.split_protocol == "official (train 1-120, validation 121-161, test 162-201)"
    assert data.background_id == data.labels.index("background")
    assert data.labels[3:7] == ("cystic artery", "cystic duct", "gallbladder", "tool")
    assert len(data.labels) == len(set(data.colors)) == 7
    train = data.splits["train"]
    assert list(zip(train["video"], train["frame"], strict=True)) == [("4", 100), ("10", 9), ("10", 25)]
    assert list(data.splits["validation"]["video"]) == ["121"]
    assert list(data.splits["test"]["video"]) == ["201"]
    row = train[0]
    assert row["image"].size == (24, 16)
    assert row["mask"][0, :5].tolist() == [0, 1, 6, 255, 0]
    assert data.notes == (
        "Found 5 of the official 493 frames (3 train, 1 validation, 1 test). Results are not "
        "comparable with those on the full dataset.",
    )


def test_a_set_without_test_frames_has_no_test_split(root):
    (root / "test" / "201_1.jpg").unlink()
    (root / "test").rmdir()
    (root / "semseg" / "201_1.png").unlink()
    assert set(load_data("endoscapes", root).splits) == {"train", "validation"}


def test_stray_ids_are_ignored_and_counted(root):
    _mask(root, "121_1", (0, 7, 7, 6))
    _mask(root, "10_9", (0, 7, 200, 6))
    data = load_data("endoscapes", root)
    assert data.splits["validation"][0]["mask"][0, :4].tolist() == [0, 255, 255, 6]
    assert data.splits["train"][1]["mask"][0, :4].tolist() == [0, 255, 255, 6]
    assert data.notes[1:] == (
        "Id 7 is not a class and is ignored: 3 px in 2 mask(s) (10_9.png, 121_1.png).",
        "Id 200 is not a class and is ignored: 1 px in 1 mask(s) (10_9.png).",
    )


def test_single_channel_masks_are_read_too(root):
    path = root / "semseg" / "4_100.png"
    Image.open(path).convert("L").save(path)
    assert load_data("endoscapes", root).splits["train"][0]["mask"][0, :4].tolist() == [0, 1, 6, 255]


def test_links_unpacked_as_text_do_no_harm_beside_the_frames(root):
    (root / "train_seg").mkdir()
    (root / "train_seg" / "4_100.jpg").write_text("../train/4_100.jpg")
    row = load_data("endoscapes", root).splits["train"][0]
    assert row["image"].size == (24, 16)


def test_a_link_unpacked_as_text_is_named_when_it_is_all_there_is(root):
    (root / "train_seg").mkdir()
    (root / "train_seg" / "4_100.jpg").write_text("../train/4_100.jpg")
    (root / "train" / "4_100.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"train_seg.4_100\.jpg is a symbolic link that was not unpacked correctly.*train"
    ):
        load_data("endoscapes", root)


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links(root):
    (root / "train_seg").mkdir()
    link = root / "train_seg" / "4_100.jpg"
    link.symlink_to("../train/4_100.jpg")
    assert load_data("endoscapes", root).splits["train"].num_rows == 3
    (root / "train" / "4_100.jpg").unlink()
    with pytest.raises(ValueError, match=r"train_seg.4_100\.jpg is a symbolic link that was not unpacked correctly"):
        load_data("endoscapes", root)


def test_frames_in_seg_folders_alone_will_do(root):
    (root / "train").rename(root / "train_seg")
    (root / "train_seg" / "11_1.jpg").unlink()
    assert load_data("endoscapes", root).splits["train"].num_rows == 3


def test_a_frame_of_seg_without_mask(root):
    _frame(root, "val_seg", "130_7")
    with pytest.raises(FileNotFoundError, match=r"val_seg.130_7\.jpg has no mask: expected .*semseg.130_7\.png"):
        load_data("endoscapes", root)


def test_a_mask_without_frame(root):
    _mask(root, "130_7")
    with pytest.raises(FileNotFoundError, match=r"130_7\.png has no frame: expected .*val.130_7\.jpg"):
        load_data("endoscapes", root)


@pytest.mark.parametrize("stem", ["121_5", "162_1"])
def test_a_frame_in_the_wrong_split(root, stem):
    _frame(root, "train", stem)
    with pytest.raises(ValueError, match=rf"{stem}\.jpg is in the wrong split: video {stem[:3]} belongs to"):
        load_data("endoscapes", root)


def test_the_same_frame_in_two_splits(root):
    _frame(root, "val", "4_100")
    with pytest.raises(ValueError, match=r"val.4_100\.jpg is in the wrong split: video 4 belongs to train"):
        load_data("endoscapes", root)


def test_a_video_that_does_not_exist(root):
    _frame(root, "test", "202_1")
    with pytest.raises(ValueError, match=r"202_1\.jpg.*no video 202"):
        load_data("endoscapes", root)


def test_a_name_that_is_none(root):
    _mask(root, "frame7")
    with pytest.raises(ValueError, match=r"frame7\.png is not named <video>_<frame>\.png"):
        load_data("endoscapes", root)


def test_a_mask_of_another_size(root):
    _mask(root, "10_9", size=(12, 16))
    with pytest.raises(ValueError, match=r"10_9\.png has 12x16 pixels, but its frame .*10_9\.jpg has 24x16"):
        load_data("endoscapes", root)


def test_a_color_mask(root):
    Image.new("RGB", (24, 16), (10, 20, 30)).save(root / "semseg" / "10_9.png")
    with pytest.raises(ValueError, match=r"10_9\.png has color channels that differ"):
        load_data("endoscapes", root)


def test_an_unreadable_frame(root):
    (root / "train" / "10_9.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(ValueError, match=r"10_9\.jpg cannot be read"):
        load_data("endoscapes", root)


def test_folders_that_are_not_the_data(tmp_path):
    (tmp_path / "endoscapes").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"^Expected the official .*layout.*semseg does not exist .*contains endoscapes"
    ):
        load_data("endoscapes", tmp_path)
    (tmp_path / "semseg").mkdir()
    with pytest.raises(FileNotFoundError, match=r"semseg is empty"):
        load_data("endoscapes", tmp_path)
    (tmp_path / "semseg" / "readme.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"semseg contains no mask"):
        load_data("endoscapes", tmp_path)


def test_nothing_to_validate_on(root):
    (root / "val" / "121_1.jpg").unlink()
    (root / "semseg" / "121_1.png").unlink()
    with pytest.raises(ValueError, match="no frames for the split 'validation'; expected the official"):
        load_data("endoscapes", root)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the sample of real frames is not at {SHARED}")
def test_the_sample_of_real_frames():
    data = endoscapes.load(SHARED)
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 343, "validation": 22}
    assert len(set(data.splits["train"]["video"])) == 30
    assert set(data.splits["validation"]["video"]) == {"126", "137", "142", "146", "156"}
    assert data.notes[0].startswith("Found 365 of the official 493 frames (343 train, 22 validation, 0 test)")
    row = data.splits["train"][0]
    assert row["image"].size == (854, 480)
    assert row["mask"].shape == (480, 854)
    assert set(np.unique(row["mask"])) <= {*range(7), 255}
