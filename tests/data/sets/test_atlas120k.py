import json
import shutil

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import atlas120k
from surgenet_hf.errors import MissingFileError, UserError

CLIPS = {"clip_0001": [964, 965], "clip_0002": [1004]}


def write_video(folder, youtube_id, digits=6):
    for clip, numbers in CLIPS.items():
        for kind in ("images", "machine_masks"):
            (folder / clip / kind).mkdir(parents=True)
        for number in numbers:
            stem = f"frame_{number:0{digits}d}"
            Image.new("RGB", (16, 12), (150, 60, 50)).save(folder / clip / "images" / f"{stem}.jpg")
            mask = np.zeros((12, 16), np.uint8)
            mask[0, :6] = [1, 10, 11, 42, 46, 36]
            Image.fromarray(mask).save(folder / clip / "machine_masks" / f"{stem}.png")
    index = {"youtube_id": youtube_id, "frame_digits": digits, "clips": CLIPS}
    (folder / "clip_index.json").write_text(json.dumps(index))


@pytest.fixture
def root(tmp_path):
    """Return a folder with two videos for training, one of them with four digits in names, and one per other split."""
    write_video(tmp_path / "train" / "cholecystectomy" / "J5bg8KTYrw0_ROBOT", "J5bg8KTYrw0")
    write_video(tmp_path / "train" / "lar" / "_7H7G-4sevQ", "_7H7G-4sevQ", digits=4)
    write_video(tmp_path / "val" / "rarp" / "DS7ddQltHRY", "DS7ddQltHRY")
    write_video(tmp_path / "test" / "sigmoid" / "2CmNyZWDxO4", "2CmNyZWDxO4")
    return tmp_path


def column(split, name):
    return split.select_columns([name])[:][name]


def test_classes_and_splits(root):
    data = load_data("atlas120k", root)
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 6, "validation": 3, "test": 3}
    train = data.splits["train"]
    assert column(train, "video") == ["cholecystectomy_J5bg8KTYrw0_ROBOT"] * 3 + ["lar__7H7G-4sevQ"] * 3
    assert column(train, "frame") == [964, 965, 1004] * 2
    mask = train[0]["mask"]
    found = [data.labels[i] for i in mask[0, :7]]
    assert found == ["tools or camera", "artery", "vein", "background", "background", "pericardium", "background"]
    assert len(data.labels) == len(set(data.labels)) == len(data.colors) == 30
    assert data.background_id == 0
    (note,) = data.notes
    assert note.startswith(
        "Found 12 frames of 4 videos (6 train, 3 validation, 3 test); version 0.1.0 has 121018 frames"
    )


def test_ids_of_the_authors_tools():
    assert len(atlas120k.GROUPS) == 47
    assert set(atlas120k.GROUPS) == set(range(30))
    assert sum(group == 0 for group in atlas120k.GROUPS) == 8  # background and seven ids that become background


def test_videos_without_frames_are_left_out(root):
    folder = root / "train" / "lar" / "_7H7G-4sevQ"
    for clip in CLIPS:
        shutil.rmtree(folder / clip / "images")
    data = load_data("atlas120k", root)
    assert data.splits["train"].num_rows == 3
    assert data.notes[0].endswith("Videos without frames: lar__7H7G-4sevQ.")
    (folder / "clip_0001" / "images").mkdir()
    Image.new("RGB", (16, 12)).save(folder / "clip_0001" / "images" / "frame_0964.png")
    with pytest.raises(
        MissingFileError, match=r"2 of 3 frames of .* are missing: clip_0001/images/frame_0965.jpg, clip"
    ):
        load_data("atlas120k", root)


def test_a_missing_mask_is_named(root):
    (root / "val" / "rarp" / "DS7ddQltHRY" / "clip_0002" / "machine_masks" / "frame_001004.png").unlink()
    with pytest.raises(
        MissingFileError, match=r"there is no mask .*frame_001004\.png, which .*clip_index\.json lists"
    ):
        load_data("atlas120k", root)


def test_an_original_video_in_two_splits_is_noted(root):
    write_video(root / "test" / "sigmoid" / "_7H7G-4sevQ", "_7H7G-4sevQ")
    assert load_data("atlas120k", root).notes[1] == (
        "The official splits share original videos: _7H7G-4sevQ (test and train)."
    )


def test_undefined_ids_and_sizes(root):
    folder = root / "test" / "sigmoid" / "2CmNyZWDxO4" / "clip_0002" / "machine_masks"
    Image.fromarray(np.full((12, 16), 47, np.uint8)).save(folder / "frame_001004.png")
    data = load_data("atlas120k", root)
    assert "Id 47 is not a class and is ignored: 192 px in 1 mask(s) (sigmoid_2CmNyZWDxO4 frame 1004)." in data.notes
    assert set(np.unique(data.splits["test"][2]["mask"])) == {255}
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / "frame_001004.png")
    with pytest.raises(UserError, match=r"frame_001004\.png has 8x6 pixels, but its frame .* has 16x12"):
        load_data("atlas120k", root)


def test_layouts_that_are_not_as_expected(root):
    path = root / "val" / "rarp" / "DS7ddQltHRY" / "clip_index.json"
    path.write_text('{"clips": {"clip_0001": ["a"]}, "frame_digits": 6, "youtube_id": "x"}')
    with pytest.raises(UserError, match=r"clip_index\.json is malformed \(ValueError.*expected `clips` with lists"):
        load_data("atlas120k", root)
    (root / "val").rename(root / "validation")
    with pytest.raises(UserError, match=r"no frames for the split 'validation'; expected the layout of ATLAS-120k"):
        load_data("atlas120k", root)
    with pytest.raises(
        MissingFileError, match=r"rarp contains no train/.*clip_index\.json \(it contains DS7ddQltHRY\)"
    ):
        load_data("atlas120k", root / "validation" / "rarp")
