import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from surgenet_hf.metrics import SegmentationMetric

IGNORE = 255


def random_frames(seed, num_labels, frames=6, ignored=0.2):
    rng = np.random.default_rng(seed)
    for index in range(frames):
        shape = tuple(rng.integers(5, 30, 2))
        reference = rng.integers(0, num_labels, shape).astype(np.uint8)
        prediction = np.where(rng.random(shape) < 0.6, reference, rng.integers(0, num_labels, shape)).astype(np.int64)
        reference[rng.random(shape) < ignored] = IGNORE
        yield prediction, reference, f"video{index % 2}"


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scikit_learn(seed):
    metric = SegmentationMetric(num_labels=5)
    references, predictions = [], []
    for prediction, reference, video in random_frames(seed, 5):
        metric.add(prediction, reference, video)
        references.append(reference[reference != IGNORE])
        predictions.append(prediction[reference != IGNORE])
    references, predictions = np.concatenate(references), np.concatenate(predictions)

    result = metric.compute()
    np.testing.assert_allclose(result["dice"], f1_score(references, predictions, average=None))
    np.testing.assert_allclose(result["iou"], jaccard_score(references, predictions, average=None))
    assert result["pixel_accuracy"] == pytest.approx(accuracy_score(references, predictions))
    assert result["mean_dice"] == pytest.approx(f1_score(references, predictions, average="macro"))
    assert result["frames"] == 6


def test_agrees_with_torchmetrics_per_video():
    torch = pytest.importorskip("torch")
    from torchmetrics.classification import MulticlassF1Score

    metric = SegmentationMetric(num_labels=4)
    theirs = {}
    for prediction, reference, video in random_frames(3, 4):
        metric.add(prediction, reference, video)
        theirs.setdefault(video, MulticlassF1Score(4, average="macro", ignore_index=IGNORE)).update(
            torch.from_numpy(prediction).flatten(), torch.from_numpy(reference).long().flatten()
        )
    result = metric.compute()
    expected = {video: score.compute().item() for video, score in theirs.items()}
    assert result["video_dice"] == pytest.approx(expected, abs=1e-6)
    assert result["mean_video_dice"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_worked_by_hand():
    reference = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORE]])
    prediction = np.array([[0, 0, 1, 0], [0, 2, 1, 1]])
    metric = SegmentationMetric(num_labels=4)
    metric.add(prediction, reference, "a")
    result = metric.compute()
    # class 0: 3 of 4 found, 4 predicted; class 1: 2 of 3 found, 2 predicted; class 2: predicted only; class 3: absent
    assert result["dice"][:3] == pytest.approx([6 / 8, 4 / 5, 0])
    assert result["iou"][:3] == pytest.approx([3 / 5, 2 / 3, 0])
    assert math.isnan(result["dice"][3])
    assert math.isnan(result["iou"][3])
    assert result["mean_dice"] == pytest.approx((6 / 8 + 4 / 5 + 0) / 3)
    assert result["pixel_accuracy"] == pytest.approx(5 / 7)


def test_pixels_are_pooled_over_frames_and_videos_weigh_the_same():
    ones, zeros = np.ones((2, 2), int), np.zeros((2, 2), int)
    metric = SegmentationMetric(num_labels=2)
    metric.add(ones, ones, "a")
    metric.add(ones, zeros, "b")
    metric.add(ones, zeros, "b")
    result = metric.compute()
    assert result["dice"] == pytest.approx([0, 2 * 4 / (4 + 12)])
    assert result["video_dice"] == {"a": 1.0, "b": 0.0}
    assert result["mean_video_dice"] == 0.5


def test_a_wholly_ignored_frame_counts_nowhere():
    metric = SegmentationMetric(num_labels=2)
    metric.add(np.zeros((3, 3), int), np.full((3, 3), IGNORE), "a")
    result = metric.compute()
    assert math.isnan(result["mean_dice"])
    assert math.isnan(result["pixel_accuracy"])
    metric.add(np.zeros((3, 3), int), np.zeros((3, 3), int), "b")
    result = metric.compute()
    assert result["mean_dice"] == 1
    assert result["mean_video_dice"] == 1


def test_records_do_not_grow_with_the_image():
    metric = SegmentationMetric(num_labels=3)
    metric.add(np.zeros((300, 400), int), np.ones((300, 400), int), "a")
    record = metric.records[0]
    assert record.reference.shape == record.predicted.shape == record.intersection.shape == (3,)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\) and \(3, 2\)"),
        (np.zeros((1, 2, 3), int), np.zeros((1, 2, 3), int), r"shape \(H, W\)"),
        (np.full((2, 2), 7), np.zeros((2, 2), int), r"prediction holds the ids \[7\], valid are 0 to 2"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), r"reference holds the ids \[-1\]"),
        (np.full((2, 2), IGNORE), np.full((2, 2), IGNORE), r"prediction holds the ids \[255\]"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "prediction must hold integer class ids, found float64"),
    ],
)
def test_bad_frames_are_refused_with_their_place(prediction, reference, message):
    metric = SegmentationMetric(num_labels=3)
    metric.add(np.zeros((2, 2), int), np.zeros((2, 2), int), "video7")
    with pytest.raises(ValueError, match=message) as error:
        metric.add(prediction, reference, "video7")
    assert "Frame 1 (video 'video7')" in str(error.value)
    assert len(metric.records) == 1


def test_nothing_added_and_a_clashing_ignore_index():
    with pytest.raises(ValueError, match="No frame was added"):
        SegmentationMetric(num_labels=3).compute()
    with pytest.raises(ValueError, match="ignore_index 255"):
        SegmentationMetric(num_labels=256)
