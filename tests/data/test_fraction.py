import dataclasses

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from surgenet_hf.data import from_datasets, load_data
from surgenet_hf.data.fraction import take_fraction, training_videos


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", num_videos=11, frames_per_video=2, size=(32, 32))


def test_videos_are_drawn_by_the_seed_and_nested(data):
    everyone = training_videos(data)
    drawn = {}
    for seed in range(8):
        previous = set()
        for fraction in (0.01, 0.1, 0.25, 0.5, 0.99):
            found = take_fraction(data, fraction, seed)
            kept = training_videos(found)
            assert len(kept) == int(np.ceil(fraction * len(everyone)))
            assert previous <= set(kept) <= set(everyone)
            previous = set(kept)
            assert found.train_fraction == fraction
            assert len(found.splits["train"]) == 2 * len(kept)
            assert found.splits["validation"] is data.splits["validation"]
            drawn[seed, fraction] = tuple(kept)
    assert drawn[3, 0.25] == tuple(training_videos(take_fraction(data, 0.25, 3)))
    assert len({drawn[seed, 0.5] for seed in range(8)}) > 4
    assert take_fraction(data, 1.0, 0) is data
    row = take_fraction(data, 0.1, 0).splits["train"][0]
    assert isinstance(row["mask"], np.ndarray)  # rows are still decoded
    assert row["video"] in drawn[0, 0.1]


def test_rounding_adds_no_video(data):
    """Test 0.07 x 100, which is 7.000000000000001 in floating point."""
    videos = [f"v{i:03d}" for i in range(100)]
    rows = Dataset.from_dict({"video": videos})
    hundred = dataclasses.replace(data, splits={"train": rows})
    assert len(training_videos(take_fraction(hundred, 0.07, 0))) == 7


def test_what_is_refused(data):
    for fraction in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="--train_fraction must be greater than 0 and at most 1"):
            take_fraction(data, fraction, 0)
    frames = [({"image": Image.new("RGB", (8, 8)), "label": i % 2}) for i in range(4)]
    own = from_datasets({"train": frames}, "image-classification", labels=["a", "b"])
    with pytest.raises(ValueError, match="the frames of 'custom' have no videos"):
        take_fraction(own, 0.5, 0)
