import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.errors import UserError


def _frame(root, name, size=(24, 16)):
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (150, 60, 50)).save(path)


def _mask(root, name, values=(0, 1, 2, 255), size=(24, 16)):
    path = root / "masks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(size[::-1], np.uint8)
    array[0, : len(values)] = values
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path):
    """Return a folder of five videos with two frames each.

    The files have all accepted suffixes. Editors on Windows write classes.txt in this form.
    """
    for video in "abcde":
        for frame, suffix in ((2, "jpg"), (10, "PNG" if video == "a" else "JPEG")):
            _frame(tmp_path, f"{video}_op_{frame}.{suffix}")
            _mask(tmp_path, f"{video}_op_{frame}.png")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbftissue\r\nliver\r\ninstrument tip\r\n\r\n\r\n")
    return tmp_path


def test_layout(root):
    data = load_data("folder", root)
    assert data.name == "folder"
    assert data.split_protocol == "by video name, one fifth validates"
    assert data.labels == ("tissue", "liver", "instrument tip")
    assert len(set(data.colors)) == 3
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 8, "validation": 2}
    train, validation = (set(data.splits[name]["video"]) for name in ("train", "validation"))
    assert train | validation == {f"{video}_op" for video in "abcde"}
    assert not train & validation
    assert list(data.splits["train"]["frame"]) == [2, 10] * 4  # numeric order: 2 comes before 10
    row = data.splits["train"][0]
    assert row["image"].size == (24, 16)
    assert row["mask"][0, :5].tolist() == [0, 1, 2, 255, 0]
    assert data.notes[0].startswith("Found 8 training frames of 4 video(s), 2 validation frames of 1 video(s) (")


def test_the_background_is_what_the_user_declares(root):
    """Test that the user declares the background, and neither id 0 nor its name defines it."""
    data = load_data("folder", root)
    assert data.background_id is None
    assert any("all classes count as foreground" in note and "--background_class" in note for note in data.notes)
    data = load_data("folder", root, background_class="liver")
    assert data.background_id == 1
    assert not any("foreground" in note for note in data.notes)
    with pytest.raises(UserError, match=r"no class 'spleen'.*tissue, liver, instrument tip"):
        load_data("folder", root, background_class="spleen")
    with pytest.raises(ValueError, match="'synthetic' has no option background_class"):
        load_data("synthetic", background_class="liver")


def test_the_split_is_the_same_everywhere(root):
    validation = set(load_data("folder", root).splits["validation"]["video"])
    assert validation == {"e_op"}  # SHA-256 of the names is independent of numpy and Python versions


def test_two_videos_are_enough(tmp_path):
    for video in "ab":
        _frame(tmp_path, f"{video}_1.jpg")
        _mask(tmp_path, f"{video}_1.png")
    splits = load_data("folder", tmp_path).splits
    assert [splits[name].num_rows for name in ("train", "validation")] == [1, 1]


def test_without_class_names_the_largest_id_counts(root):
    (root / "classes.txt").unlink()
    data = load_data("folder", root)
    assert data.labels == ("class_0", "class_1", "class_2")
    assert "3 classes" in data.notes[1]


def test_a_class_that_is_never_trained_is_noted(root):
    (root / "classes.txt").write_text("tissue\nliver\ntip\nbile\n")
    assert "No training pixel has class bile: it cannot be learned." in load_data("folder", root).notes


def test_sub_folders_are_videos(tmp_path):
    for video in ("one", "two"):
        for number, name in enumerate(("x.jpg", "intra op 7.png", "deep/er/y_8.jpg")):
            _frame(tmp_path, f"{video}/{name}")
            _mask(tmp_path, f"{video}/{name.rsplit('.', 1)[0]}.png", (0, number))
    data = load_data("folder", tmp_path)
    assert {*data.splits["train"]["video"], *data.splits["validation"]["video"]} == {"one", "two"}
    assert set(data.splits["train"]["frame"]) >= {7, 8}
    # each frame has the mask of its own folder and name
    assert {row["frame"]: row["mask"][0, 1].item() for row in data.splits["train"] if row["frame"] in (7, 8)} == {
        7: 1,
        8: 2,
    }


def test_folders_named_like_splits_are_refused(tmp_path):
    for video in ("train", "val"):
        _frame(tmp_path, f"{video}/a_1.jpg")
        _mask(tmp_path, f"{video}/a_1.png")
    with pytest.raises(ValueError, match=r"\(train, val\) are named like splits"):
        load_data("folder", tmp_path)


def test_loose_frames_beside_folders_are_refused(root):
    _frame(root, "video/1.jpg")
    _mask(root, "video/1.png")
    with pytest.raises(ValueError, match=r"a_op_10\.PNG is not in the folder of a video, but other"):
        load_data("folder", root)


