"""Tests of `surgenet probe` and `surgenet_hf.probe` on frames whose color is their class."""

import json
import threading

import numpy as np
import pytest
import torch
import yaml
from transformers import Dinov2Config, Dinov2Model, set_seed

import surgenet_hf
from surgenet_hf import SurgeNetConfig, SurgeNetModel
from surgenet_hf.cli.compare import main as compare_command
from surgenet_hf.cli.probe import main as probe_command
from surgenet_hf.data import Sample, SurgicalData
from surgenet_hf.data.base import MULTI, SINGLE, build_splits
from surgenet_hf.data.masks import lookup_table
from surgenet_hf.data.sets.synthetic import encode_image
from surgenet_hf.evaluation import frozen_features
from surgenet_hf.evaluation.evaluate import evaluate
from surgenet_hf.evaluation.frozen_features import load_frozen, split_features
from surgenet_hf.evaluation.probes import knn_accuracy
from surgenet_hf.evaluation.results import check_results
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference.embeddings import load_backbone

COLORS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])
VIDEOS = {"train": 10, "validation": 3, "test": 5}


def colored(problem_type=SINGLE, wrong=0.0, splits=tuple(VIDEOS), seed=0, **changes) -> SurgicalData:
    """Return three frames per video, one of each color, which is the class. A share of the labels is wrong.

    With several labels, the third one never occurs.
    """
    rng = np.random.default_rng(seed)
    samples = {}
    for split in splits:
        samples[split] = []
        for i in range(3 * VIDEOS[split]):
            pixels = COLORS[i % 3] + rng.normal(0, 25, (32, 32, 3))
            label = (i + int(rng.random() < wrong)) % 3
            soft = (0.67 * (label == 0) + 0.33 * (label == 1), float(label == 1), 0.0)
            image = encode_image(pixels.clip(0, 255).astype(np.uint8), "PNG")
            samples[split].append(Sample(image, label if problem_type == SINGLE else soft, f"{split}{i // 3}", i))
    values = {"split_protocol": "by hand", "videos_are_public": True, **changes}
    classes = ("red", "green", "blue")
    return SurgicalData(
        "colors", "image-classification", classes, (), build_splits(samples), problem_type=problem_type, **values
    )


def masked(count: int = 24) -> SurgicalData:
    """Return frames that all show the background, class 1 if they are green, and class 2 if they are blue."""
    samples = {split: [] for split in ("train", "validation", "test")}
    for i in range(count):
        for split in samples:
            mask = np.zeros((32, 32), np.uint8)
            mask[8:24] = (i + (split == "test")) % 3
            image = np.zeros((32, 32, 3), np.uint8)
            image[mask > 0] = COLORS[mask[mask > 0]]
            samples[split].append(Sample(encode_image(image, "PNG"), encode_image(mask, "PNG"), f"{split}{i // 4}", i))
    splits = build_splits(samples, lookup_table({i: i for i in range(3)}))
    colors = ((0, 0, 0), (0, 255, 0), (0, 0, 255))
    return SurgicalData(
        "scenes", "semantic-segmentation", ("background", "green", "blue"), colors, splits, background_id=0
    )


def save(folder, kind: str = "surgenet") -> str:
    set_seed(0)
    if kind == "surgenet":
        model = SurgeNetModel(SurgeNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 64]))
    else:
        model = Dinov2Model(
            Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
        )
    model.save_pretrained(folder)
    build_image_processor(image_size=32).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("surgenet"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("vit"), "vit")


@pytest.fixture
def computed(monkeypatch):
    """Return a list of the numbers of frames that the backbone computes."""
    frames, compute = [], frozen_features._compute

    def counted(backbone, data, split, part, batch_size):
        frames.append(len(part))
        return compute(backbone, data, split, part, batch_size)

    monkeypatch.setattr(frozen_features, "_compute", counted)
    return frames


