import os
import pickle

import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import multibypass140
from surgenet_hf.errors import MissingFileError, UserError
from tests.data.test_plain_pickle import Payload

FIRST = 5  # number of the first labeled frame
VIDEOS = {"train": ("01", "02"), "val": ("03",), "test": ("70",)}


def rows_of(video, count=3):
    return [
        {
            "unique_id": i,
            "Frame_id": f"{video}_{FIRST + i + 1:08d}",
            "Original_frame_id": FIRST + i,
            "Phase_gt": i,
            "Step_gt": 45 - i,
        }
        for i in range(count)
    ]


def labels_of(root, center, split, fold=0):
    name = f"1fps_100_{fold}.pickle" if split == "train" else f"1fps_{fold}.pickle"
    return root / "labels" / center / "labels_by70_splits" / "labels" / split / name


@pytest.fixture
def root(tmp_path):
    """Return a clone with four videos per center, fold 0, and 8 frames per video, of which 3 are labeled."""
    for center, prefix in multibypass140.PREFIXES.items():
        for split, videos in VIDEOS.items():
            path = labels_of(tmp_path, center, split)
            path.parent.mkdir(parents=True)
            path.write_bytes(pickle.dumps({prefix + video: rows_of(prefix + video) for video in videos}))
            for video in videos:
                folder = path.parents[2] / "frames" / (prefix + video)
                folder.mkdir(parents=True)
                for i in range(8):
                    Image.new("RGB", (12, 8), (10 * i, 0, 0)).save(folder / f"{prefix}{video}_{i + 1:08d}.jpg")
    return tmp_path


def column(split, name):
    return split.select_columns([name])[:][name]


@pytest.mark.parametrize(("task", "classes", "labels"), [("phase", 12, [0, 1, 2]), ("step", 46, [45, 44, 43])])
def test_labels_and_frames(root, task, classes, labels):
    data = load_data(f"multibypass140-{task}", root)
    assert data.name == f"multibypass140-{task}"
    assert len(data.labels) == len(set(data.colors)) == classes
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 12, "validation": 6, "test": 6}
    train = data.splits["train"]
    assert list(dict.fromkeys(column(train, "video"))) == ["BBP01", "BBP02", "SBP01", "SBP02"]
    assert column(train, "labels") == labels * 4
    assert column(train, "frame")[:3] == [5, 6, 7]
    assert round(train[1]["image"].getpixel((0, 0))[0], -1) == 60  # frame 6 is the seventh file
    assert data.notes[0].startswith("Found 8 of 140 videos, 24 frames at 1 per second.")


def test_the_folds_of_one_center(root):
    data = load_data("multibypass140-phase", root, split_protocol="strasbourg-0")
    assert set(column(data.splits["test"], "video")) == {"SBP70"}
    assert data.split_protocol == "official, fold 0 of strasbourg"
    assert data.notes[0].startswith("Found 4 of 70 videos")
    with pytest.raises(MissingFileError, match=r"there is no .*train/1fps_100_3\.pickle; expected a clone"):
        load_data("multibypass140-phase", root, split_protocol="strasbourg-3")
    with pytest.raises(UserError, match=r"unknown split protocol 'random'; expected one of both-0, .*strasbourg-4"):
        load_data("multibypass140-phase", root, split_protocol="random")


def test_a_payload_in_the_labels_is_refused_and_not_run(root):
    trace = root / "trace"
    labels_of(root, "bern", "val").write_bytes(pickle.dumps({"BBP03": Payload(os.mkdir, str(trace))}))
    with pytest.raises(UserError, match=r"val/1fps_0\.pickle was refused: it refers to .*mkdir"):
        load_data("multibypass140-phase", root)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"AttributeError.*expected a dict of videos"),
        ({}, "its videos are none, expected BBP01 to BBP70"),
        ({"SBP03": rows_of("SBP03")}, "its videos are SBP03, expected BBP01 to BBP70"),
        ({"BBP03": [{"Frame_id": "BBP03_00000001"}]}, r"KeyError\('Original_frame_id'\)"),
        ({"BBP03": rows_of("BBP04")}, r"frame 5 of BBP03 has the Frame_id 'BBP04_00000006'"),
        ({"BBP03": [rows_of("BBP03")[0] | {"Phase_gt": 12}]}, "Phase_gt of BBP03_00000006 is 12, expected 0 to 11"),
    ],
)
def test_labels_that_are_not_as_expected(root, content, message):
    labels_of(root, "bern", "val").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=rf"val/1fps_0\.pickle is not as expected \(.*{message}"):
        load_data("multibypass140-phase", root)


def test_a_video_in_two_splits(root):
    labels_of(root, "bern", "test").write_bytes(pickle.dumps({"BBP01": rows_of("BBP01")}))
    with pytest.raises(UserError, match="video 'BBP01' is in train and in test"):
        load_data("multibypass140-phase", root)


def test_frames_that_are_missing(root):
    frames = root / "labels" / "bern" / "labels_by70_splits" / "frames"
    for path in (frames / "BBP70").iterdir():
        path.unlink()
    (frames / "BBP01" / "BBP01_00000008.jpg").unlink()
    data = load_data("multibypass140-phase", root, split_protocol="bern-0")
    assert set(data.splits) == {"train", "validation"}
    assert "Missing: " in data.notes[0]
    assert "BBP70" not in data.notes[0].split("Missing")[0]
    assert data.notes[1] == "Labels at the end of a video that have no frame are excluded: BBP01 (1)."
    (frames / "BBP01" / "BBP01_00000007.jpg").rename(frames / "BBP01" / "BBP01_00000008.jpg")
    with pytest.raises(MissingFileError, match=r"1 of 3 labeled frames of BBP01 are missing .*frame number 6; found"):
        load_data("multibypass140-phase", root)
    (frames / "BBP02" / "BBP02_00000001.jpg").rename(frames / "BBP02" / "img1.jpg")
    (frames / "BBP01" / "BBP01_00000008.jpg").rename(frames / "BBP01" / "BBP01_00000007.jpg")
    with pytest.raises(
        UserError, match=r"img1\.jpg: expected BBP02_00000001\.jpg, \.\.\., as util/extract_frames\.py"
    ):
        load_data("multibypass140-phase", root)


def test_a_broken_link_to_the_frames(root):
    frames = root / "labels" / "bern" / "labels_by70_splits" / "frames"
    frames.rename(root / "moved")
    with pytest.raises(MissingFileError, match=r"frames does not exist .*contains labels"):
        load_data("multibypass140-phase", root)
    frames.symlink_to(root / "datasets")
    with pytest.raises(MissingFileError, match=r"frames is a link to .*datasets, which does not exist"):
        load_data("multibypass140-phase", root)
