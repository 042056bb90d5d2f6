import io
import re

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from surgenet_hf.data.sets import dsad

SIZE = (12, 8)  # width, height


def _image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", size, (150, 60, 50)).save(path)


def _mask(path, columns=(), value=255, size=SIZE):
    """White in some columns, black elsewhere."""
    grey = np.zeros(size[::-1], np.uint8)
    grey[:, list(columns)] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(grey).save(path)


@pytest.fixture
def root(tmp_path):
    """Both configurations, a frame or two of operations of all splits, and files that are not read."""
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
        "Found 5 frames (3 train, 1 validation, 1 test) of 4 operations: a whole subset has over 1000 of 20 or more, "
        "figures are not those of one.",
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


def test_overlap_and_grey_are_ignored_and_counted(root):
    _mask(root / "multilabel" / "01" / "mask00_colon.png", (2, 3))
    _mask(root / "multilabel" / "21" / "mask03_liver.png", (8,), value=100)
    data = dsad.load(root)
    assert data.splits["train"][0]["mask"][0, :6].tolist() == [9, 9, 255, 2, 0, 1]
    assert data.splits["validation"][0]["mask"][0, 7:10].tolist() == [0, 255, 0]
    assert data.notes[1:] == (
        "8 px are in the masks of two structures, they count as ignore (1 frame(s): 01/image00.png).",
        "8 px are neither black nor white, they count as ignore (1 frame(s): 21/image03.png).",
    )


def test_grey_in_a_subset_of_one_structure(root):
    _mask(root / "liver" / "21" / "mask03.png", (8,), value=100)
    data = dsad.load(root, "single_organ", "liver")
    assert data.splits["validation"][0]["mask"][0, 7:10].tolist() == [0, 255, 0]
    assert data.notes[1:] == ("8 px are neither black nor white, they count as ignore (1 frame(s): 21/mask03.png).",)


def test_frame_without_any_mask(root):
    _image(root / "multilabel" / "04" / "image77.png")
    _image(root / "liver" / "04" / "image77.png")
    data = dsad.load(root)
    assert ("04", 77) not in _rows(data, "train")
    assert data.notes[1:] == ("1 frame(s) have no mask at all and are left out (04/image77.png).",)
    with pytest.raises(FileNotFoundError, match=r"image77\.png has no mask: expected mask77\.png beside it \(1 of 6"):
        dsad.load(root, "single_organ", "liver")


def test_mask_without_frame(root):
    (root / "multilabel" / "04" / "image10.png").unlink()
    (root / "liver" / "04" / "image10.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask10_\w+\.png has no image: expected image10\.png"):
        dsad.load(root)
    with pytest.raises(FileNotFoundError, match=r"mask10\.png has no image: expected image10\.png"):
        dsad.load(root, "single_organ", "liver")


def test_mask_of_what_is_no_structure(root):
    _mask(root / "multilabel" / "04" / "mask10_uterus.png")
    with pytest.raises(ValueError, match=r"mask10_uterus\.png: 'uterus' is no structure of DSAD"):
        dsad.load(root)


def test_mask_of_another_size(root):
    _mask(root / "multilabel" / "04" / "mask10_stomach.png", size=(10, 8))
    with pytest.raises(ValueError, match=r"mask10_stomach\.png is 10x8 pixels, but its frame .*image10\.png is 12x8"):
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
        ({"organ": "liver"}, "'multi_organ' none"),
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
    with pytest.raises(ValueError, match=r"has no validation frame \(operations 3, 21, 26\)"):
        dsad.load(root)


# The mirror: parquet files, with the assumed names of columns

MASK = np.zeros(SIZE[::-1], np.uint8)
MASK[0] = range(12)
NAMES = ("image", "mask", "organ", "surgery_id", "frame_id")


