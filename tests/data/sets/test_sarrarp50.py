import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import frame_folders, load_data
from surgenet_hf.data.sets import sarrarp50
from surgenet_hf.errors import MissingFileError, UserError
from tests.data.videos import second_of, write_video

FRAMES = 121  # at 60 per second: 3 masks and 21 gestures


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "video_left.avi", FRAMES, rate=60).read_bytes()


@pytest.fixture
def root(tmp_path, video):
    """Return a folder with operations 1 and 11 (two videos) for training, 2 for validation, and 41 for testing.

    Operation 41 has frames in `rgb`, the other operations have videos.
    """
    for name in ("train1/video_2", "train1/video_11_1", "train1/video_11_2", "train2/video_1", "test/video_41"):
        folder = tmp_path / name
        (folder / "segmentation").mkdir(parents=True)
        for number in range(0, FRAMES, 60):
            mask = np.full((32, 48), number // 60, np.uint8)
            mask[0, 0] = 9
            Image.fromarray(mask).save(folder / "segmentation" / f"{number:09d}.png")
        rows = [f"{number:09d},{number // 60}" for number in range(0, FRAMES, 6)]
        (folder / "action_discrete.txt").write_text("\n".join(rows) + "\n")
        if name == "test/video_41":
            (folder / "rgb").mkdir()
            for number in range(0, FRAMES, 6):
                gray = 20 + 10 * (number // 60)
                Image.new("RGB", (48, 32), (gray,) * 3).save(folder / "rgb" / f"{number:09d}.png")
        else:
            (folder / "video_left.avi").write_bytes(video)
    return tmp_path


def column(split, name):
    return split.select_columns([name])[:][name]


def test_masks(root):
    data = load_data("sarrarp50-segmentation", root)
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 3, "validation": 9, "test": 3}
    assert column(data.splits["validation"], "video") == ["video_02"] * 3 + ["video_11_1"] * 3 + ["video_11_2"] * 3
    assert column(data.splits["train"], "frame") == [0, 60, 120]
    for split in ("train", "test"):  # extracted from the video, and from `rgb`
        row = data.splits[split][1]
        assert second_of(row["image"]) == 1
        assert row["mask"][0, :2].tolist() == [9, 1]
    assert (data.background_id, data.labels[9]) == (0, "catheter")
    assert data.notes[0].startswith("Found 4 of 50 videos, 15 frames at 1 per second.")


def test_gestures(root, monkeypatch):
    data = load_data("sarrarp50-gestures", root, max_side=24)
    assert data.task == "phase-recognition"
    assert data.frames_per_second == 10
    train = data.splits["train"]
    assert column(train, "labels") == [0] * 10 + [1] * 10 + [2]
    assert column(train, "frame") == list(range(0, FRAMES, 6))
    assert [second_of(train[i]["image"]) for i in (9, 10, 20)] == [0, 1, 2]
    assert train[0]["image"].size == (24, 16)
    assert column(data.splits["test"], "labels") == column(train, "labels")
    assert "video_01 (pulling the needle out" not in data.notes[1]
    assert "video_01 (pushing the needle through the tissue, pulling" in data.notes[1]
    monkeypatch.setattr(frame_folders, "sample_video", None)  # the second call does not decode again
    assert load_data("sarrarp50-gestures", root, max_side=24).splits["train"].num_rows == 21


def test_splits_are_disjoint_and_complete():
    for protocol, sizes in (("27/13/10", [27, 13, 10]), ("40/10", [40, 10])):
        parts = sarrarp50.SPLITS[protocol]
        assert [len(part) for part in parts.values()] == sizes
        assert sorted(number for part in parts.values() for number in part) == list(range(1, 51))


def test_the_split_of_the_challenge_has_no_validation(root):
    data = load_data("sarrarp50-gestures", root, split_protocol="40/10")
    assert set(data.splits) == {"train", "test"}
    assert "no validation videos" in data.notes[-1]


def test_folders_of_the_second_release(root):
    """Test that folders `train-set/video_01` give the same videos as `train1/video_1`."""
    for old, new in (("train1", "train-set"), ("test", "test-set")):
        (root / old).rename(root / new)
    (root / "train2" / "video_1").rename(root / "train-set" / "video_01")
    assert set(column(load_data("sarrarp50-segmentation", root).splits["train"], "video")) == {"video_01"}


def test_labels_beyond_the_end_are_cut_off_with_a_note(root):
    path = root / "train2" / "video_1" / "action_discrete.txt"
    rows = path.read_text()
    path.write_text(rows + "000000126,3\n")
    data = load_data("sarrarp50-gestures", root)
    assert data.splits["train"].num_rows == 21
    assert "Labels at the end of a video that have no frame are excluded: video_01 (1)." in data.notes
    path.write_text(rows + "".join(f"{number:09d},3\n" for number in range(126, 240, 6)))
    with pytest.raises(MissingFileError, match=r"19 of 40 labeled frames of video_01 .*number 126, 132.*0 to 120"):
        load_data("sarrarp50-gestures", root)


def test_labels_that_are_not_as_expected(root):
    path = root / "train2" / "video_1" / "action_discrete.txt"
    path.write_text("0,1\n6,8\n")
    with pytest.raises(UserError, match=r"action_discrete.txt: '8' is not a class; .* a number from 0 to 7"):
        load_data("sarrarp50-gestures", root)
    path.write_text("0,1\n60,2\n")
    with pytest.raises(UserError, match=r"expected a row for every 6th frame, from 0, found the frames 0, 60"):
        load_data("sarrarp50-gestures", root)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"video_1 has no gestures: expected .*action_discrete.txt"):
        load_data("sarrarp50-gestures", root)
    masks = root / "train2" / "video_1" / "segmentation"
    (masks / "000000060.png").rename(masks / "000000061.png")
    with pytest.raises(UserError, match=r"a mask for every 60th frame, found the numbers 61"):
        load_data("sarrarp50-segmentation", root)


