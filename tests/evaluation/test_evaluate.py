import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from surgenet_hf import SurgeNetConfig, SurgeNetForImageClassification
from surgenet_hf.data import Sample, SurgicalData
from surgenet_hf.data.base import SINGLE, build_splits
from surgenet_hf.evaluation.evaluate import evaluate, majority_class_baseline, write_results
from surgenet_hf.evaluation.reporting import summary
from surgenet_hf.evaluation.saved_model import check_saved_model
from surgenet_hf.finetuning.segmentation import build_model
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference.prediction import predict_segmentation
from surgenet_hf.metrics import SegmentationMetric

LABELS = ("background", "liver", "tool")
TINY = SurgeNetConfig(
    depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 96], pyramid_channels=32, segmentation_channels=64
)


def row(seed, height, width, video, mask=None):
    rng = np.random.default_rng(seed)
    if mask is None:
        mask = rng.choice([0, 1, 255], size=(height, width)).astype(np.uint8)
    image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    return {"image": image, "mask": mask, "video": video, "frame": seed}


@pytest.fixture
def data():
    """Return frames of several sizes; class 2 is the most common in training and absent in validation."""
    train = [row(0, 40, 40, "a", np.full((40, 40), 2, np.uint8)), row(1, 20, 20, "b")]
    validation = [
        row(2, 40, 50, "c"),
        row(3, 33, 47, "d"),
        row(4, 70, 64, "c"),
        row(5, 64, 64, "d"),
        row(6, 32, 32, "d"),
    ]
    return SurgicalData(
        "boxes",
        "semantic-segmentation",
        LABELS,
        ((0, 0, 0), (1, 1, 1), (2, 2, 2)),
        {"train": train, "validation": validation},
        notes=("a note",),
        background_id=0,
        split_protocol="by hand",
    )


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    model, _ = build_model(TINY, data, 64)
    with torch.no_grad():  # a random head predicts one class everywhere; spread its predictions
        model(torch.randn(4, 3, 64, 64))
        for parameter in model.decode_head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


processor = build_image_processor("surgenet", 64)


def test_predictions_are_the_pipelines_at_the_masks_own_size(data, model):
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    found = list(predict_segmentation(model, processor, data.splits["validation"], batch_size=2))
    assert [row["frame"] for row, _ in found] == [2, 3, 4, 5, 6]
    several = 0
    for frame, class_map in found:
        assert class_map.dtype == np.uint8
        assert class_map.shape == frame["mask"].shape
        parts = segment(frame["image"])
        several += len(parts) > 1
        for part in parts:
            inside = np.asarray(part["mask"]) > 0
            assert (class_map[inside] == LABELS.index(part["label"])).mean() > 0.99
    assert several  # ensure that something was compared


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_and_dropout_is_off(data, model, training):
    model.train(training)
    model.decode_head.register_forward_hook(lambda module, *_: seen.append(module.training))
    seen = []
    predictions = predict_segmentation(model, processor, data.splits["validation"], batch_size=2)
    next(predictions)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    predictions.close()  # stop before the end
    assert seen == [False]
    assert model.training is training


