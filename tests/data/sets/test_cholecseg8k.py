import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import cholecseg8k

SIZE = (12, 8)  # (width, height), smaller than the real 854x480, which a note reports


def _frame(root, video, start, frame, values=(50, 11, 22, 255, 0), mode="RGB", size=SIZE):
    clip = root / f"video{video:02d}" / f"video{video:02d}_{start:05d}"
    clip.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (150, 60, 50)).save(clip / f"frame_{frame}_endo.png")
    gray = np.full(size[::-1], 50, np.uint8)
    gray[0, : len(values)] = values
    mask = Image.fromarray(gray).convert(mode)
    mask.save(clip / f"frame_{frame}_endo_watershed_mask.png")
    for other in ("color_mask", "mask"):
        Image.new("RGB", SIZE).save(clip / f"frame_{frame}_endo_{other}.png")
    return clip


@pytest.fixture
def root(tmp_path):
    """Return a folder with one complete clip of video 1 and a few frames of other videos.

    It contains another training video, a validation video, a test video, and unrelated files.
    """
    for frame in range(80, 160):
        _frame(tmp_path, 1, 80, frame)
    for video, start, frame in ((9, 0, 2), (9, 0, 10), (52, 160, 160), (12, 15750, 15751)):
        _frame(tmp_path, video, start, frame)
    (tmp_path / "video01" / "video01_00080" / "._frame_80_endo.png").write_bytes(b"what macOS leaves")
    (tmp_path / "video01" / "Thumbs.db").write_bytes(b"what Windows leaves")
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / "video01" / ".ipynb_checkpoints").mkdir()
    return tmp_path


def _rows(data, split):
    rows = data.splits[split].select_columns(["video", "frame"])[:]
    return list(zip(rows["video"], rows["frame"], strict=True))


def test_layout_and_endovit_split(root):
    data = cholecseg8k.load(root)
    assert data.name == "cholecseg8k"
    assert data.videos_are_public
    assert (data.split_protocol, data.background_id) == ("EndoViT", 0)
    assert len(data.labels) == len(set(data.colors)) == 13
    assert _rows(data, "train") == [("video01", i) for i in range(80, 160)] + [("video09", 2), ("video09", 10)]
    assert _rows(data, "validation") == [("video52", 160)]
    assert _rows(data, "test") == [("video12", 15751)]
    row = data.splits["train"][0]
    assert row["image"].size == SIZE
    assert row["mask"].shape == SIZE[::-1]
    assert row["mask"][0, :6].tolist() == [0, 1, 10, 255, 255, 0]


def test_another_split_is_called_custom(root):
    data = cholecseg8k.load(root, split_protocol={"train": [1], "validation": [9]})
    assert data.split_protocol == "custom, by video number"


def test_every_code_has_its_class(root):
    _frame(root, 52, 160, 160, values=cholecseg8k.CODES[:12])
    _frame(root, 12, 15750, 15751, values=cholecseg8k.CODES[12:])
    data = cholecseg8k.load(root)
    ids = data.splits["validation"][0]["mask"][0].tolist() + data.splits["test"][0]["mask"][0, :1].tolist()
    names = dict(zip(cholecseg8k.CODES, (data.labels[i] for i in ids), strict=True))
    assert names[5] == "liver ligament"
    assert (names[13], names[21], names[31], names[22]) == (
        "gastrointestinal tract",
        "liver",
        "grasper",
        "gallbladder",
    )
    assert (names[23], names[25], names[33]) == ("connective tissue", "cystic duct", "hepatic vein")
    assert (names[12], names[24], names[32]) == ("fat", "blood", "L-hook electrocautery")
    assert data.colors[data.labels.index("gallbladder")] == (255, 160, 165)


def test_groups_of_endovit(root):
    _frame(root, 52, 160, 160, values=(31, 32, 23, 24, 25, 33, 5, 22, 0, 255, 13, 50))
    data = load_data("cholecseg8k-8", root)
    assert (data.name, data.background_id) == ("cholecseg8k-8", 0)
    names = [data.labels[i] if i < 255 else None for i in data.splits["validation"][0]["mask"][0]]
    assert names[:2] == ["instruments"] * 2
    assert names[2:7] == ["miscellaneous"] * 5
    assert names[7:] == ["gallbladder", None, None, "gastrointestinal tract", "black background"]
    assert len(data.labels) == len(set(data.colors)) == 8


