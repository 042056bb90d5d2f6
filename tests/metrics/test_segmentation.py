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
    np.testing.assert_allclose(_column(result, "dice"), f1_score(references, predictions, average=None))
    np.testing.assert_allclose(_column(result, "iou"), jaccard_score(references, predictions, average=None))
    assert result["pixel_accuracy"] == pytest.approx(accuracy_score(references, predictions))
    assert result["pooled_dice"] == pytest.approx(f1_score(references, predictions, average="macro"))
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
    found = {video: values["video_dice"] for video, values in result["per_video"].items()}
    assert found == pytest.approx(expected, abs=1e-6)
    assert result["video_dice"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_worked_by_hand():
    reference = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORE]])
    prediction = np.array([[0, 0, 1, 0], [0, 2, 1, 1]])
    metric = SegmentationMetric(num_labels=4)
    metric.add(prediction, reference, "a")
    result = metric.compute()
    # class 0: 3 of 4 found, 4 predicted; class 1: 2 of 3 found, 2 predicted; class 2: predicted only; class 3: absent
    dice, iou = _column(result, "dice"), _column(result, "iou")
    assert dice[:3] == pytest.approx([6 / 8, 4 / 5, 0])
    assert iou[:3] == pytest.approx([3 / 5, 2 / 3, 0])
    assert math.isnan(dice[3])
    assert math.isnan(iou[3])
    assert result["pooled_dice"] == pytest.approx((6 / 8 + 4 / 5 + 0) / 3)
    assert result["pixel_accuracy"] == pytest.approx(5 / 7)
    # class 2 is absent from the reference of the video, so the headline metric omits it and its pixel is spurious
    assert result["video_dice"] == pytest.approx((6 / 8 + 4 / 5) / 2)
    assert result["surgenetdino_dice"] == pytest.approx((6 / 8 + 4 / 5 + 0) / 3)
    assert result["per_class"][2]["spurious_pixels"] == 1
    assert [result["per_class"][c]["videos"] for c in range(4)] == [1, 1, 0, 0]


def test_conventions_worked_by_hand():
    """Test the conventions on two videos of two frames and one frame.

    Class 0 is the background, and class 2 is absent from all references of video b.
    """
    frames = {
        "a": [([[0, 1, 1, 2]], [[0, 1, 2, 2]]), ([[0, 0, 0, 0]], [[0, 0, 1, 1]])],
        "b": [([[0, 1, 2, 2]], [[0, 1, 1, 0]])],
    }
    metric = SegmentationMetric(num_labels=3, background_id=0)
    for video, pairs in frames.items():
        for prediction, reference in pairs:
            metric.add(np.array(prediction), np.array(reference), video)
    result = metric.compute()
    # pixels of (reference, predicted, intersection): a 1: (3, 2, 1), 2: (2, 1, 1); b 1: (2, 1, 1), 2: (0, 2, 0)
    assert result["video_dice"] == pytest.approx(((2 / 5 + 2 / 3) / 2 + 2 / 3) / 2)
    assert result["video_iou"] == pytest.approx(((1 / 4 + 1 / 2) / 2 + 1 / 2) / 2)
    # a 0: (3, 5, 3), b 0: (2, 1, 1)
    assert result["video_dice_with_background"] == pytest.approx(
        ((6 / 8 + 2 / 5 + 2 / 3) / 3 + (2 / 3 + 2 / 3) / 2) / 2
    )
    assert result["surgenetdino_dice"] == pytest.approx(((2 / 5 + 2 / 3) / 2 + (2 / 3 + 0) / 2) / 2)
    assert result["pooled_dice"] == pytest.approx((4 / 8 + 2 / 5) / 2)
    # per frame, class 1: 2 / 3, 0 (missed), 2 / 3; class 2: 2 / 3, absent, 0 (spurious)
    assert result["frame_dice"] == pytest.approx((((2 / 3 + 2 / 3) / 2 + 0) / 2 + 2 / 3) / 2)
    assert result["endovit_dice"] == pytest.approx(((2 / 3 + 0 + 2 / 3) / 3 + (2 / 3 + 0) / 2) / 2)
    assert result["atlas_dice"] == pytest.approx(((2 / 3 + 0 + 2 / 3) / 3 + 2 / 3) / 2)
    assert result["endovit_dice_with_background"] == pytest.approx(
        ((1 + 4 / 6 + 2 / 3) / 3 + (2 / 3 + 0 + 2 / 3) / 3 + (2 / 3 + 0) / 2) / 3
    )
    first, second = (result["per_class"][c] for c in (1, 2))
    assert [first[name] for name in ("reference_frames", "missed_frames", "spurious_frames")] == [3, 1, 0]
    assert [second[name] for name in ("reference_frames", "missed_frames", "spurious_frames")] == [1, 0, 1]
    assert (first["spurious_pixels"], second["spurious_pixels"]) == (0, 2)
    assert second["videos"] == 1
    # every convention follows from the counts per video and class
    videos = result["per_video"].values()
    for c, expected in ((1, 4 / 8), (2, 2 / 5)):
        kept = [video["per_class"][c] for video in videos]
        total = {name: sum(values[name] for values in kept) for name in kept[0] if name.endswith("_pixels")}
        dice = 2 * total["intersection_pixels"] / (total["reference_pixels"] + total["predicted_pixels"])
        assert dice == pytest.approx(expected) == result["per_class"][c]["dice"]