def test_results_hold_what_was_measured_and_where_it_came_from(data, model):
    model.config.pretraining = {"name": "SurgeNetXL", "sha256": "abc", "normalization": "surgenet"}
    results = evaluate(model, processor, data, command="surgenet evaluate").results

    metric = SegmentationMetric(3, background_id=0)
    for frame, class_map in predict_segmentation(model, processor, data.splits["validation"]):
        metric.add(class_map, frame["mask"], frame["video"])
    expected = metric.compute()
    metrics = results["metrics"]
    for name in ("video_dice", "video_dice_with_background", "endovit_dice", "video_hd95"):
        assert metrics[name] == expected[name]
    assert metrics["per_class"]["liver"]["dice"] == expected["per_class"][1]["dice"]
    assert results["per_video"]["c"]["video_dice"] == expected["per_video"]["c"]["video_dice"]
    assert results["per_video"]["c"]["per_class"]["tool"] == pytest.approx(
        expected["per_video"]["c"]["per_class"][2], nan_ok=True
    )
    assert results["schema"] == "surgenet_hf.results/2"
    definitions = results["definitions"]
    assert definitions["headline"] == "video_dice"
    assert definitions["background"].startswith("class 0, excluded")
    assert definitions["map_size"] == [(32, 32), (33, 47), (40, 50), (64, 64), (70, 64)]
    assert definitions["videos"] == 2
    assert "no interval below 5 videos" in definitions["intervals"]
    assert results["intervals"] == {}  # only two videos
    assert results["model"]["pretraining"]["name"] == "SurgeNetXL"
    assert results["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert results["data"] == {
        "name": "boxes",
        "split": "validation",
        "split_protocol": "by hand",
        "image_size": [64, 64],
        "frames": 5,
        "videos": ["c", "d"],
        "videos_are_public": False,
        "labels": list(LABELS),
        "background": "background",
        "notes": ["a note"],
        "leakage": "it is unknown whether SurgeNetXL was pretrained on these videos",
        "selected": [],
    }
    assert results["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert results["command"] == "surgenet evaluate"


def test_frames_and_videos_that_show_only_background_are_noted(data, model):
    black = [row(10 + i, 32, 32, "black", np.zeros((32, 32), np.uint8)) for i in range(2)]
    splits = {**data.splits, "validation": [*data.splits["validation"], *black]}
    results = evaluate(model, processor, dataclasses.replace(data, splits=splits)).results
    assert results["data"]["notes"] == [
        "a note",
        "2 of 7 frames show only background.",
        "Videos without foreground, which are excluded from means over videos: black.",
    ]
    assert math.isnan(results["per_video"]["black"]["video_dice"])


def test_intervals_name_their_videos_and_method(data, model):
    frames = [row(20 + i, 32, 32, f"v{i}") for i in range(6)]
    results = evaluate(
        model, processor, dataclasses.replace(data, splits={**data.splits, "test": frames}), "test"
    ).results
    interval = results["intervals"]["video_dice"]
    assert interval["low"] <= results["metrics"]["video_dice"] <= interval["high"]
    assert (interval["videos"], interval["method"]) == (6, "Student's t")
    assert results["intervals"]["pooled_dice"]["method"] == "bootstrap with expanded percentiles"
    assert results["bootstrap"] == {}  # the main metrics are means over videos
    assert "rough" in summary(results)
    assert "n = 6 videos" in summary(results)
    assert "no interval: fewer than 5 videos with a value" in summary(evaluate(model, processor, data).results)


def test_unknown_provenance_is_called_unknown(data, model):
    model.config.pretraining = None
    assert evaluate(model, processor, data).results["model"]["pretraining"] == "unknown"


@pytest.mark.parametrize(("rate", "accepted"), [(1.0, 10), (5.0, 50), (None, None)])
def test_relaxed_borders_are_seconds_and_not_frames(rate, accepted, tiny_config):
    """Test that relaxed borders are measured in seconds rather than frames.

    Each of two phases has 60 frames, all predicted as the first phase. It may extend 10 s into the second phase.
    """
    model = SurgeNetForImageClassification(tiny_config(num_labels=2, problem_type=SINGLE))
    torch.nn.init.zeros_(model.classifier.fc2.weight)
    model.classifier.fc2.bias.data = torch.tensor([1.0, 0.0])
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    frames = [Sample(png.getvalue(), i // 60, "a", i) for i in range(120)]
    splits = build_splits({"validation": frames})
    task = "phase-recognition" if rate else "image-classification"
    phases = SurgicalData(
        "phases",
        task,
        ("first", "second"),
        ((0, 0, 0),) * 2,
        splits,
        problem_type=SINGLE,
        frames_per_second=rate,
    )
    metrics = evaluate(model, build_image_processor("surgenet", 32), phases, batch_size=60).results["metrics"]
    assert metrics["accuracy"] == 0.5
    if rate:
        assert metrics["relaxed_accuracy"] == pytest.approx((60 + accepted) / 120)
    else:  # frames without temporal order
        assert "relaxed_accuracy" not in metrics


def test_what_cannot_be_evaluated_is_refused(data, model):
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        evaluate(model, processor, data, split="test")
    with pytest.raises(ValueError, match="model has 3 classes, the dataset 'boxes' has 2"):
        evaluate(model, processor, dataclasses.replace(data, labels=("a", "b")))


def test_the_majority_is_that_of_training(data):
    metrics = majority_class_baseline(data)
    assert metrics["per_class"]["tool"]["dice"] == 0  # predicted everywhere, but absent in validation
    assert metrics["pixel_accuracy"] == 0
    on_train = majority_class_baseline(data, "train")
    labeled = sum((frame["mask"] != 255).sum() for frame in data.splits["train"])
    assert on_train["pixel_accuracy"] == pytest.approx(1600 / labeled)
    assert on_train["per_class"]["tool"]["dice"] == pytest.approx(2 * 1600 / (1600 + labeled))


def test_written_results_are_valid_json_and_whole(data, model, tmp_path):
    metrics = {"dice": majority_class_baseline(data)["pooled_dice"]}
    path = tmp_path / "new" / "results.json"
    write_results({"a": math.nan, "b": [1.5, np.nan, {"c": metrics}], "d": "Größe"}, path)
    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == {"a": None, "b": [1.5, None, {"c": metrics}], "d": "Größe"}
    with pytest.raises(TypeError):
        write_results({"a": object()}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == written
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_saved_model_is_checked_against_what_was_trained(data, model, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    rows, class_maps = zip(*predict_segmentation(model, processor, data.splits["validation"]), strict=True)
    assert check_saved_model(tmp_path, rows, class_maps) > 0.999
    build_image_processor("imagenet", 64).save_pretrained(tmp_path)  # only the statistics are wrong
    with pytest.raises(RuntimeError, match="differ from the trained model"):
        check_saved_model(tmp_path, rows, class_maps)
