"""Tests of user datasets from the datasets library and from torch."""

import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as PILImage

from surgenet_hf import SurgeNetForImageClassification
from surgenet_hf.data import from_datasets
from surgenet_hf.data.identity import data_identity, frames_key
from surgenet_hf.data.show import show
from surgenet_hf.errors import UserError
from surgenet_hf.evaluation.evaluate import evaluate
from surgenet_hf.finetuning import segmentation
from surgenet_hf.finetuning.frames import Frames
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference.prediction import video_ranges
from tests.checkpoints.files import tiny

CLASSES = ["tissue", "tool"]


def frame(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a random image (32, 48, 3) and its mask (32, 48)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (32, 48, 3), np.uint8), rng.choice([0, 1, 255], (32, 48)).astype(np.uint8)


def pillow(seed: int) -> dict:
    image, mask = frame(seed)
    return {"image": PILImage.fromarray(image), "annotation": PILImage.fromarray(mask)}


def hub(*videos: str, first: int = 0) -> Dataset:
    """Return a segmentation dataset with two frames per video, in no particular order."""
    rows = [
        {**pillow(first + 10 * v + i), "video": video, "frame": i, "hospital": "x"}
        for i in (1, 0)
        for v, video in enumerate(videos)
    ]
    return Dataset.from_list(rows).cast_column("image", Image()).cast_column("annotation", Image())


