import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from surgenet_hf.metrics import MultiLabelMetric

VIDEOS = [f"v{i}" for i in range(4)]


def random_frames(seed, frames=200, ties=False):
    """Return random scores, targets, and videos.

    The targets are means of three raters, and the scores correlate with them.
    """
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, (frames, 3)) / 3
    scores = np.clip(0.5 * targets + 0.5 * rng.random((frames, 3)), 0, 1)
    return (scores.round(1) if ties else scores), targets, rng.choice(VIDEOS, frames).tolist()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sample", [None, ["v1", "v1", "v3", "v1"]])
def test_agrees_with_scikit_learn(ties, sample):
    scores, targets, videos = random_frames(0, ties=ties)
    metric = MultiLabelMetric(3)
    metric.add(scores, targets, videos)
    result = metric.compute(sample)
    rows = np.concatenate([np.flatnonzero(np.array(videos) == video) for video in sample or VIDEOS])
    positive = targets[rows] > 0.4  # targets are 0, 1/3, 2/3, or 1
    precision = [average_precision_score(positive[:, c], scores[rows, c]) for c in range(3)]
    accuracy = [balanced_accuracy_score(positive[:, c], scores[rows, c] >= 0.5) for c in range(3)]
    assert [result["per_class"][c]["average_precision"] for c in range(3)] == pytest.approx(precision)
    assert [result["per_class"][c]["balanced_accuracy"] for c in range(3)] == pytest.approx(accuracy)
    assert result["mean_average_precision"] == pytest.approx(np.mean(precision))
    assert result["mean_balanced_accuracy"] == pytest.approx(np.mean(accuracy))
    assert [result["per_class"][c]["positives"] for c in range(3)] == positive.sum(0).tolist()
    assert result["frames"] == len(rows)


def test_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multilabel_average_precision

    scores, targets, videos = random_frames(1)
    metric = MultiLabelMetric(3)
    for start in range(0, 200, 7):  # in batches
        metric.add(*(part[start : start + 7] for part in (scores, targets, videos)))
    expected = multilabel_average_precision(torch.from_numpy(scores), torch.from_numpy(targets > 0.4), 3)
    assert metric.compute()["mean_average_precision"] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_video_wise_precision_agrees_with_ivtmetrics(ties):
    """Test random videos in which every class occurs, where the conventions are the same."""
    reference = pytest.importorskip("ivtmetrics").Recognition(num_class=5)
    metric, rng = MultiLabelMetric(5, video_wise=True), np.random.default_rng(3)
    for frames in (40, 7, 90):
        targets = rng.integers(0, 2, (frames, 5))
        targets[0], targets[1] = 1, 0
        scores = np.clip(0.3 * targets + rng.random((frames, 5)), 0, 1)
        scores = scores.round(1) if ties else scores
        reference.update(targets, scores)
        reference.video_end()
        metric.add(scores, targets, f"v{frames}")
    expected, result = reference.compute_video_AP("ivt"), metric.compute()
    assert result["mean_video_average_precision"] == pytest.approx(expected["mAP"], abs=1e-12)
    per_class = [result["per_class"][i]["video_average_precision"] for i in range(5)]
    assert per_class == pytest.approx(expected["AP"].tolist(), abs=1e-12)
    assert result["mean_average_precision"] == pytest.approx(reference.compute_global_AP("ivt")["mAP"], abs=1e-12)
    assert result["mean_average_precision"] != pytest.approx(expected["mAP"], abs=1e-3)


def test_video_wise_precision_with_absent_classes_by_hand():
    """Test that a class counts only in the videos in which it occurs, and a class that never occurs has no value."""
    metric = MultiLabelMetric(3, video_wise=True)
    # video a: class 0 is ranked second of two (1/2), class 1 first (1); video b: only class 0 occurs, ranked first (1)
    metric.add([[0.4, 0.9, 0.5], [0.6, 0.1, 0.5]], [[1, 1, 0], [0, 0, 0]], "a")
    metric.add([[0.7, 0.3, 0.5], [0.2, 0.8, 0.5]], [[1, 0, 0], [0, 0, 0]], "b")
    result = metric.compute()
    per_class = [result["per_class"][i]["video_average_precision"] for i in range(3)]
    assert per_class == pytest.approx([(1 / 2 + 1) / 2, 1, math.nan], nan_ok=True)
    assert result["mean_video_average_precision"] == pytest.approx((0.75 + 1) / 2)
    assert metric.compute(["b"])["mean_video_average_precision"] == 1  # class 1 does not occur
    assert metric.compute(["a", "b", "b"])["per_class"][0]["video_average_precision"] == pytest.approx(2.5 / 3)
    draws = metric.resample(np.array([[1, 1], [0, 1], [1, 2]]))["mean_video_average_precision"]
    assert draws == pytest.approx([0.875, 1, (2.5 / 3 + 1) / 2])
    assert metric.definitions()["headline"] == "mean_video_average_precision"