def test_a_video_without_foreground_has_no_value_and_is_named():
    metric = SegmentationMetric(num_labels=2, background_id=0)
    reference = np.array([[0, 1]])
    metric.add(reference, reference, "a")
    metric.add(np.array([[0, 0]]), reference, "b")
    for prediction in ([[0, 0]], [[0, 1]]):
        metric.add(np.array(prediction), np.array([[0, 0]]), "black")
    result = metric.compute()
    assert result["video_dice"] == pytest.approx(0.5)
    assert result["videos_without_foreground"] == ["black"]
    assert result["background_frames"] == 2
    assert math.isnan(result["per_video"]["black"]["video_dice"])
    assert result["per_class"][1]["spurious_pixels"] == 1
    assert result["video_assd"] == pytest.approx((0 + np.hypot(1, 2)) / 2)
    assert result["video_assd_found"] == 0


def test_all_classes_are_foreground_without_a_background():
    metric = SegmentationMetric(num_labels=2)
    metric.add(np.array([[0, 1]]), np.array([[0, 0]]), "a")
    result = metric.compute()
    assert not [name for name in result if "background" in name and name not in ("background_frames",)]
    assert result["video_dice"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="background_id 2 is not the id of one of the 2 classes"):
        SegmentationMetric(num_labels=2, background_id=2)


def _column(result, name):
    return [values[name] for values in result["per_class"].values()]


def test_pixels_are_pooled_over_frames_and_videos_weigh_the_same():
    ones, zeros = np.ones((2, 2), int), np.zeros((2, 2), int)
    metric = SegmentationMetric(num_labels=2)
    metric.add(ones, ones, "a")
    metric.add(ones, zeros, "b")
    metric.add(ones, zeros, "b")
    result = metric.compute()
    assert _column(result, "dice") == pytest.approx([0, 2 * 4 / (4 + 12)])
    assert {video: values["video_dice"] for video, values in result["per_video"].items()} == {"a": 1.0, "b": 0.0}
    assert result["video_dice"] == 0.5


def test_a_wholly_ignored_frame_counts_nowhere():
    metric = SegmentationMetric(num_labels=2)
    metric.add(np.zeros((3, 3), int), np.full((3, 3), IGNORE), "a")
    result = metric.compute()
    assert math.isnan(result["pooled_dice"])
    assert math.isnan(result["pixel_accuracy"])
    metric.add(np.zeros((3, 3), int), np.zeros((3, 3), int), "b")
    result = metric.compute()
    assert result["pooled_dice"] == 1
    assert result["video_dice"] == 1


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
        (np.full((2, 2), 7), np.zeros((2, 2), int), r"prediction contains the ids \[7\]; valid ids are 0 to 2"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), r"reference contains the ids \[-1\]"),
        (np.full((2, 2), IGNORE), np.full((2, 2), IGNORE), r"prediction contains the ids \[255\]"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "prediction must contain integer class ids, found float64"),
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
    with pytest.raises(ValueError, match="No frames were added"):
        SegmentationMetric(num_labels=3).compute()
    with pytest.raises(ValueError, match="ignore_index 255"):
        SegmentationMetric(num_labels=256)


