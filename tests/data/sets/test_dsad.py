import numpy as np
import pytest
from PIL import Image as PILImage

from surgenet_hf.data.sets import dsad

SIZE = (12, 8)  # width, height


def _image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", size, (150, 60, 50)).save(path)


def _mask(path, columns=(), value=255, size=SIZE):
    """Write a mask that is white in some columns and black elsewhere."""
    gray = np.zeros(size[::-1], np.uint8)
    gray[:, list(columns)] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(gray).save(path)


@pytest.fixture
def root(tmp_path):
    """Return a folder of both configurations.

    Operations of all splits have one or two frames, and some files are not read.
    """
    for operation, number in (("01", "00"), ("04", "09"), ("04", "10"), ("21", "03"), ("32", "61")):
        folder = tmp_path / "multilabel" / operation
        _image(folder / f"image{number}.png")
        _mask(folder / f"mask{number}_stomach.png", (0, 1, 2))
        _mask(folder / f"mask{number}_abdominal_wall.png", (5,))
        folder = tmp_path / "liver" / operation
        _image(folder / f"image{number}.png")
        _mask(folder / f"mask{number}.png", (3, 4))
        _mask(folder / "anno_1" / f"mask{number}.png", (7,))
        (folder / "weak_labels.csv").write_text("")
    (tmp_path / "multilabel" / ".DS_Store").write_bytes(b"what macOS leaves")
    return tmp_path


def _rows(data, split):
    rows = data.splits[split].select_columns(["video", "frame"])[:]
    return list(zip(rows["video"], rows["frame"], strict=True))


def test_multi_organ_folder(root):
    data = dsad.load(root)
    assert data.name == "dsad"
    assert data.videos_are_public
    assert data.split_protocol.startswith("by operation, as in public code on DSAD")
    assert data.background_id == data.labels.index("background")
    assert data.labels[:2] == ("background", "abdominal wall")
    assert len(data.labels) == len(set(data.colors)) == 12
    assert _rows(data, "train") == [("01", 0), ("04", 9), ("04", 10)]
    assert _rows(data, "validation") == [("21", 3)]
    assert _rows(data, "test") == [("32", 61)]
    row = data.splits["train"][0]
    assert row["image"].size == SIZE
    names = [data.labels[i] for i in row["mask"][4]]
    assert names == ["stomach"] * 3 + ["background"] * 2 + ["abdominal wall"] + ["background"] * 6
    assert data.notes == (
        "Found 5 frames (3 train, 1 validation, 1 test) of 4 operations; a complete subset has more than "
        "1000 frames of at least 20 operations. Results are not comparable with those on a complete subset.",
    )


def test_single_organ_folder(root):
    data = dsad.load(root, config="single_organ", organ="liver")
    assert data.labels == ("background", "liver")
    assert data.colors == (dsad.COLORS[0], dsad.COLORS[dsad.LABELS.index("liver")])
    assert _rows(data, "train") == [("01", 0), ("04", 9), ("04", 10)]
    assert data.splits["test"][0]["mask"][0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert len(data.notes) == 1


def test_whole_subset_is_called_so(root, monkeypatch):
    monkeypatch.setattr(dsad, "MIN_FRAMES", 5)
    monkeypatch.setattr(dsad, "MIN_OPERATIONS", 4)
    assert dsad.load(root).notes == ("Found 5 frames (3 train, 1 validation, 1 test) of 4 operations.",)


def test_overlap_and_gray_are_ignored_and_counted(root):
    _mask(root / "multilabel" / "01" / "mask00_colon.png", (2, 3))
    _mask(root / "multilabel" / "21" / "mask03_liver.png", (8,), value=100)
    data = dsad.load(root)
    assert data.splits["train"][0]["mask"][0, :6].tolist() == [9, 9, 255, 2, 0, 1]
    assert data.splits["validation"][0]["mask"][0, 7:10].tolist() == [0, 255, 0]
    assert data.notes[1:] == (
        "8 px are in the masks of two structures and are ignored (1 frame(s): 01/image00.png).",
        "8 px are neither black nor white and are ignored (1 frame(s): 21/image03.png).",
    )


def test_gray_in_a_subset_of_one_structure(root):
    _mask(root / "liver" / "21" / "mask03.png", (8,), value=100)
    data = dsad.load(root, "single_organ", "liver")
    assert data.splits["validation"][0]["mask"][0, 7:10].tolist() == [0, 255, 0]
    assert data.notes[1:] == ("8 px are neither black nor white and are ignored (1 frame(s): 21/mask03.png).",)


def test_frame_without_any_mask(root):
    _image(root / "multilabel" / "04" / "image77.png")
    _image(root / "liver" / "04" / "image77.png")
    data = dsad.load(root)
    assert ("04", 77) not in _rows(data, "train")
    assert data.notes[1:] == ("1 frame(s) have no mask and are excluded (04/image77.png).",)
    with pytest.raises(
        FileNotFoundError, match=r"image77\.png has no mask: expected mask77\.png in the same folder \(1 of 6"
    ):
        dsad.load(root, "single_organ", "liver")


def test_mask_without_frame(root):
    (root / "multilabel" / "04" / "image10.png").unlink()
    (root / "liver" / "04" / "image10.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask10_\w+\.png has no image: expected image10\.png"):
        dsad.load(root)
    with pytest.raises(FileNotFoundError, match=r"mask10\.png has no frame: expected image10\.png"):
        dsad.load(root, "single_organ", "liver")


def test_mask_of_what_is_no_structure(root):
    _mask(root / "multilabel" / "04" / "mask10_uterus.png")
    with pytest.raises(ValueError, match=r"mask10_uterus\.png: 'uterus' is not a structure of DSAD"):
        dsad.load(root)


def test_mask_of_another_size(root):
    _mask(root / "multilabel" / "04" / "mask10_stomach.png", size=(10, 8))
    with pytest.raises(
        ValueError, match=r"mask10_stomach\.png has 10x8 pixels, but its frame .*image10\.png has 12x8"
    ):
        dsad.load(root)


@pytest.mark.parametrize("name", ["image10.png", "mask10_stomach.png"])
def test_unreadable_file(root, name):
    (root / "multilabel" / "04" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        dsad.load(root)


def test_an_operation_that_does_not_exist(root):
    (root / "multilabel" / "04").rename(root / "multilabel" / "33")
    with pytest.raises(ValueError, match="there is no operation 33; DSAD has operations 1 to 32"):
        dsad.load(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "single_organ_multi_rater"}, "expected one of multi_organ, single_organ"),
        ({"config": "single_organ"}, "organ=None with config='single_organ'.*needs one structure"),
        ({"config": "single_organ", "organ": "uterus"}, "organ='uterus'"),
        ({"organ": "liver"}, "'multi_organ' takes none"),
    ],
)
def test_options_that_will_not_do(root, options, message):
    with pytest.raises(ValueError, match=message):
        dsad.load(root, **options)


def test_folders_that_are_not_the_data(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^Expected .*multilabel/<operation>/.*spleen does not exist"):
        dsad.load(root, "single_organ", "spleen")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        dsad.load(tmp_path / "nowhere")


def test_nothing_to_validate_on(root):
    for path in (root / "multilabel" / "21").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no frames for the split 'validation'"):
        dsad.load(root)