def test_knn_has_the_votes_of_knn_accuracy(model):
    data = colored(wrong=0.4, splits=("train", "validation"))
    backbone, _ = load_backbone(model)
    expected = knn_accuracy(backbone, build_image_processor(image_size=32), data, k=5, temperature=0.2)
    found = surgenet_hf.probe(model, data, k=5, temperature=0.2)
    assert found["metrics"]["accuracy"] == pytest.approx(expected["knn_accuracy"])
    assert 0.3 < expected["knn_accuracy"] < 1
    assert {key: found["training"][key] for key in ("mode", "k", "temperature")} == {
        "mode": "k-NN", "k": 5, "temperature": 0.2
    }  # fmt: skip
    several = colored(MULTI, wrong=0.4, splits=("train", "validation"))
    expected = knn_accuracy(backbone, build_image_processor(image_size=32), several)
    found = surgenet_hf.probe(model, several)["metrics"]["mean_average_precision"]
    assert found == pytest.approx(expected["knn_mean_average_precision"])


def test_a_linear_probe_separates_what_is_separable(model):
    for data in (colored(), colored(MULTI)):
        found = surgenet_hf.probe(model, data, method="linear")
        headline = "accuracy" if data.problem_type == SINGLE else "mean_average_precision"
        assert found["metrics"][headline] == 1
        training = found["training"]
        assert training["mode"] == "linear probe"
        assert training["selected_on"] == "validation"
        assert training["regularization"] in [10.0**power for power in range(-6, 6)]
        assert found["data"]["leakage"] is None or "used to select" not in found["data"]["leakage"]


def test_the_split_that_selects_the_regularization_is_stated(model):
    found = surgenet_hf.probe(model, colored(), method="linear", split="validation")
    assert "3 of 3 videos were used to select" in found["data"]["leakage"]
    given = surgenet_hf.probe(model, colored(), method="linear", split="validation", regularization=0.1)
    assert given["data"]["leakage"] is None or "used to select" not in given["data"]["leakage"]
    assert given["training"]["selected_on"] is None


def test_segmentation_is_probed_for_the_classes_that_frames_show(model):
    for method in ("knn", "linear"):
        found = surgenet_hf.probe(model, masked(), method=method, k=3)
        assert found["data"]["name"] == "scenes-presence"
        assert found["data"]["labels"] == ["green", "blue"]
        assert any("Excluded, because all evaluated frames show them: background" in n for n in found["data"]["notes"])
        assert found["metrics"]["mean_average_precision"] == 1
        assert "video_dice" not in found["metrics"]
        assert found["training"]["train_video_names"] is None  # names of the user's own videos


def test_features_are_computed_once(model, computed, tmp_path):
    features = tmp_path / "features"
    surgenet_hf.probe(model, colored(), features_dir=str(features))
    assert sum(computed) == 45  # train and test
    first = surgenet_hf.probe(model, colored(), features_dir=str(features), k=3, train_fraction=0.5)
    assert sum(computed) == 45
    surgenet_hf.probe(model, colored(), features_dir=str(features), method="linear")
    assert sum(computed) == 54  # and validation
    assert first == surgenet_hf.probe(model, colored(), k=3, train_fraction=0.5)
    computed.clear()
    changed = (colored(seed=1), {}), (colored(), {"pooling": "mean"}), (colored(), {"image_size": 64})
    for data, options in changed:
        surgenet_hf.probe(model, data, features_dir=str(features), **options)
    assert sum(computed) == 3 * 45