def test_a_single_video_is_refused(tmp_path):
    for frame in range(3):
        _frame(tmp_path, f"frame_{frame}.jpg")
        _mask(tmp_path, f"frame_{frame}.png")
    with pytest.raises(ValueError, match=r"a single video \(frame\).*its folder in images/.*underscore"):
        load_data("folder", tmp_path)


@pytest.mark.parametrize("stem", ["12", "operation", "a_left", "_7"])
def test_a_name_without_video_is_refused(root, stem):
    _frame(root, f"{stem}.jpg")
    _mask(root, f"{stem}.png")
    with pytest.raises(ValueError, match=rf"{stem}\.jpg: the name does not identify a video.*<video>_<frame number>"):
        load_data("folder", root)


def test_a_frame_without_mask(root):
    (root / "masks" / "c_op_2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"c_op_2\.jpg has no mask: expected .*masks.c_op_2\.png \(1 of 10"):
        load_data("folder", root)


def test_a_mask_without_frame(root):
    (root / "images" / "c_op_2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"c_op_2\.png has no frame: expected .*images.c_op_2\.jpg \(1 of 10"):
        load_data("folder", root)


def test_a_mask_of_another_size(root):
    _mask(root, "c_op_2.png", size=(24, 17))
    with pytest.raises(ValueError, match=r"c_op_2\.png has 24x17 pixels, but its frame .*c_op_2\.jpg has 24x16"):
        load_data("folder", root)


def test_an_id_beyond_the_classes(root):
    _mask(root, "c_op_2.png", (0, 1, 9))
    with pytest.raises(
        ValueError, match=r"c_op_2\.png contains id 9, but .*classes\.txt names 3 classes with ids 0 to 2"
    ):
        load_data("folder", root)


def test_a_color_mask(root):
    Image.new("RGB", (24, 16), (255, 0, 0)).save(root / "masks" / "c_op_2.png")
    with pytest.raises(ValueError, match=r"c_op_2\.png has color channels that differ.*expected class ids"):
        load_data("folder", root)


@pytest.mark.parametrize("name", ["images/c_op_2.jpg", "masks/c_op_2.png"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_file(root, name, content):
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"c_op_2\.(jpg|png) cannot be read as an image.*replace it"):
        load_data("folder", root)


def test_two_frames_of_one_name(root):
    _frame(root, "c_op_2.png")
    with pytest.raises(ValueError, match=r"c_op_2\.jpg and .*c_op_2\.png have the same name"):
        load_data("folder", root)


def test_masks_of_0_and_255_are_no_two_classes(root):
    (root / "classes.txt").unlink()
    for path in (root / "masks").iterdir():
        _mask(root, path.name, (0, 255))
    with pytest.raises(
        ValueError, match=r"fewer than two classes \(ids found: \[0\].*Save a foreground drawn as 255 as 1"
    ):
        load_data("folder", root)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("a\n\nb\n", "line 2 is blank"), ("a\nb\na\n", "line 3 repeats the class 'a'")],
)
def test_a_list_of_classes_that_is_none(root, text, message):
    (root / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt.*{message}"):
        load_data("folder", root)


def test_class_names_in_another_encoding(root):
    (root / "classes.txt").write_bytes("tissue\nGefäß\ntip\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"classes\.txt is not UTF-8 text"):
        load_data("folder", root)


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"Expected images/.*{tmp_path.name} is empty"):
        load_data("folder", tmp_path)
    (tmp_path / "frames").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images does not exist .*contains frames"):
        load_data("folder", tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images is empty"):
        load_data("folder", tmp_path)
    (tmp_path / "images" / "a_1.bmp").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"images contains no files ending in \.jpg or \.jpeg or \.png \(1 other files\)"
    ):
        load_data("folder", tmp_path)


def test_splits_csv_defines_the_splits(tmp_path):
    root = next(
        load_data("synthetic", tmp_path, num_videos=4, frames_per_video=2, size=(32, 48)) and tmp_path.iterdir()
    )
    without = load_data("folder", root)
    assert list(without.splits) == ["train", "validation"]
    assert any("There is no test split" in note and "D/splits.csv" in note for note in without.notes)
    videos = sorted({row for split in without.splits.values() for row in split.select_columns(["video"])[:]["video"]})
    rows = [
        f"{video},{split}\n" for video, split in zip(videos, ["test", "train", "validation", "train"], strict=True)
    ]
    (root / "splits.csv").write_text("video,split\n" + "".join(rows))
    data = load_data("folder", root)
    assert {split: len(data.splits[split]) for split in data.splits} == {"train": 4, "validation": 2, "test": 2}
    assert set(data.splits["test"].select_columns(["video"])[:]["video"]) == {videos[0]}
    assert data.split_protocol == "by splits.csv"
    assert not any("no test split" in note for note in data.notes)
    (root / "splits.csv").write_text("video,split\n" + rows[0])
    with pytest.raises(ValueError, match=r"splits\.csv assigns no split to"):
        load_data("folder", root)
