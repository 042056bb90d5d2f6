import pickle

import numpy as np
import pytest
from datasets import DatasetDict
from PIL import Image
from torch.utils.data import DataLoader

from surgenet_hf.data import Sample, SurgicalData, load_data
from surgenet_hf.data.base import build_splits
from surgenet_hf.data.names import check_no_overlap


def _samples(tmp_path, video="v", frames=(0, 1), labels=0):
    path = tmp_path / "frame.png"
    Image.new("L", (12, 8), 100).save(path)
    return [Sample(path, labels, video, frame) for frame in frames]


def test_rows(tmp_path):
    samples = _samples(tmp_path, "b", (10, 9, 2), 4) + _samples(tmp_path, "a", (1,), 2)
    splits = build_splits({"train": samples, "validation": _samples(tmp_path, "c"), "test": []})
    assert set(splits) == {"train", "validation"}
    columns = splits["train"].select_columns(["video", "frame", "labels"])[:]
    assert columns == {"video": ["b", "b", "b", "a"], "frame": [2, 9, 10, 1], "labels": [4, 4, 4, 2]}
    row = splits["train"][0]
    assert row["image"].mode == "RGB"
    assert type(row["labels"]) is int


def test_soft_targets(tmp_path):
    splits = build_splits({"train": _samples(tmp_path, labels=(0.0, 1 / 3, 1.0))})
    assert splits["train"][0]["labels"] == pytest.approx([0, 1 / 3, 1])
    assert splits["train"][0]["labels"].dtype == np.float32
    (tmp_path / "frame.png").unlink()
    labels = splits["train"].select_columns(["labels"])[:]["labels"]  # decodes no image
    assert np.stack(labels).shape == (2, 3)
    assert splits["train"].select_columns(["video"])[0] == {"video": "v"}


def test_a_video_in_two_splits_is_an_error(tmp_path):
    samples = _samples(tmp_path)
    with pytest.raises(
        ValueError, match=r"'v' is in train and in test, but splits must be by video: neighboring frames"
    ):
        build_splits({"train": samples[:1], "test": samples[1:]})
    check_no_overlap({"train": ["a", "a"], "test": ["b"]})


def test_two_frames_of_one_number_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'v' has two frames with the number 1 \(.*frame\.png"):
        build_splits({"train": _samples(tmp_path, frames=(1, 0, 1))})


def _collate(rows):
    return [(row["image"].size, np.asarray(row["labels"]).tolist(), row["video"]) for row in rows]


@pytest.mark.parametrize("labels", [1, (0.5, 1.0)])
def test_rows_reach_the_workers_of_a_data_loader_and_survive_pickling(tmp_path, labels):
    split = build_splits({"train": _samples(tmp_path, labels=labels)})["train"]
    expected = [[((12, 8), labels if labels == 1 else list(labels), "v")] * 2]
    assert list(DataLoader(split, 2, collate_fn=_collate, num_workers=1)) == expected
    assert _collate(pickle.loads(pickle.dumps(split))) == expected[0]


def _collate_masks(rows):
    return [(row["image"].size, row["mask"].sum().item(), row["video"]) for row in rows]


@pytest.fixture(scope="module")
def small() -> SurgicalData:
    return load_data("synthetic", num_videos=2, frames_per_video=3, size=(32, 48))


def test_rows_reach_the_workers_of_a_data_loader(small):
    def collect(**options):
        return [
            row
            for batch in DataLoader(small.splits["train"], 2, collate_fn=_collate_masks, **options)
            for row in batch
        ]

    assert len(collect()) == 3
    assert collect(num_workers=2) == collect()


def test_the_whole_survives_pickling(small):
    """Test that the data can be pickled, which spawned workers require (macOS, Windows)."""
    again = pickle.loads(pickle.dumps(small))
    assert isinstance(again.splits, DatasetDict)
    assert (again.splits["validation"][1]["mask"] == small.splits["validation"][1]["mask"]).all()
    assert again.labels == small.labels


def test_columns_can_be_read_without_decoding_images(tmp_path):
    data = load_data("synthetic", tmp_path, num_videos=2, frames_per_video=3, size=(32, 48))
    for path in tmp_path.rglob("*_*.*"):
        path.unlink()
    assert data.splits["validation"].select_columns(["video", "frame"])[:] == {
        "video": ["video01"] * 3,
        "frame": [0, 1, 2],
    }