class Items(torch.utils.data.Dataset):
    """Torch dataset of given items that counts how often each is read."""

    def __init__(self, *items):
        self.items, self.read = items, [0] * len(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        self.read[index] += 1
        return self.items[index]


def masked(*seeds: int) -> Items:
    return Items(*({"image": frame(seed)[0], "mask": frame(seed)[1].astype(np.int64)} for seed in seeds))


SOURCES = {
    "datasets": lambda: {"train": hub("a", "b"), "validation": hub("c", first=30)},
    "torch": lambda: {"train": masked(0, 1, 10, 11), "validation": masked(30, 31)},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_model_is_trained_and_evaluated(kind, tmp_path):
    data = from_datasets(SOURCES[kind](), "semantic-segmentation", CLASSES, background_class="tissue")
    assert (data.labels, data.background_id, data.videos_are_public) == (tuple(CLASSES), 0, False)
    for row, seed in zip(data.splits["train"], (0, 1, 10, 11), strict=True):  # sorted by video and frame
        assert np.array_equal(row["image"], frame(seed)[0])
        assert np.array_equal(row["mask"], frame(seed)[1])
        assert row["split"] == "train"
    again = pickle.loads(pickle.dumps(data))
    assert data_identity(again) == data_identity(from_datasets(SOURCES[kind](), "semantic-segmentation", CLASSES))
    assert show(data, num_frames=2).axes

    model, processor = segmentation.build_model(tiny(), data, 32)
    item = Frames(data.splits["train"], processor, "light")[0]
    assert item["labels"].shape == (32, 32)
    results = evaluate(model, processor, data).results
    assert results["metrics"]["video_dice"] >= 0
    assert results["data"]["videos"] == (["c"] if kind == "datasets" else ["validation (no video column)"])
    assert len(segmentation.pixel_weights(data)) == 2


def test_one_dataset_and_class_labels():
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    rows = [{"image": PILImage.fromarray(frame(i)[0]), "label": i % 2} for i in range(3)]
    data = from_datasets(Dataset.from_list(rows, features=features), "image-classification")
    assert (list(data.splits), data.labels, data.problem_type) == (["train"], ("tissue", "tool"), SINGLE)
    assert data.splits["train"].select_columns(["labels"])[:]["labels"] == [0, 1, 0]
    assert len(data.notes) == 1
    assert "Confidence intervals over videos cannot" in data.notes[0]
    assert list(video_ranges(data.splits["train"])) == ["train (no video column)"]


SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def test_pairs_of_torch_are_not_read_for_their_videos():
    source = Items(*((frame(i)[0], i % 2) for i in range(4)))
    data = from_datasets({"test": source}, "phase-recognition", CLASSES, frames_per_second=2)
    assert (data.problem_type, data.frames_per_second) == (SINGLE, 2)
    assert set(source.read[1:]) == {0}
    assert len(video_ranges(data.splits["test"])) == 1
    assert set(source.read[1:]) == {0}
    model = SurgeNetForImageClassification(tiny(num_labels=2, problem_type=SINGLE))
    results = evaluate(model, build_image_processor(image_size=32), data, "test").results
    assert results["task"] == "phase-recognition"
    assert results["data"]["frames"] == 4
    rows = data.splits["test"]
    assert frames_key(rows, range(2)) != frames_key(rows, range(1, 3))


@pytest.mark.parametrize("kind", ["datasets", "torch"])
def test_several_labels_at_once(kind):
    rows = [{"image": PILImage.fromarray(frame(i)[0]), "labels": [0.5, i], "video": "v"} for i in (0, 1)]
    features = Features({"image": Image(), "labels": Sequence(Value("float32")), "video": Value("string")})
    source = Items(*rows) if kind == "torch" else Dataset.from_list(rows, features=features)
    data = from_datasets(source, "image-classification", CLASSES)
    assert data.problem_type == MULTI
    assert data.splits["train"][1]["labels"].tolist() == [0.5, 1]
    assert data.splits["train"][1]["labels"].dtype == np.float32
    assert data.notes == ()


def test_a_video_in_two_splits_is_an_error():
    with pytest.raises(UserError, match="'a' is in train and in test, but splits must be by video"):
        from_datasets(DatasetDict(train=hub("a"), test=hub("a", "b")), "semantic-segmentation", CLASSES)


IMAGE, MASK = frame(0)


@pytest.mark.parametrize(
    ("splits", "task", "message"),
    [
        ({"val": Items((IMAGE, MASK))}, "semantic-segmentation", "splits: val; expected only train, validation, test"),
        (Items((IMAGE, MASK)), "segmentation", "unknown task 'segmentation'; expected one of semantic-segmentation"),
        (Items(), "semantic-segmentation", "split 'train': it is empty"),
        (iter([1]), "semantic-segmentation", "it is a list_iterator; expected a datasets.Dataset or a torch dataset"),
        (Items({"picture": IMAGE}), "semantic-segmentation", "found the columns picture; .* needs image and mask or"),
        (Items((torch.zeros(3, 32, 48), MASK)), "semantic-segmentation", "image is a Tensor of shape .*float32"),
        (Items((IMAGE, MASK[:9])), "semantic-segmentation", "mask has 48x9 pixels, but its image has 48x32"),
        (Items((IMAGE, MASK // 20)), "semantic-segmentation", "mask contains the id 12, but there are 2 classes"),
        (Items((IMAGE, 2)), "image-classification", "split 'train': the label is 2, but there are 2"),
        (Items((IMAGE, [1.0, 2.0])), "image-classification", r"expected a class id, or a vector of 2 targets"),
        (Items((IMAGE, [0.0, 1.0])), "phase-recognition", "needs one class id per frame"),
    ],
)
def test_data_that_is_not_as_described(splits, task, message):
    with pytest.raises(UserError, match=message):
        from_datasets(splits, task, CLASSES)


def test_class_names_are_needed():
    with pytest.raises(UserError, match=r"no ClassLabel feature with class names; pass labels="):
        from_datasets(hub("a"), "semantic-segmentation")


def test_a_wrong_mask_beyond_the_first_row_is_found_when_it_is_read():
    rows = [pillow(0), {**pillow(1), "annotation": PILImage.new("L", (48, 32), 7)}]
    data = from_datasets(Dataset.from_list(rows), "semantic-segmentation", CLASSES)
    with pytest.raises(UserError, match="mask contains the id 7, but there are 2 classes"):
        data.splits["train"][1]