def test_nine_classes_of_the_surgenet_group(root):
    _frame(root, 52, 160, 160, values=cholecseg8k.CODES[:12])
    _frame(root, 12, 15750, 15751, values=(*cholecseg8k.CODES[12:], 255, 0))
    data = load_data("cholecseg8k-9", root)
    assert data.splits["validation"][0]["mask"][0].tolist() == [0, 1, 2, 3, 4, 5, 6, 255, 255, 7, 8, 255]
    assert data.splits["test"][0]["mask"][0, :4].tolist() == [255, 255, 255, 0]
    assert (data.name, data.background_id) == ("cholecseg8k-9", 0)
    assert (len(data.labels), data.labels[0], *data.labels[6:]) == (
        9,
        "black background",
        "connective tissue",
        "L-hook electrocautery",
        "gallbladder",
    )
    assert data.colors[8] == (255, 160, 165)
    assert len(set(data.colors)) == 9


def test_transparent_pixels_of_rgba_masks_are_no_label(root):
    clip = _frame(root, 52, 160, 160, values=(50, 11, 22, 21), mode="RGBA")
    path = clip / "frame_160_endo_watershed_mask.png"
    mask = np.array(Image.open(path))
    mask[0, 1] = (0, 0, 0, 0)
    mask[0, 2] = (22, 22, 22, 0)
    Image.fromarray(mask).save(path)
    data = cholecseg8k.load(root)
    assert data.splits["validation"][0]["mask"][0, :5].tolist() == [0, 255, 255, 2, 0]
    assert not any("Gray" in note for note in data.notes)


def test_opaque_rgba_mask(root):
    _frame(root, 52, 160, 160, values=(50, 11, 22, 21), mode="RGBA")
    row = cholecseg8k.load(root).splits["validation"][0]
    assert row["mask"][0, :5].tolist() == [0, 1, 10, 2, 0]


def test_what_the_notes_say(root):
    (root / "video01" / "video01_00080" / "frame_85_endo.png").unlink()
    (root / "video01" / "video01_00080" / "frame_85_endo_watershed_mask.png").unlink()
    _frame(root, 1, 80, 240)
    _frame(root, 9, 0, 10, values=(50, 77, 77, 11))
    notes = cholecseg8k.load(root).notes
    assert notes[0] == (
        "Found 84 of 8080 frames, 4 of 101 clips and 4 of 17 videos (82 train, 1 validation, 1 test). Results are not "
        "comparable with those on the full dataset."
    )
    assert notes[1].startswith("Missing: video17 (validation), video18 (train), ")
    assert (
        "Clip video01_00080 has 80 frames; expected 80 with the numbers 80 to 159: missing 85; unexpected 240."
    ) in notes
    assert (
        "Clip video09_00000 has 2 frames; expected 80 with the numbers 0 to 79: missing 0, 1, 3, ... (78 in all)."
    ) in notes
    assert "Gray level 77 is not the code of a class and is ignored: 2 px in 1 mask(s) (video09 frame 10)." in notes
    assert notes[-1].startswith("84 frame(s) do not have 854x480 pixels (video01 frame 80, ")


def test_unknown_code_is_ignored(root):
    _frame(root, 52, 160, 160, values=(50, 77, 11))
    assert cholecseg8k.load(root).splits["validation"][0]["mask"][0, :3].tolist() == [0, 255, 1]


def test_clip_of_79_frames(root):
    for kind in ("", "_watershed_mask"):
        (root / "video01" / "video01_00080" / f"frame_159_endo{kind}.png").unlink()
    assert (
        "Clip video01_00080 has 79 frames; expected 80 with the numbers 80 to 159: missing 159."
        in cholecseg8k.load(root).notes
    )


