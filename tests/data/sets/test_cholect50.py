import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from transformers import EvalPrediction

from surgenet_hf import SurgeNetConfig, SurgeNetForImageClassification
from surgenet_hf.data import load_data
from surgenet_hf.data.sets import cholect50
from surgenet_hf.errors import MissingFileError, UserError
from surgenet_hf.evaluation.evaluate import evaluate
from surgenet_hf.evaluation.reporting import write_figures
from surgenet_hf.evaluation.results import headlines
from surgenet_hf.finetuning.classification import multi_label_metrics
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.models import TINY
from surgenet_hf.tasks import selection_metric

BOX = [1, 0.25, 0.5, 0.1, 0.2]
NONE = [-1] * 5
# a frame with two triplets, one with a null verb and a box, and one with only a phase
FRAMES = {
    "0": [[60, 2, *NONE, 2, 0, *NONE, 3], [17, 0, *NONE, 1, 0, *NONE, 3]],
    "1": [[96, 2, *BOX, 9, 14, *BOX, 3]],
    "2": [[-1, -1, *NONE, -1, -1, *NONE, 4]],
}
CATEGORIES = {name: {str(i): label for i, label in enumerate(labels)} for name, _, labels in cholect50.TASKS.values()}


def write_labels(root, video, frames=FRAMES, categories=CATEGORIES):
    path = root / "labels" / f"{video}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"video": int(video[3:]), "fps": 1, "annotations": frames, "categories": categories}))
    return path


@pytest.fixture
def root(tmp_path):
    """Return a folder with videos 1 (train), 8 (validation), and 6 and 111 (test), each with three frames."""
    for video in ("VID01", "VID06", "VID08", "VID111"):
        write_labels(tmp_path, video)
        (tmp_path / "videos" / video).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (12, 8), (50 * i, 0, 0)).save(tmp_path / "videos" / video / f"{i:06d}.png")
    return tmp_path


def column(split, name):
    return split.select_columns([name])[:][name]


@pytest.mark.parametrize(
    ("task", "present"),
    [
        (
            "triplets",
            [["grasper,retract,gallbladder", "hook,dissect,gallbladder"], ["hook,null_verb,null_target"], []],
        ),
        ("tools", [["grasper", "hook"], ["hook"], []]),
        ("verbs", [["retract", "dissect"], ["null_verb"], []]),
        ("targets", [["gallbladder"], ["null_target"], []]),
    ],
)
def test_labels(root, task, present):
    data = load_data(f"cholect50-{task}", root)
    assert data.name == f"cholect50-{task}"
    assert data.problem_type == "multi_label_classification"
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 3, "validation": 3, "test": 6}
    rows = list(data.splits["train"])
    assert [[data.labels[i] for i in np.flatnonzero(row["labels"])] for row in rows] == present
    assert rows[0]["labels"].shape == (len(data.labels),)
    assert [row["frame"] for row in rows] == [0, 1, 2]
    assert rows[2]["image"].getpixel((0, 0)) == (100, 0, 0)
    assert set(column(data.splits["test"], "video")) == {"VID06", "VID111"}
    assert data.split_protocol == "rendezvous (35 train, 5 validation, 10 test)"
    assert data.notes[0].startswith("Found 4 of 50 videos, 12 frames at 1 per second.")
    assert len(data.notes) == 1


def test_evaluation_has_the_video_wise_metric_and_one_figure(root, tmp_path):
    data = load_data("cholect50-triplets", root)
    model = SurgeNetForImageClassification(SurgeNetConfig(**TINY, num_labels=100, problem_type=data.problem_type))
    processor = build_image_processor(image_size=32)
    evaluation = evaluate(model, processor, data, "test", resamples=0)
    metrics = evaluation.results["metrics"]
    # each of the three triplets is in one of the three frames of each video
    values = [metrics["per_class"][label]["video_average_precision"] for label in data.labels]
    assert np.flatnonzero(~np.isnan(np.array(values, float))).tolist() == [17, 60, 96]
    assert metrics["mean_video_average_precision"] == pytest.approx(np.nanmean(np.array(values, float)))
    assert headlines(evaluation.results)[0] == "mean_video_average_precision"
    write_figures(evaluation, model, processor, data, "test", tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"per_class.png", "per_class.pdf"}


def test_the_video_wise_metric_selects_the_checkpoint(root):
    """Test the metrics of Trainer on two videos, each with one frame that shows triplet 60.

    Each video ranks that frame first, so video-wise average precision is 1. Its score in the second video is lower
    than all of the first, so the pooled average precision is (1 / 1 + 2 / 4) / 2.
    """
    data = load_data("cholect50-triplets", root)
    data = replace(data, splits={"validation": data.splits["test"]})
    targets = np.array(column(data.splits["validation"], "labels"), float)
    logits = 4 * targets - 2
    logits[:, 60] = [3, 2, 2, 1, 0, 0]
    assert targets[:, 60].tolist() == [1, 0, 0, 1, 0, 0]
    metrics = multi_label_metrics(data, EvalPrediction(predictions=logits, label_ids=targets))
    assert metrics[selection_metric(data)] == 1
    assert metrics["mean_average_precision"] == pytest.approx((0.75 + 1 + 1) / 3)


def test_phases(root):
    write_labels(root, "VID01", FRAMES | {"1": []})
    data = load_data("cholect50-phase", root)
    assert data.task == "phase-recognition"
    assert column(data.splits["train"], "labels") == [3, 4]
    assert column(data.splits["test"], "labels") == [3, 3, 4] * 2
    assert "VID01: 1 frames without a phase are excluded." in data.notes