def test_an_undefined_id_is_noted(root):
    Image.fromarray(np.full((32, 48), 10, np.uint8)).save(
        root / "test" / "video_41" / "segmentation" / "000000000.png"
    )
    assert (
        "Id 10 is not a class and is ignored: 1536 px in 1 mask(s) (video_41 frame 0)."
        in load_data("sarrarp50-segmentation", root).notes
    )


def test_layouts_that_are_not_as_expected(root, tmp_path_factory):
    (root / "test" / "video_41" / "rgb").rename(root / "test" / "video_41" / "images")
    with pytest.raises(MissingFileError, match=r"video_41 contains neither video_left.avi nor frames in rgb/"):
        load_data("sarrarp50-segmentation", root)
    (root / "test" / "video_41").rename(root / "train2" / "video_41")
    with pytest.raises(UserError, match=r"video_41 is in the wrong folder: the operations 41 to 50 are the test set"):
        load_data("sarrarp50-segmentation", root)
    (root / "train2" / "video_41").rename(root / "train2" / "video_51")
    with pytest.raises(UserError, match=r"expected video_<number>, with a number from 1 to 50"):
        load_data("sarrarp50-segmentation", root)
    (root / "train2" / "video_51").rename(root / "train1" / "video_01")
    with pytest.raises(UserError, match="are the same video; remove one"):
        load_data("sarrarp50-segmentation", root)
    other = tmp_path_factory.mktemp("other")
    (other / "videos").mkdir()
    with pytest.raises(
        MissingFileError, match=r"no folder video_<number> \(it contains videos\); expected the layout"
    ):
        load_data("sarrarp50-gestures", other)


def test_a_video_with_another_frame_rate_is_refused(root):
    write_video(root / "train1" / "video_2" / "video_left.avi", FRAMES, rate=30)
    with pytest.raises(UserError, match=r"video_left.avi has 30 frames per second, and the labels count .* at 60"):
        load_data("sarrarp50-gestures", root)