def test_a_complete_set_is_called_so(root, monkeypatch):
    monkeypatch.setattr(cholecseg8k, "NUM_CLIPS", 4)
    monkeypatch.setattr(cholecseg8k, "NUM_FRAMES", 84)
    monkeypatch.setattr(cholecseg8k, "VIDEOS", (1, 9, 12, 52))
    monkeypatch.setattr(cholecseg8k, "FRAMES_PER_CLIP", 80)
    monkeypatch.setattr(cholecseg8k, "WIDTH", SIZE[0])
    monkeypatch.setattr(cholecseg8k, "HEIGHT", SIZE[1])
    data = cholecseg8k.load(root, split_protocol={"train": [1, 9], "validation": [52], "test": [12]})
    assert data.notes[0] == "Found all 84 frames of 4 clips and 4 videos (82 train, 1 validation, 1 test)."
    assert not any("pixels" in note for note in data.notes)


def test_own_split(root):
    data = cholecseg8k.load(root, split_protocol={"train": [9], "validation": [12]})
    assert set(data.splits) == {"train", "validation"}
    assert [row["video"] for row in data.splits["train"]] == ["video09"] * 2
    assert [row["video"] for row in data.splits["validation"]] == ["video12"]
    assert "Excluded, because in no split: video01, video52." in data.notes


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("random", "measure memorization. Split by video"),
        ("official", "expected 'endovit', or video numbers"),
        ({"train": [1]}, "expected 'endovit', or video numbers"),
        ({"train": [1], "validation": [52], "val": [12]}, "expected 'endovit', or video numbers"),
        ({"train": [1, 9], "validation": [52], "test": [9]}, "video 9 is in the splits 'train' and 'test'"),
        ({"train": [1], "validation": [2]}, "'validation' names video 2, but CholecSeg8k has only 1, 9, 12,"),
        ({"train": [1], "validation": [17]}, "no frames for the split 'validation'"),
        ({"train": [], "validation": [52]}, "no frames for the split 'train'"),
    ],
)
def test_splits_that_will_not_do(root, split, message):
    with pytest.raises(ValueError, match=message):
        cholecseg8k.load(root, split_protocol=split)


def test_other_numbers_of_classes(root):
    with pytest.raises(ValueError, match=r"classes=7; expected 13 \(all of CholecSeg8k\), 9"):
        cholecseg8k.load(root, classes=7)


def test_missing_mask(root):
    (root / "video01" / "video01_00080" / "frame_99_endo_watershed_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame_99_endo\.png has no mask: expected .*1 of 80 frames"):
        cholecseg8k.load(root)


def test_missing_frame(root):
    (root / "video01" / "video01_00080" / "frame_99_endo.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame_99_endo_watershed_mask\.png has no frame"):
        cholecseg8k.load(root)


def test_a_video_that_is_not_of_the_set(root):
    _frame(root, 2, 0, 0)
    with pytest.raises(ValueError, match=r"video02_00000: CholecSeg8k has no video 2"):
        cholecseg8k.load(root)


def test_a_clip_in_the_folder_of_another_video(root):
    (root / "video09" / "video09_00000").rename(root / "video01" / "video09_00000")
    with pytest.raises(ValueError, match=r"video09_00000 is not a clip of video01"):
        cholecseg8k.load(root)


def test_a_mask_of_another_size(root):
    _frame(root, 9, 0, 2, size=(10, 8))
    with pytest.raises(ValueError, match=r"frame_2_endo_watershed_mask\.png has 10x8 pixels, but its frame"):
        cholecseg8k.load(root)


def test_an_unreadable_mask(root):
    (root / "video09" / "video09_00000" / "frame_2_endo_watershed_mask.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"frame_2_endo_watershed_mask\.png cannot be read"):
        cholecseg8k.load(root)


def test_folders_that_are_not_the_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^Expected .*videoNN/videoNN_SSSSS.*cholecseg8k does not exist"):
        cholecseg8k.load(tmp_path / "cholecseg8k")
    with pytest.raises(FileNotFoundError, match="is empty"):
        cholecseg8k.load(tmp_path)
    (tmp_path / "archive").mkdir()
    with pytest.raises(FileNotFoundError, match="contains no clips"):
        cholecseg8k.load(tmp_path)


def test_the_split_holds_the_17_videos_once():
    assert len(cholecseg8k.VIDEOS) == len(set(cholecseg8k.VIDEOS)) == 17
    assert cholecseg8k.ENDOVIT_SPLIT["validation"] == (17, 52)
    assert cholecseg8k.ENDOVIT_SPLIT["test"] == (12, 27)