def test_perfect_predictions_with_absent_classes():
    """Test the case in which ivtmetrics gives 0.5 under current versions of scikit-learn."""
    metric = MultiLabelMetric(4, video_wise=True)
    targets = np.eye(4)[[0, 1, 0, 1]]
    metric.add(targets, targets, "a")
    metric.add(targets, targets, "b")
    assert metric.compute()["mean_video_average_precision"] == 1


def test_other_datasets_have_no_video_wise_metric():
    metric = MultiLabelMetric(2)
    metric.add([[0.9, 0.2]], [[1, 0]], "a")
    assert "mean_video_average_precision" not in metric.compute()
    assert "video_average_precision" not in metric.compute()["per_class"][0] | metric.definitions()


def test_by_hand():
    metric = MultiLabelMetric(1)
    metric.add([[0.9], [0.8], [0.5], [0.1]], [[1], [0.4], [0.5], [0]], "a")
    result = metric.compute()
    assert result["mean_average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # 0.5 is positive for targets and scores
    assert result["mean_balanced_accuracy"] == pytest.approx((2 / 2 + 1 / 2) / 2)


def test_criteria_without_positives_or_negatives():
    metric = MultiLabelMetric(3)
    metric.add([[0.9, 0.2, 0.6], [0.1, 0.7, 0.4]], [[1, 0, 1], [0, 0, 1]], "a")
    result = metric.compute()
    precision, accuracy = (
        [result["per_class"][c][name] for c in range(3)] for name in ("average_precision", "balanced_accuracy")
    )
    assert precision == pytest.approx([1, math.nan, 1], nan_ok=True)
    assert accuracy == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert result["mean_average_precision"] == result["mean_balanced_accuracy"] == 1
    empty = MultiLabelMetric(2)
    empty.add([[0.5, 0.5]], [[0, 0]], "one frame")
    assert math.isnan(empty.compute()["mean_average_precision"])
    assert math.isnan(empty.compute()["per_video"]["one frame"]["per_class"][0]["balanced_accuracy"])


def test_values_of_a_video_are_those_of_its_frames():
    scores, targets, videos = random_frames(2)
    metric = MultiLabelMetric(3)
    metric.add(scores, targets, videos)
    alone = MultiLabelMetric(3)
    rows = np.array(videos) == "v2"
    alone.add(scores[rows], targets[rows], "v2")
    found, expected = (m.compute()["per_video"]["v2"] for m in (metric, alone))
    assert found["frames"] == expected["frames"]
    for index, values in expected["per_class"].items():
        assert found["per_class"][index] == pytest.approx(values, nan_ok=True)


def test_later_changes_of_the_arrays_do_not_reach_the_metric():
    scores = np.array([[0.9], [0.1]])
    metric = MultiLabelMetric(1)
    metric.add(scores, np.array([[1], [0]]), "a")
    scores[:] = 0.5
    assert metric.compute()["mean_balanced_accuracy"] == 1


@pytest.mark.parametrize(
    ("scores", "targets", "video", "message"),
    [
        ([[2.0, -1.0]], [[1, 0]], "a", r"scores must be from 0 to 1, found -1.0 to 2.0 \(apply the sigmoid to logits"),
        ([[np.nan, 0.0]], [[1, 0]], "a", "scores must be from 0 to 1"),
        ([[0.0, 0.0]], [[3, 0]], "a", "targets must be from 0 to 1"),
        ([[0.0]], [[1]], "a", r"the same shape \(n, 2\)"),
        ([[0.0, 0.0]], [[1, 0]], ["a", "b"], "2 videos"),
    ],
)
def test_bad_frames_are_refused(scores, targets, video, message):
    with pytest.raises(ValueError, match=message):
        MultiLabelMetric(2).add(scores, targets, video)
