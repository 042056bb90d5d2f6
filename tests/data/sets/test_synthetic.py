import time

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import synthetic

SMALL = {"num_videos": 3, "frames_per_video": 2, "size": (48, 64)}


def _pixels(data, split="train"):
    return [(np.asarray(row["image"]), row["mask"]) for row in data.splits[split]]


def _same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_scene():
    data = load_data("synthetic", **SMALL)
    assert data.split_protocol == "by video number, the last fifth validates"
    assert data.background_id == data.labels.index("background")
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 4, "validation": 2}
    assert not set(data.splits["train"]["video"]) & set(data.splits["validation"]["video"])
    row = data.splits["train"][1]
    assert row["image"].size == (64, 48)
    assert row["image"].mode == "RGB"
    assert row["mask"].shape == (48, 64)
    assert row["mask"].dtype == np.uint8
    assert (row["video"], row["frame"]) == ("video00", 1)
    assert len(data.labels) == len(set(data.colors)) == 5
    assert "synthetic" in data.notes[0].lower()
    assert "not evidence about surgical data" in data.notes[0]


def test_every_class_is_drawn_and_none_fills_the_picture():
    masks = np.stack([synthetic.draw(0, video, 3, (72, 96))[1] for video in range(12)])
    share = np.bincount(masks.ravel(), minlength=5) / masks.size
    assert len(share) == 5
    assert share.min() > 0.02
    assert share.max() < 0.6


def test_a_frame_is_a_function_of_seed_video_and_frame():
    few = load_data("synthetic", **SMALL)
    more = load_data("synthetic", num_videos=5, frames_per_video=2, size=(48, 64))
    assert _same(_pixels(few), _pixels(more)[:4])
    assert not _same(_pixels(few), _pixels(load_data("synthetic", seed=1, **SMALL)))


def test_frames_of_a_video_resemble_each_other():
    def draw(video, frame):
        image, mask = synthetic.draw(0, video, frame, (72, 96))
        return image.astype(float), mask

    def difference(a, b):
        return np.abs(a[0] - b[0]).mean(), (a[1] != b[1]).mean()

    for video in range(4):
        first = draw(video, 0)
        image_next, mask_next = difference(first, draw(video, 1))
        image_other, mask_other = difference(first, draw(video + 10, 0))
        assert 0 < image_next < 0.7 * image_other
        assert 0 < mask_next < 0.7 * mask_other


def test_color_alone_does_not_tell_the_classes():
    """Test that the hue ranges of liver and background overlap across videos."""

    def hues(label):
        values = []
        for video in range(12):
            image, mask = synthetic.draw(0, video, 0, (72, 96))
            image = image[mask == label].astype(float)
            values.append(np.median(image[:, 1] / (image.sum(1) + 1)))
        return values

    liver, background = hues(synthetic.LIVER), hues(0)
    assert max(liver) > min(background)
    assert max(background) > min(liver)


def test_files_hold_the_same_as_memory_and_are_used_again(tmp_path):
    memory = load_data("synthetic", **SMALL)
    files = load_data("synthetic", tmp_path, **SMALL)
    assert _same(_pixels(memory), _pixels(files))
    assert _same(_pixels(memory, "validation"), _pixels(files, "validation"))

    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.???") if path.suffix in (".jpg", ".png")}
    assert len(written) == 12
    lost = next(path for path in written if path.suffix == ".jpg")
    lost.unlink()
    time.sleep(0.01)
    again = load_data("synthetic", tmp_path, **SMALL)
    assert _same(_pixels(memory), _pixels(again))
    changed = {path.stem for path, before in written.items() if path.stat().st_mtime_ns != before}
    assert changed == {lost.stem}
    assert not list(tmp_path.rglob(".*"))


def test_other_parameters_do_not_take_the_files(tmp_path):
    first = load_data("synthetic", tmp_path, **SMALL)
    other = load_data("synthetic", tmp_path, seed=1, **SMALL)
    assert not _same(_pixels(first), _pixels(other))
    large = load_data("synthetic", tmp_path, **{**SMALL, "size": (64, 80)})
    assert large.splits["train"][0]["image"].size == (80, 64)


def test_the_files_are_a_folder_data_set(tmp_path):
    written = load_data("synthetic", tmp_path, **SMALL)
    (root,) = tmp_path.iterdir()
    data = load_data("folder", root)
    assert data.labels == written.labels
    assert sum(split.num_rows for split in data.splits.values()) == 6


def test_masks_are_saved_as_ids(tmp_path):
    load_data("synthetic", tmp_path, **SMALL)
    mask = Image.open(next(tmp_path.rglob("masks/*.png")))
    assert mask.mode == "L"
    assert np.asarray(mask).max() < 5


@pytest.mark.parametrize("bad", [{"num_videos": 1}, {"frames_per_video": 0}, {"size": (16, 64)}])
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="needed"):
        load_data("synthetic", **{**SMALL, **bad})
