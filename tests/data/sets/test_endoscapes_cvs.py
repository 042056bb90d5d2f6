import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import endoscapes_cvs

SHARED = Path(__file__).parents[4] / "shared" / "data" / "endoscapes"
THIRD, TWO_THIRDS = 1 / 3, 2 / 3
RATINGS = {
    "train": {"4_100": [0, 0, 0], "10_25": [TWO_THIRDS, 1, THIRD], "10_9": [0, THIRD, 0]},
    "val": {"121_1": [1, TWO_THIRDS, 0]},
    "test": {"201_1": [0, 0, 1]},
}


def _write(root, folder, ratings, **changes):
    (root / folder).mkdir(exist_ok=True)
    images = []
    for stem, targets in ratings.items():
        Image.new("RGB", (24, 16), (150, 60, 50)).save(root / folder / f"{stem}.jpg")
        entry = {"file_name": f"{stem}.jpg", "video_id": int(stem.split("_")[0]), "ds": targets}
        images.append({**entry, "is_ds_keyframe": True, "id": 7, **changes})
    content = {"images": images, "annotations": [], "categories": []}
    (root / folder / "annotation_ds_coco.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    """Return a folder with five rated frames and two unrated ones.

    One unrated frame has no entry; the entry of the other one marks it as unrated.
    """
    for folder, ratings in RATINGS.items():
        _write(tmp_path, folder, ratings)
    path = tmp_path / "train" / "annotation_ds_coco.json"
    content = json.loads(path.read_text())
    content["images"].append({"file_name": "4_125.jpg", "video_id": 4, "ds": None, "is_ds_keyframe": False})
    path.write_text(json.dumps(content))
    for stem in ("4_125", "4_150"):
        Image.new("RGB", (24, 16)).save(tmp_path / "train" / f"{stem}.jpg")
    return tmp_path


def _to_csv(root):
    """Replace the JSON files with all_metadata.csv, which has the same ratings and also lists unrated frames."""
    lines = ["vid,frame,avg_cvs,cvs_annotator_1,cvs_annotator_2,cvs_annotator_3,is_ds_keyframe,is_det_keyframe"]
    for folder, ratings in RATINGS.items():
        (root / folder / "annotation_ds_coco.json").unlink()
        for stem, targets in ratings.items():
            lines.append(f'{stem.replace("_", ",")},"{targets}","[0, 0, 0]","[0, 0, 0]","[0, 0, 0]",True,False')
    lines.append("4,125,,,,,False,False")
    (root / "all_metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("source", ["json", "csv"])
def test_layout(root, source):
    if source == "csv":
        _to_csv(root)
    data = load_data("endoscapes-cvs", root)
    assert data.name == "endoscapes-cvs"
    assert data.videos_are_public
    assert data.split_protocol == "official (train 1-120, validation 121-161, test 162-201)"
    assert data.problem_type == "multi_label_classification"
    assert data.frames_per_second is None
    assert [label[:2] for label in data.labels] == ["C1", "C2", "C3"]
    columns = data.splits["train"].select_columns(["video", "frame"])[:]
    assert columns == {"video": ["4", "10", "10"], "frame": [100, 9, 25]}
    row = data.splits["train"][2]
    assert row["labels"].dtype == np.float32
    assert row["labels"] == pytest.approx([TWO_THIRDS, 1, THIRD])
    assert row["image"].size == (24, 16)
    assert row["split"] == "train"
    assert [data.splits[name].num_rows for name in ("validation", "test")] == [1, 1]
    assert data.notes[0].startswith(
        "Found 5 frames (3 train, 1 validation, 1 test); the official dataset has 11090, 6960"
    )
    assert "train C1 1, C2 1, C3 0; validation C1 1, C2 1, C3 0; test C1 0, C2 0, C3 1." in data.notes[1]


def test_the_complete_set_is_recognised():
    rows = {"train": [None] * 6960, "validation": [None] * 2331, "test": [None] * 1799}
    assert endoscapes_cvs._count_note(rows).startswith("Found all 11090 official frames (6960 train")
    rows["train"].append(None)
    rows["test"].pop()
    assert "Results are not comparable" in endoscapes_cvs._count_note(rows)


def test_a_folder_in_the_wrong_split(root):
    _write(root, "val", {"121_1": [0, 0, 0], "4_175": [0, 0, 0]})
    with pytest.raises(ValueError, match=r"4_175\.jpg is in the wrong split: video 4 belongs to train/"):
        load_data("endoscapes-cvs", root)


def test_rated_frames_that_are_not_there(root):
    (root / "train" / "10_9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 rated frames are missing: .*10_9\.jpg"):
        load_data("endoscapes-cvs", root)


def test_an_unreadable_frame(root):
    (root / "val" / "121_1.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(ValueError, match=r"121_1\.jpg cannot be read"):
        load_data("endoscapes-cvs", root)


@pytest.mark.parametrize("targets", [[0, 2, 0], [0, 1], [0, -0.1, 0]])
def test_ratings_that_are_none(root, targets):
    _write(root, "val", {"121_1": targets})
    with pytest.raises(ValueError, match=r"121_1\.jpg has the ratings .*expected three means from 0 to 1"):
        load_data("endoscapes-cvs", root)


def test_a_name_of_another_video(root):
    _write(root, "val", {"121_1": [0, 0, 0]}, video_id=122)
    with pytest.raises(ValueError, match=r"121_1\.jpg is listed for video 122, but is not named"):
        load_data("endoscapes-cvs", root)


@pytest.mark.parametrize("content", ["{}", "", '{"images": [{"ds": [0, 0, 0]}]}'])
def test_annotations_that_are_none(root, content):
    (root / "val" / "annotation_ds_coco.json").write_text(content)
    with pytest.raises(ValueError, match=r"val.annotation_ds_coco\.json is malformed"):
        load_data("endoscapes-cvs", root)


def test_no_ratings_at_all(root):
    (root / "val" / "annotation_ds_coco.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"neither .*val.annotation_ds_coco\.json nor .*all_metadata\.csv exists"
    ):
        load_data("endoscapes-cvs", root)


def test_nothing_to_validate_on(root):
    for path in (root / "val").iterdir():
        path.unlink()
    (root / "val").rmdir()
    with pytest.raises(ValueError, match="no frames for the split 'validation'"):
        load_data("endoscapes-cvs", root)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the sample of real frames is not at {SHARED}")
def test_the_sample_of_real_frames():
    data = load_data("endoscapes-cvs", SHARED)
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 343, "validation": 22}
    labels = np.stack(data.splits["train"].select_columns(["labels"])[:]["labels"])
    assert set(np.round(3 * labels).ravel()) == {0, 1, 2, 3}
    assert np.allclose(3 * labels, np.round(3 * labels), atol=1e-5)
    assert data.splits["validation"][1]["labels"] == pytest.approx([TWO_THIRDS, TWO_THIRDS, 0])
    assert data.splits["validation"][1]["frame"] == 12300
    assert data.splits["train"][0]["image"].size == (854, 480)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the sample of real frames is not at {SHARED}")
def test_both_sources_of_the_sample_agree():
    for split, folder in (("train", "train"), ("validation", "val")):
        from_json = endoscapes_cvs._read_json(SHARED / folder)
        from_csv = endoscapes_cvs._read_csv(SHARED, split)
        by_path = {row.image: row for row in from_csv}
        assert len(from_json) == len(from_csv)
        assert all(row == by_path[row.image] for row in from_json)