def test_frame_means_by_hand():
    """Test means over the classes of a frame's reference, then frames, then videos.

    A missed class costs the diagonal.
    """
    right = np.array([[0, 0, 1, 1]] * 3)
    all_zero = np.zeros((3, 4), int)
    metric = SegmentationMetric(num_labels=3)
    metric.add(right, right, "a")
    metric.add(all_zero, right, "a")  # class 1 missed; class 0: surface of columns 0-3 against columns 0-1
    metric.add(right, all_zero, "b")  # class 1 spurious and not part of these means
    result = metric.compute()
    # Dice of class 0 is 2 * 6 / (12 + 6) = 2 / 3 in both wrong frames, IoU 1 / 2
    assert result["frame_dice"] == pytest.approx(((1 + (2 / 3 + 0) / 2) / 2 + 2 / 3) / 2)
    assert result["frame_iou"] == pytest.approx(((1 + (1 / 2 + 0) / 2) / 2 + 1 / 2) / 2)
    # class 0: the whole frame (10 surface pixels: all but the two inner ones) against its left half (6 surface
    # pixels). From whole to half, 3 pixels are at distance 2, 2 at distance 1, and 5 at 0. From half to whole, 1 (an
    # inner pixel) is at distance 1, and 5 at 0.
    assd = (3 * 2 + 2 * 1 + 1) / 16
    assert result["per_class"][0]["video_assd"] == pytest.approx((assd / 2 + assd) / 2)
    assert result["per_class"][1]["video_assd"] == result["per_class"][1]["video_hd95"] == 5 / 2  # (0 + 5) / 2
    assert result["per_class"][1]["video_assd_found"] == 0
    assert result["video_assd"] == pytest.approx(((assd / 2 + 5 / 2) / 2 + assd) / 2)
    assert result["video_assd_found"] == pytest.approx(((assd / 2 + 0) / 2 + assd) / 2)
    assert math.isnan(result["per_class"][2]["video_assd"])
    names = ("reference_frames", "missed_frames", "spurious_frames")
    counts = [tuple(result["per_class"][c][n] for n in names) for c in range(3)]
    assert counts == [(3, 0, 0), (2, 1, 1), (0, 0, 0)]
    assert result["per_video"]["b"]["video_assd"] == pytest.approx(assd)
    assert result["per_video"]["b"]["frames"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI warns about itself
def test_distances_agree_with_monai_where_a_class_is_on_both_sides():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    for seed, (prediction, reference, video) in enumerate(blobs(frames=4)):
        metric = SegmentationMetric(num_labels=4)
        metric.add(prediction, reference, video)
        found = metric.compute()["per_class"]
        one_hot = [
            torch.from_numpy(np.stack([ids == c for c in range(4)]))[None].float() for ids in (prediction, reference)
        ]
        for name, compute, options in (
            ("assd", monai.compute_average_surface_distance, {"symmetric": True}),
            ("hd95", monai.compute_hausdorff_distance, {"percentile": 95}),
        ):
            expected = compute(*one_hot, include_background=True, **options)[0].numpy()
            both = [c for c in range(4) if one_hot[0][0, c].any() and one_hot[1][0, c].any()]
            assert len(both) > 2, seed
            np.testing.assert_allclose([found[c][f"video_{name}"] for c in both], expected[both], rtol=1e-4, atol=1e-5)


def blobs(frames):
    rng = np.random.default_rng(5)
    for index in range(frames):
        rows, columns = np.mgrid[:40, :60]
        reference, prediction = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
        for c in (1, 2, 3):
            y, x, radius = rng.integers(0, 40), rng.integers(0, 60), rng.integers(4, 14)
            reference[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = c
            prediction[(rows - y - 2) ** 2 + (columns - x + 3) ** 2 < (radius + 1) ** 2] = c
        prediction[rng.random(prediction.shape) < 0.02 * index] = 0
        yield prediction, reference, "a"


def test_ignored_pixels_form_no_edge():
    """Test that ignored pixels form no edge.

    Whether the class continues under the ignored strip is unknown, so its border there is no edge.
    """
    reference = np.zeros((9, 9), int)
    reference[2:5, 2:7] = 1
    reference[5] = IGNORE
    prediction = reference.copy()
    prediction[4, 2:7] = 0  # one row too short, next to the strip
    metric = SegmentationMetric(num_labels=2, background_id=0)
    metric.add(np.where(prediction == IGNORE, 0, prediction), reference)
    result = metric.compute()
    assert result["video_assd"] == pytest.approx(np.mean(_brute_force(reference, prediction)))


def _brute_force(reference, prediction):
    counted = reference != IGNORE

    def outline(ids):
        found = []
        for y, x in np.argwhere((ids == 1) & counted):
            neighbors = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [n for n in neighbors if 0 <= n[0] < ids.shape[0] and 0 <= n[1] < ids.shape[1]]
            if len(inside) < 4 or any(counted[n] and ids[n] != 1 for n in inside):
                found.append((y, x))
        return np.array(found)

    sides = outline(prediction), outline(reference)
    table = np.linalg.norm(sides[0][:, None] - sides[1][None], axis=-1)
    return np.concatenate([table.min(1), table.min(0)])


def test_ignored_pixels_have_no_say_in_distances():
    reference = np.zeros((8, 8), int)
    reference[2:5, 2:5] = 1
    reference[6:] = IGNORE
    for ids in (0, 1):
        prediction = np.where(reference == 1, 1, 0)
        prediction[6:] = ids
        metric = SegmentationMetric(num_labels=2)
        metric.add(prediction, reference)
        assert metric.compute()["video_hd95"] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (0, 5)])
@pytest.mark.parametrize("ignored", [False, True])
def test_degenerate_frames(shape, ignored):
    metric = SegmentationMetric(num_labels=2)
    metric.add(np.zeros(shape, np.uint8), np.full(shape, IGNORE if ignored else 0, np.uint8), "a")
    result = metric.compute()
    nothing = ignored or 0 in shape
    assert result["video_assd"] == pytest.approx(math.nan if nothing else 0, nan_ok=True)
    assert result["frame_dice"] == pytest.approx(math.nan if nothing else 1, nan_ok=True)
    assert result["frames"] == 1


def test_without_distances_there_are_none():
    metric = SegmentationMetric(num_labels=2, distances=False)
    metric.add(np.zeros((2, 2), int), np.zeros((2, 2), int), "a")
    result = metric.compute()
    assert "video_assd" not in result
    assert "video_assd" not in result["per_class"][0]
    assert metric.records[0].distances is None