def test_a_killed_run_continues_and_processes_wait(model, computed, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_features, "PART", 8)
    backbone, data = load_frozen(model), colored()
    expected = split_features(backbone, data, "train", 8)
    computed.clear()
    threads = [threading.Thread(target=split_features, args=(backbone, data, "train", 8, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [8, 8, 8, 6]  # one of them computes, the other reads
    parts = sorted(tmp_path.rglob("*.npz"))
    parts[2].unlink()
    again = split_features(backbone, data, "train", 8, tmp_path)
    assert computed[4:] == [8]
    torch.testing.assert_close(again.embeddings, expected.embeddings)
    assert (again.videos == expected.videos).all()
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"part-00001\.npz is damaged .*: delete it"):
        split_features(backbone, data, "train", 8, tmp_path)


def test_poolings(model, vit):
    data = colored(splits=("train",))
    rows = [data.splits["train"][i]["image"] for i in range(3)]
    pixels = build_image_processor(image_size=32)(rows, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(vit).eval()(pixels).last_hidden_state
        maps = SurgeNetModel.from_pretrained(model).eval()(pixels)
    patches = tokens[:, 1:]
    expected = {
        (vit, "default"): tokens[:, 0],
        (vit, "cls"): tokens[:, 0],
        (vit, "mean"): patches.mean(1),
        (vit, "topk"): patches.topk(10, dim=1).values.mean(1),  # of 16 patches
        (model, "default"): maps.pooler_output,
        (model, "mean"): maps.last_hidden_state.mean((2, 3)),
    }
    for (source, pooling), features in expected.items():
        found = split_features(load_frozen(source, pooling), data, "train").embeddings[:3]
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="has no class token: choose --pooling default, mean, or topk"):
        load_frozen(model, "cls")


@pytest.mark.slow
def test_command_and_comparison(model, labeled, tmp_path, capsys):
    """Test the files of the command, and that each kind of probe has its own row in a comparison."""
    base = ["--model_name_or_path", model, "--dataset", "csv", "--data_dir", str(labeled)]
    base += ["--features_dir", str(tmp_path / "features")]
    variants = {"knn": ["--k", "2"], "linear": ["--method", "linear"], "some": ["--train_fraction", "0.5"]}
    for name, options in variants.items():
        probe_command([*base, *options, "--output_dir", str(tmp_path / "r" / name)])
    assert "linear probe; 4 training videos; C = " in capsys.readouterr().out
    for name in variants:
        folder = tmp_path / "r" / name
        results = json.loads((folder / "results.json").read_text())
        check_results(results, name)
        assert results["command"].startswith("surgenet probe")
        assert results["model"]["name"] == model
        assert (folder / "precision_recall.png").exists()
        assert yaml.safe_load((folder / "run.yaml").read_text())["dataset"] == "csv"
    assert results["training"]["train_fraction"] == 0.5
    assert results["training"]["train_videos"] == 2
    compare_command(["--results", str(tmp_path / "r"), "--output_dir", str(tmp_path / "comparison")])
    table = (tmp_path / "comparison" / "comparison.md").read_text()
    for row in ("(k-NN)", "(linear probe)", "(k-NN, 50 % of the videos)"):
        assert row in table


def test_results_have_the_fields_of_an_evaluation(model, tmp_path):
    data = colored(frames_per_second=1.0)
    found = surgenet_hf.probe(model, data, seed=3, train_fraction=0.25)
    config = SurgeNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 64], num_labels=3)
    config.id2label = dict(enumerate(data.labels))
    config.problem_type = SINGLE
    classifier = surgenet_hf.SurgeNetForImageClassification(config)
    reference = evaluate(classifier, build_image_processor(image_size=32), data, "test").results
    assert found.keys() == reference.keys()
    for part in ("data", "metrics", "definitions"):
        assert found[part].keys() == reference[part].keys()
    assert found["data"]["videos"] == reference["data"]["videos"]
    assert found["intervals"].keys() <= found["metrics"].keys()
    assert found["seed"] == 3
    assert len(found["training"]["train_video_names"]) == found["training"]["train_videos"] == 3


def test_what_is_refused(model, tmp_path):
    data = colored(splits=("train", "test"))
    refused = [
        ({"method": "linear"}, "no validation split to select the regularization"),
        ({"method": "forest"}, "method"),
        ({"k": 0}, "--k must be at least 1"),
        ({"temperature": 0}, "--temperature must be greater than 0"),
        ({"regularization": 1.0}, "--regularization is for --method linear"),
        ({"split": "validation"}, "has no split 'validation'"),
        ({"train_fraction": 2.0}, "--train_fraction must be greater than 0"),
        ({"pooling": "max"}, "pooling"),
        ({"labels": ["a", "b", "c"]}, "labels"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            surgenet_hf.probe(model, data, **options)
    with pytest.raises(ValueError, match="no split 'train'"):
        surgenet_hf.probe(model, colored(splits=("test",)))
    with pytest.raises(SystemExit, match="--output_dir is missing"):
        probe_command(["--model_name_or_path", model, "--dataset", "synthetic"])