def test_splits_are_disjoint_and_complete():
    assert len(cholect50.VIDEOS) == len(set(cholect50.VIDEOS)) == 50
    assert sum(number <= 80 for number in cholect50.VIDEOS) == 45
    for name, parts in cholect50.SPLITS.items():
        assert sorted(number for part in parts.values() for number in part) == list(cholect50.VIDEOS)
        sizes = [40, 5, 5] if name == "challenge" else [35, 5, 10]
        assert [len(part) for part in parts.values()] == sizes
    tested = [number for k in range(1, 6) for number in cholect50.SPLITS[f"crossval-{k}"]["test"]]
    assert sorted(tested) == list(cholect50.VIDEOS)
    # the last videos of the fold before the tested one
    assert cholect50.SPLITS["crossval-5"]["validation"] == (75, 22, 49, 12, 110)
    assert cholect50.SPLITS["crossval-1"]["validation"] == (1, 56, 4, 13, 92)
    assert {1, 62, 42} <= set(cholect50.SPLITS["challenge"]["train"])


def test_the_challenge_split(root):
    for video in ("VID06", "VID08"):
        (root / "labels" / f"{video}.json").rename(root / "labels" / f"{video}.old")
        (root / "videos" / video).rename(root / video)
    with pytest.raises(UserError, match="no frames for the split 'validation'"):
        load_data("cholect50-tools", root, split_protocol="challenge")
    write_labels(root, "VID05")
    (root / "VID06").rename(root / "videos" / "VID05")
    data = load_data("cholect50-tools", root, split_protocol="challenge")
    assert [set(column(split, "video")) for split in data.splits.values()] == [{"VID01"}, {"VID05"}, {"VID111"}]
    with pytest.raises(UserError, match=r"unknown split protocol 'random'; expected one of rendezvous, crossval-1"):
        load_data("cholect50-tools", root, split_protocol="random")


def test_triplets_are_those_of_ivtmetrics():
    bank = pytest.importorskip("ivtmetrics").Disentangle().bank
    assert [tuple(row) for row in bank[:, 1:4].tolist()] == list(cholect50.TRIPLET_IDS)
    assert len(set(cholect50.TRIPLETS)) == 100


def test_classes_of_the_file(root):
    order = dict(CATEGORIES["verb"]) | {"0": "retract", "1": "grasp"}
    write_labels(root, "VID01", categories=CATEGORIES | {"verb": order})
    assert load_data("cholect50-tools", root).notes[1:] == ()
    with pytest.raises(
        UserError, match=r"verb classes are not those of CholecT50: found 10, with 0 retract, 1 grasp;"
    ):
        load_data("cholect50-verbs", root)
    phases = dict(CATEGORIES["phase"]) | {"1": "calot-triangle-dissection"}
    write_labels(root, "VID01", categories=CATEGORIES | {"phase": phases})
    notes = load_data("cholect50-phase", root).notes
    assert "VID01: the names of some phase classes differ (1 calot-triangle-dissection)." in notes
    write_labels(root, "VID01", categories=CATEGORIES | {"triplet": {"0": cholect50.TRIPLETS[0]}})
    with pytest.raises(UserError, match="found 1, with the same names; expected 100"):
        load_data("cholect50-triplets", root)


def test_rows_that_contradict_their_triplet_are_noted(root):
    write_labels(root, "VID01", FRAMES | {"1": [[96, 1, *NONE, 9, 14, *NONE, 3]]})
    data = load_data("cholect50-tools", root)
    assert "VID01: 1 rows have another instrument, verb, or target than their triplet." in data.notes
    assert data.splits["train"][1]["labels"].tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "AttributeError"),
        ({"0": [[0] * 14]}, r"a row is \[0, 0, "),
        ({"0": [[0.5] + [0] * 14]}, r"a row is \[0\.5, "),
        ({"0": [[0, 6] + [0] * 13]}, "found the instrument 6, expected 0 to 5 or -1"),
        ({"zero": []}, "invalid literal"),
    ],
)
def test_malformed_labels_are_named(root, frames, message):
    write_labels(root, "VID08", frames)
    with pytest.raises(UserError, match=rf"VID08\.json is malformed \(.*{message}"):
        load_data("cholect50-tools", root)


def test_two_phases_in_one_frame_are_refused(root):
    write_labels(root, "VID08", {"0": [FRAMES["0"][0], FRAMES["2"][0]]})
    with pytest.raises(UserError, match=r"frame 0 has the phases 3, 4, expected one"):
        load_data("cholect50-phase", root)


def test_layouts_that_are_not_as_expected(root):
    (root / "videos" / "VID01" / "000002.png").unlink()
    note = "Labels at the end of a video that have no frame are excluded: VID01 (1)."
    assert load_data("cholect50-tools", root).notes[1] == note
    (root / "videos" / "VID01" / "000000.png").unlink()
    with pytest.raises(
        MissingFileError, match=r"2 of 3 labeled frames of VID01 are missing .*VID01: frame number 0, 2"
    ):
        load_data("cholect50-tools", root)
    (root / "labels" / "VID01.json").unlink()
    with pytest.raises(MissingFileError, match=r"video VID01 has no labels: expected .*VID01\.json; expected the"):
        load_data("cholect50-tools", root)
    (root / "videos").rename(root / "data")
    with pytest.raises(MissingFileError, match=r"videos does not exist .*contains data, labels"):
        load_data("cholect50-tools", root)
