import os
import sys

import numpy as np
import pytest
import torch
from accelerate import PartialState
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from torch import distributed

from surgenet_hf import SurgeNetConfig, SurgeNetModel
from surgenet_hf.data import Sample, SurgicalData
from surgenet_hf.data.base import MULTI, SINGLE, build_splits
from surgenet_hf.data.masks import lookup_table
from surgenet_hf.data.sets.synthetic import encode_image
from surgenet_hf.evaluation.probes import LabeledEmbeddings, knn_accuracy, vote
from surgenet_hf.image_processing import build_image_processor

COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


def frames(split: str, labels: list, rng: np.random.Generator) -> list[Sample]:
    """Return a noisy frame for each label, or for each pair of label and color index.

    The label is also the color index unless a pair is given.
    """
    samples = []
    for i, label in enumerate(labels):
        label, color = label if isinstance(label, tuple) else (label, label)
        pixels = np.array(COLORS[color]) + rng.normal(0, 25, (32, 32, 3))
        image = encode_image(pixels.clip(0, 255).astype(np.uint8), "PNG")
        samples.append(Sample(image, label, f"{split}{i % 3}", i))
    return samples


def colored(train: list, validation: list, problem_type: str = SINGLE, queried: str = "validation"):
    rng = np.random.default_rng(0)
    samples = {"train": frames("train", train, rng), queried: frames(queried, validation, rng)}
    splits = build_splits(samples)
    return SurgicalData("colors", "image-classification", ("a", "b", "c"), (), splits, problem_type=problem_type)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return build_image_processor(image_size=32)


def test_votes_are_scikit_learns():
    rng = np.random.default_rng(0)
    memory, queries = rng.normal(size=(200, 8)).astype("float32"), rng.normal(size=(1500, 8)).astype("float32")
    classes = rng.integers(0, 4, 200)
    found = vote(
        LabeledEmbeddings(torch.from_numpy(memory), torch.eye(4)[classes], np.array(["a"] * 200)),
        LabeledEmbeddings(torch.from_numpy(queries), torch.zeros(1500, 4), np.array(["b"] * 1500)),
        k=20,
        temperature=0.07,
    )
    reference = KNeighborsClassifier(20, weights=lambda distances: np.exp((1 - distances) / 0.07), metric="cosine")
    expected = reference.fit(memory, classes).predict_proba(queries)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_frames_of_the_same_video_have_no_vote():
    memory = LabeledEmbeddings(torch.tensor([[1.0, 0], [0.6, 0.8]]), torch.eye(2), np.array(["a", "b"]))
    query = torch.tensor([[1.0, 0]])
    (own,) = vote(memory, LabeledEmbeddings(query, torch.zeros(1, 2), np.array(["a"])), 1, 0.07)
    (other,) = vote(memory, LabeledEmbeddings(query, torch.zeros(1, 2), np.array(["c"])), 1, 0.07)
    assert (own.tolist(), other.tolist()) == ([0, 1], [1, 0])
    memory.videos[:] = "a"
    with pytest.raises(ValueError, match="same video"):
        vote(memory, LabeledEmbeddings(query, torch.zeros(1, 2), np.array(["a"])), 1, 0.07)


def test_features_that_tell_the_classes_apart_beat_chance(model, processor):
    train, validation = [0, 1, 2, 0] * 6, [0, 1, 2, 2, 1] * 3
    figures = knn_accuracy(model.train(), processor, colored(train, validation))
    assert model.training
    assert figures == {"knn_accuracy": 1.0, "knn_chance": pytest.approx(3 / 15)}  # the most common class in train is 0
    # colors that are unrelated to the labels
    rng = np.random.default_rng(1)
    unrelated = [[(label, int(rng.integers(3))) for label in labels] for labels in (train, validation)]
    assert knn_accuracy(model, processor, colored(*unrelated))["knn_accuracy"] < 0.8


def test_several_labels_at_once(model, processor):
    """Test several labels per frame.

    The first label is the color, no frame has the second, and all frames have the third.
    """
    train = [((float(i % 2), 0.0, 1.0), i % 2) for i in range(12)]
    validation = [((0.4 + 0.2 * (i % 2), 0.0, 1.0), i % 2) for i in range(8)]
    figures = knn_accuracy(model, processor, colored(train, validation, MULTI, queried="test"), k=99)
    assert figures == {"knn_mean_average_precision": 1.0, "knn_chance": 0.5}
    with pytest.raises(ValueError, match="the same labels"):
        knn_accuracy(model, processor, colored(train, validation[::2], MULTI))