def _png(array):
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _parquet(path, rows, mask=MASK, names=NAMES):
    """Rows are (operation, frame, structure); the frame is painted in its number."""
    images = [_png(np.full((8, 12, 3), int(re.sub(r"\D", "", str(frame))), np.uint8)) for _, frame, _ in rows]
    columns = [images, [_png(mask)] * len(rows), *([row[i] for row in rows] for i in (2, 0, 1)), [False] * len(rows)]
    kinds = [Value("int64" if isinstance(value, int) else "string") for value in rows[0][:2]]
    features = [Image(), Image(), Value("string"), *kinds, Value("bool")]
    names = (*names, "uterus")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = dict(zip(names, columns, strict=True))
    Dataset.from_dict(data, features=Features(zip(names, features, strict=True))).to_parquet(path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "mirror"
    _parquet(root / "multi_organ" / "train-00000-of-00002.parquet", [(4, 10, "stomach"), (1, 2, "stomach")])
    _parquet(root / "multi_organ" / "train-00001-of-00002.parquet", [(31, 7, "stomach")])
    _parquet(root / "multi_organ" / "validation-00000-of-00001.parquet", [(26, 5, "stomach")])
    _parquet(root / "multi_organ" / "test-00000-of-00001.parquet", [(2, 1, "stomach")])
    _parquet(root / "multi_organ_multi_rater" / "train-00000-of-00001.parquet", [(5, 10, "stomach")])
    return root


def test_multi_organ_parquet(mirror):
    data = dsad.load(mirror)
    assert _rows(data, "train") == [("04", 10), ("01", 2), ("31", 7)]
    assert _rows(data, "validation") == [("26", 5)]
    row = data.splits["test"][0]
    assert set(row) == {"image", "mask", "video", "frame", "split"}
    assert (row["video"], row["frame"], row["split"]) == ("02", 1, "test")
    assert row["image"].size == SIZE
    assert row["image"].getpixel((0, 0)) == (1, 1, 1)
    assert row["mask"].dtype == np.uint8
    assert row["mask"].tolist() == MASK.tolist()
    assert data.notes[0].startswith("Found 5 frames (3 train, 1 validation, 1 test) of 5 operations")
    assert "1 to 11, for the structures in alphabetical order, is an assumption" in data.notes[1]
    assert len(data.notes) == 2


def test_rows_have_the_schema_of_the_folder(mirror, root):
    assert dsad.load(mirror).splits["train"].features == dsad.load(root).splits["train"].features


def test_the_name_on_the_hub(mirror, monkeypatch):
    asked = []

    def load_dataset(*args):
        asked.append(args)
        return local(
            "parquet", data_files={split: str(mirror / "multi_organ" / f"{split}-*") for split in dsad.SPLITS}
        )

    local = dsad.load_dataset
    monkeypatch.setattr(dsad, "load_dataset", load_dataset)
    assert _rows(dsad.load("nct-tso/dsad"), "train") == [("04", 10), ("01", 2), ("31", 7)]
    assert asked == [("nct-tso/dsad", "multi_organ")]


def test_parquet_without_folders_of_configurations(mirror):
    assert dsad.load(mirror / "multi_organ").splits["train"].num_rows == 3


def test_one_split_whatever_the_files_say(mirror):
    _parquet(mirror / "multi_organ" / "train-00001-of-00002.parquet", [(3, 7, "stomach"), (1, 3, "stomach")])
    data = dsad.load(mirror)
    assert _rows(data, "train") == [("04", 10), ("01", 2), ("01", 3)]
    assert _rows(data, "validation") == [("03", 7), ("26", 5)]
    assert data.notes[-1] == "The files have operation(s) 3 in other splits than those used here."


def test_single_organ_parquet(mirror):
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[:, :2] = 255
    folder = mirror / "single_organ"
    _parquet(
        folder / "train" / "0000.parquet",
        [("surgery_01", "image03.png", "liver"), ("surgery_01", "image04.png", "small intestine")],
        mask,
    )
    _parquet(folder / "validation.parquet", [("3", "1", "small_intestine"), ("3", "2", "liver")], mask)
    _parquet(folder / "test.parquet", [("2", "1", "liver")], mask)
    data = dsad.load(mirror, "single_organ", "small_intestine")
    assert data.labels == ("background", "small intestine")
    assert _rows(data, "train") == [("01", 4)]
    assert _rows(data, "validation") == [("03", 1)]
    assert "test" not in data.splits
    row = data.splits["train"][0]
    assert row["mask"][0, :3].tolist() == [1, 1, 0]
    assert row["image"].getpixel((0, 0)) == (4, 4, 4)
    assert len(data.notes) == 1


def test_masks_of_one_structure_with_two_values(mirror):
    _parquet(mirror / "single_organ" / "train.parquet", [(1, 1, "liver")])
    with pytest.raises(ValueError, match=r"masks of liver hold 0 and 1, 2, 3, \.\.\., but one structure"):
        dsad.load(mirror, "single_organ", "liver")


def test_other_names_of_columns(mirror):
    names = ("frame", "labels", "organ", "patient", "number")
    for path in (mirror / "multi_organ").iterdir():
        operation = 26 if "validation" in path.name else 1
        _parquet(path, [(operation, 3, "stomach")], names=names)
    with pytest.raises(
        ValueError, match="no column image, mask, surgery_id, frame_id, only frame, labels, organ, patient"
    ):
        dsad.load(mirror)
    columns = {"image": "frame", "mask": "labels", "video": "patient"}
    with pytest.raises(ValueError, match=r"no column frame_id, only .*columns=\{'frame': \.\.\.\}"):
        dsad.load(mirror, columns=columns)
    data = dsad.load(mirror, columns={**columns, "frame": "number"})
    assert _rows(data, "validation") == [("26", 3)]
    assert data.splits["validation"][0]["mask"].tolist() == MASK.tolist()


def test_values_that_are_no_class(mirror):
    mask = MASK.copy()
    mask[1, :3] = (12, 100, 255)
    for path in (mirror / "multi_organ").glob("validation*"):
        _parquet(path, [(26, 3, "stomach")], mask)
    data = dsad.load(mirror)
    assert data.splits["validation"][0]["mask"][1, :4].tolist() == [255, 255, 255, 0]
    assert data.notes[-1] == "The values 12, 100 are no class, they count as ignore: 2 px."


def test_multi_organ_masks_that_are_binary(mirror):
    for path in (mirror / "multi_organ").iterdir():
        _parquet(path, [(26, 3, "stomach")], np.uint8(255) * (MASK > 0))
    with pytest.raises(ValueError, match="hold 0 and 255, no class id from 1 to 11"):
        dsad.load(mirror)


def test_masks_of_another_size_in_parquet(mirror):
    _parquet(mirror / "multi_organ" / "test-00000-of-00001.parquet", [(2, 1, "stomach")], MASK[:, :10])
    with pytest.raises(ValueError, match=r"operation 02, frame 1: the mask has 10x8 pixels, the frame 12x8"):
        dsad.load(mirror)


def test_colour_masks_in_parquet(mirror):
    colours = np.zeros((8, 12, 3), np.uint8)
    colours[..., 0] = 200
    _parquet(mirror / "multi_organ" / "test-00000-of-00001.parquet", [(2, 1, "stomach")], colours)
    with pytest.raises(ValueError, match="operation 02, frame 1: the mask has color channels that differ"):
        dsad.load(mirror)


@pytest.mark.parametrize(
    ("operation", "message"), [(33, r"row \d: there is no operation 33"), ("x", "no number in 'x'")]
)
def test_operations_in_parquet_that_are_none(mirror, operation, message):
    for path in (mirror / "multi_organ").iterdir():
        value = operation if "test" in path.name else type(operation)(1)
        _parquet(path, [(value, 3, "stomach")])
    with pytest.raises(ValueError, match=message):
        dsad.load(mirror)


def test_parquet_files_that_cannot_be_read(mirror):
    path = mirror / "multi_organ" / "test-00000-of-00001.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="parquet files cannot be read"):
        dsad.load(mirror)
    path.rename(mirror / "multi_organ" / "data.parquet")
    with pytest.raises(ValueError, match=r"data\.parquet: no split can be told"):
        dsad.load(mirror)