def scenes() -> SurgicalData:
    """Return frames with masks of class 0 in all frames, classes 1 to 3 in random ones, and class 4 in none.

    Each of classes 1 to 3 has its own color in a random part of the frame.
    """
    rng = np.random.default_rng(0)
    samples = {"train": [], "validation": []}
    for i in range(36):
        mask = np.zeros((32, 48), np.uint8)
        image = rng.integers(0, 255, (32, 48, 3), np.uint8)
        for label in np.flatnonzero(rng.random(3) < 0.5) + 1:
            top, left = rng.integers(0, 24, 2)
            mask[top : top + 16, left : left + 16] = label
        mask[0] = 0
        mask[-1] = 255  # ignored
        image[mask % 255 > 0] = np.array([(0, 0, 0), *COLORS])[mask[mask % 255 > 0]]
        split = "train" if i < 24 else "validation"
        encoded = (encode_image(array, "PNG") for array in (image, mask))
        samples[split].append(Sample(*encoded, f"{split}{i % 4}", i))
    splits = build_splits(samples, lookup_table({i: i for i in range(5)}))
    return SurgicalData("scenes", "semantic-segmentation", ("a", "b", "c", "d", "e"), (), splits)


def test_classes_that_masks_show(model, processor):
    """Test that masks define class presence.

    The reference uses scikit-learn's neighbors and average precision.
    """
    data = scenes()
    embeddings, present = {}, {}
    for split in ("train", "validation"):
        rows = list(data.splits[split])
        present[split] = np.array([[label in row["mask"] for label in range(5)] for row in rows])
        with torch.no_grad():
            inputs = processor([row["image"] for row in rows], return_tensors="pt")
            embeddings[split] = model.eval()(**inputs).pooler_output.numpy()
    reference = KNeighborsClassifier(7, weights=lambda distances: np.exp((1 - distances) / 0.1), metric="cosine")
    precisions = []
    for label in (1, 2, 3):
        reference.fit(embeddings["train"], present["train"][:, label])
        scores = reference.predict_proba(embeddings["validation"])[:, 1]
        precisions.append(average_precision_score(present["validation"][:, label], scores))
    figures = knn_accuracy(model, processor, data, k=7, temperature=0.1, batch_size=5)
    assert figures["knn_mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-4)
    assert figures["knn_chance"] == pytest.approx(present["validation"][:, 1:4].mean())


def test_fewer_frames(model, processor):
    seen = []
    hook = model.register_forward_hook(lambda module, inputs, outputs: seen.append(len(outputs.pooler_output)))
    figures = knn_accuracy(model, processor, colored([0, 1, 2] * 10, [0, 1, 2] * 5), max_frames=7)
    hook.remove()
    assert sum(seen) == 14
    assert figures["knn_accuracy"] == 1


def test_bad_input(model, processor):
    one = colored([0, 1], [0])
    del one.splits["validation"]
    with pytest.raises(ValueError, match=r"a train split and a validation or test split; 'colors' has train$"):
        knn_accuracy(model, processor, one)
    broken = SurgeNetModel(model.config)
    broken.load_state_dict({name: tensor * torch.nan for name, tensor in model.state_dict().items()})
    with pytest.raises(ValueError, match="'colors', train, are not finite"):
        knn_accuracy(broken, processor, colored([0, 1], [0]))


def tiny_model() -> SurgeNetModel:
    torch.manual_seed(0)
    return SurgeNetModel(SurgeNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 64]))


def share(rank: int, rendezvous: str, output: str):
    torch.set_num_threads(1)
    PartialState._reset_state()  # inherited from the forked parent
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ["MASTER_PORT"] = "0"  # unused: the group already exists
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model, seen = tiny_model(), []
    model.register_forward_hook(lambda module, inputs, outputs: seen.append(len(outputs.pooler_output)))
    figures = knn_accuracy(model, build_image_processor(image_size=32), scenes())
    torch.save([figures, sum(seen)], f"{output}{rank}.pt")
    distributed.destroy_process_group()


def test_processes_share_the_frames(model, processor, tmp_path):
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path / "rank"))
    # a fork avoids importing everything again
    method = "fork" if sys.platform == "linux" else "spawn"
    torch.multiprocessing.start_processes(share, arguments, nprocs=2, start_method=method)
    expected = knn_accuracy(model, processor, scenes())
    for rank in range(2):
        figures, seen = torch.load(tmp_path / f"rank{rank}.pt")
        assert figures == pytest.approx(expected, abs=1e-4)
        assert seen == 18  # half of 36 frames
