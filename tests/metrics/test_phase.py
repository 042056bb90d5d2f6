import math
import statistics

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from surgenet_hf.metrics import CHOLEC80_TRANSITIONS, PhaseMetric
from surgenet_hf.metrics.sequences import edit_score

SKLEARN = {"precision": precision_score, "recall": recall_score, "f1": f1_score, "jaccard": jaccard_score}


def random_video(rng, num_labels, frames, noise=0.3, shift=15):
    """Return a prediction and its reference phases, not all of which occur.

    The prediction is noisy and late by less than `shift` frames.
    """
    reference = np.repeat(rng.integers(0, num_labels, frames), rng.integers(1, 60, frames))[:frames]
    prediction = np.roll(reference, rng.integers(0, shift))
    return np.where(rng.random(frames) < noise, rng.integers(0, num_labels, frames), prediction), reference


def filled(num_labels=7, videos=5, frames=400, seed=0, **settings):
    rng = np.random.default_rng(seed)
    metric, sequences = PhaseMetric(num_labels, **settings), {}
    for index in range(videos):
        sequences[f"v{index}"] = random_video(rng, num_labels, frames + index, noise=0.1 * index)
        metric.add(*sequences[f"v{index}"], f"v{index}")
    return metric, sequences


def sklearn_scores(name, prediction, reference, num_labels, annotated_only):
    """Return scikit-learn scores per phase, with NaN where the occurring phases leave a score undefined."""
    scores = SKLEARN[name](reference, prediction, labels=range(num_labels), average=None, zero_division=0)
    annotated, predicted = (np.isin(range(num_labels), ids) for ids in (reference, prediction))
    defined = {"precision": predicted, "recall": annotated}.get(name, annotated | predicted)
    return np.where(defined & (annotated | (not annotated_only)), scores, np.nan)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SKLEARN)
def test_agrees_with_scikit_learn(name, seed):
    metric, sequences = filled(num_labels=9, frames=120, seed=seed)
    result = metric.compute()
    for suffix, annotated_only in (("", False), ("_annotated", True)):
        expected = np.array([sklearn_scores(name, *pair, 9, annotated_only) for pair in sequences.values()])
        of_videos = np.nanmean(expected, axis=1)
        if name == "recall":
            suffix = ""
        assert result[f"macro_{name}{suffix}"] == pytest.approx(of_videos.mean())
        assert result[f"macro_{name}{suffix}_sd"] == pytest.approx(of_videos.std(ddof=1))
        if not annotated_only:
            for phase in range(9):
                values = expected[:, phase][~np.isnan(expected[:, phase])].tolist()
                found = result["per_class"][phase]
                mean = statistics.mean(values) if values else math.nan
                deviation = statistics.stdev(values) if len(values) > 1 else math.nan
                assert found[name] == pytest.approx(mean, nan_ok=True)
                assert found[f"{name}_sd"] == pytest.approx(deviation, nan_ok=True)
    prediction, reference = (np.concatenate(pair) for pair in zip(*sequences.values(), strict=True))
    expected = sklearn_scores(name, prediction, reference, 9, False)
    assert result[f"framewise_{name}"] == pytest.approx(np.nanmean(expected))
    np.testing.assert_allclose([result["per_class"][p][f"framewise_{name}"] for p in range(9)], expected)


def test_accuracy_of_videos_and_of_frames():
    metric, sequences = filled()
    result = metric.compute()
    accuracies = [accuracy_score(reference, prediction) for prediction, reference in sequences.values()]
    assert result["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1))
    prediction, reference = (np.concatenate(pair) for pair in zip(*sequences.values(), strict=True))
    assert result["framewise_accuracy"] == pytest.approx(accuracy_score(reference, prediction))
    assert result["frames"] == len(reference)
    assert [video["accuracy"] for video in result["per_video"].values()] == pytest.approx(accuracies)


def test_absent_phases_by_hand():
    """Test phase 2 predicted but not annotated, phase 3 annotated but not predicted, and phase 4 neither."""
    metric = PhaseMetric(5, relaxed_seconds=0)
    metric.add(np.array([0, 0, 1, 2, 1, 1]), np.array([0, 0, 1, 1, 3, 1]), "a")
    result = metric.compute()
    assert result["macro_precision"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # phases 0, 1, 2
    assert result["macro_precision_annotated"] == pytest.approx((1 + 2 / 3) / 2)  # phases 0, 1
    assert result["macro_recall"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # phases 0, 1, 3
    assert result["macro_jaccard"] == pytest.approx((1 + 2 / 4 + 0 + 0) / 4)  # phases 0, 1, 2, 3
    assert result["macro_jaccard_annotated"] == pytest.approx((1 + 2 / 4 + 0) / 3)  # phases 0, 1, 3
    assert math.isnan(result["per_class"][2]["recall"])
    assert math.isnan(result["per_class"][3]["precision"])
    assert all(math.isnan(result["per_class"][4][name]) for name in SKLEARN)
    assert math.isnan(result["accuracy_sd"])  # a single video has no standard deviation
    occurs = [(c["annotated_videos"], c["predicted_videos"]) for c in result["per_class"].values()]
    assert occurs == [(1, 1), (1, 1), (0, 1), (1, 0), (0, 0)]


def relaxed_by_frames(prediction, reference, tolerance, num_labels, transitions):
    """Compute relaxed scores frame by frame with sets."""
    right = set()
    for t, (predicted, annotated) in enumerate(zip(prediction, reference, strict=True)):
        start = next(s for s in range(t, -1, -1) if s == 0 or reference[s - 1] != annotated)
        end = next(e for e in range(t, len(reference)) if e + 1 == len(reference) or reference[e + 1] != annotated)
        late, early = ({reference[start - 1]} if start else set()), set(reference[end + 1 : end + 2])
        if transitions:
            late, early = transitions[annotated]
        accepted = (t - start < tolerance and predicted in late) or (end - t < tolerance and predicted in early)
        if predicted == annotated or accepted:
            right.add(t)
    scores = np.full((3, num_labels), np.nan)
    for phase in set(reference):
        annotated, predicted = (set(np.flatnonzero(ids == phase)) for ids in (reference, prediction))
        hits = len(right & (annotated | predicted))
        scores[1:, phase] = min(hits / len(annotated), 1), hits / len(annotated | predicted)
        if predicted:
            scores[0, phase] = min(hits / len(predicted), 1)
    return len(right) / len(reference), scores


@pytest.mark.parametrize("transitions", [None, CHOLEC80_TRANSITIONS])
def test_relaxed_boundaries_agree_with_a_loop_over_frames(transitions):
    metric, sequences = filled(frames=200, relaxed_seconds=4, frames_per_second=2.5, transitions=transitions)
    expected = [relaxed_by_frames(*pair, 10, 7, transitions) for pair in sequences.values()]
    result = metric.compute()
    assert result["relaxed_accuracy"] == pytest.approx(np.mean([accuracy for accuracy, _ in expected]))
    of_phases = np.nanmean([scores for _, scores in expected], axis=0)
    for name, values in zip(("precision", "recall", "jaccard"), of_phases, strict=True):
        assert result[f"relaxed_{name}"] == pytest.approx(np.nanmean(values))
        np.testing.assert_allclose([result["per_class"][p][f"relaxed_{name}"] for p in range(7)], values)
    assert result["relaxed_accuracy"] > result["accuracy"]


def test_relaxed_boundaries_by_hand():
    reference = np.repeat([0, 1, 3], 30)
    metric = PhaseMetric(4)
    late = np.repeat([0, 1, 3], [42, 30, 18])  # each phase is 12 s late; 10 of 12 frames are accepted
    metric.add(late, reference, "late")
    assert metric.compute()["relaxed_accuracy"] == pytest.approx(86 / 90)
    early = np.repeat([0, 1, 3], [20, 30, 40])  # each phase is 10 s early
    metric.add(early, reference, "early")
    assert metric.compute(["early"])["relaxed_accuracy"] == 1
    metric.add(np.full(90, 2), reference, "never")  # never a neighboring phase
    assert metric.compute(["never"])["relaxed_accuracy"] == 0
    short = np.array([0] * 20 + [1] * 4 + [3] * 20)
    metric.add(np.repeat([0, 3], [24, 20]), short, "short")  # all of a phase shorter than the border is relaxed
    assert metric.compute(["short"])["relaxed_accuracy"] == 1


def test_edit_score_agrees_with_torchmetrics():
    edit_distance = pytest.importorskip("torchmetrics.functional.text").edit_distance
    rng = np.random.default_rng(0)
    for frames in (1, 2, 17, 200):
        for _ in range(5):
            prediction, reference = (np.repeat(rng.integers(0, 4, frames), 2) for _ in range(2))
            words = [
                "".join(str(p) for i, p in enumerate(s) if not i or s[i - 1] != p) for s in (prediction, reference)
            ]
            distance = edit_distance(*words, reduction="sum").item()
            assert edit_score(prediction, reference) == pytest.approx(1 - distance / max(map(len, words)))


def segment_sets(labels):
    found = []
    for frame, label in enumerate(labels):
        if not frame or labels[frame - 1] != label:
            found.append((label, set()))
        found[-1][1].add(frame)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_segmental_f1_agrees_with_sets_of_frames(seed):
    metric, sequences = filled(num_labels=4, frames=300, seed=seed)
    result = metric.compute()
    for overlap in (10, 25, 50):
        hits = total = 0
        for prediction, reference in sequences.values():
            annotated, free = segment_sets(reference), set(range(len(segment_sets(reference))))
            for label, frames in segment_sets(prediction):
                ious = [len(frames & o) / len(frames | o) if name == label else 0 for name, o in annotated]
                best = int(np.argmax(ious))
                if ious[best] >= overlap / 100 and best in free:
                    free.remove(best)
                    hits += 1
            total += len(segment_sets(prediction)) + len(annotated)
        assert result[f"f1@{overlap}"] == pytest.approx(2 * hits / total)
    assert result["edit_score"] == pytest.approx(np.mean([edit_score(*pair) for pair in sequences.values()]))


def test_segments_by_hand():
    reference = np.repeat([0, 1, 2], [10, 10, 10])
    metric = PhaseMetric(3)
    metric.add(np.repeat([0, 1, 0, 1, 2], [10, 3, 1, 6, 10]), reference, "split")
    result = metric.compute()
    assert result["edit_score"] == pytest.approx(1 - 2 / 5)
    assert result["f1@10"] == result["f1@25"] == pytest.approx(2 * 3 / (5 + 3))  # the first segment of phase 1 matches
    assert result["f1@50"] == pytest.approx(2 * 3 / (5 + 3))  # at 50 % only the second segment matches
    metric.add(np.full(30, 2), reference, "one")
    assert metric.compute(["one"])["f1@50"] == 0
    assert metric.compute(["one"])["f1@25"] == pytest.approx(2 * 1 / (1 + 3))
    assert metric.compute()["f1@25"] == pytest.approx(2 * 4 / 12)


def test_videos_of_one_frame_and_of_one_phase():
    metric = PhaseMetric(3)
    metric.add(np.array([1]), np.array([1]), "right")
    result = metric.compute()
    assert {result[n] for n in ("accuracy", "macro_f1", "relaxed_jaccard", "edit_score", "f1@50")} == {1}
    metric.add(np.array([2]), np.array([1]), "wrong")
    result = metric.compute(["wrong"])
    assert {result[n] for n in ("accuracy", "macro_f1", "relaxed_jaccard", "edit_score", "f1@10")} == {0}
    assert math.isnan(result["relaxed_precision"])
    metric.add(np.zeros(50, np.uint8), np.zeros(50, np.uint8), "one phase")
    assert metric.compute(["one phase"])["macro_jaccard"] == 1


def test_memory_does_not_depend_on_the_length():
    metric, _ = filled(videos=1, frames=3000)
    assert metric.records[0].confusion.shape == (7, 7)
    assert metric.records[0].segments.shape == (3, 3)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([], [], r"at least one frame, found \(0,\)"),
        ([0, 1], [0], r"found \(2,\) and \(1,\)"),
        ([[0]], [[0]], r"shape \(T,\)"),
        ([7], [0], r"Video 'b': prediction contains the ids \[7\]; valid ids are 0 to 6"),
        ([0], [-1], r"reference contains the ids \[-1\]"),
        ([0.5], [0], "integer class ids"),
    ],
)
def test_bad_videos_are_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        PhaseMetric(7).add(np.array(prediction), np.array(reference), "b")


def test_a_video_is_added_once():
    metric, sequences = filled(videos=2)
    with pytest.raises(ValueError, match="'v1' was already added"):
        metric.add(*sequences["v1"], "v1")


def test_the_published_script_applies_the_mask_of_the_last_frames_to_the_first():
    reference = np.repeat([0, 1, 2], 20)
    prediction = reference.copy()
    prediction[15:20] = 1  # 5 frames early, thus accepted; the published script instead accepts the first 5 of phase 0
    prediction[20:25] = 3  # wrong; the published script accepts it, since the last frames of phase 1 are also early
    prediction[35:40] = 2
    metric = PhaseMetric(4, relaxed_seconds=5)
    metric.add(prediction, reference, "a")
    result = metric.compute()
    assert result["relaxed_accuracy"] == pytest.approx(55 / 60)
    assert result["relaxed_accuracy_published"] == pytest.approx(50 / 60)
    phases = result["per_class"]
    # 25 frames are annotated or predicted as phase 1. Corrected, 5 + 15 of them are right or accepted (not the 5 of
    # phase 3). As published, 5 + 10 are (neither those of phase 0 nor the last of phase 1).
    assert phases[1]["relaxed_jaccard"] == pytest.approx(20 / 25)
    assert phases[1]["relaxed_jaccard_published"] == pytest.approx(15 / 25)
    assert phases[0]["relaxed_recall"] == 1
    assert phases[0]["relaxed_recall_published"] == pytest.approx(15 / 20)
    kept = result["per_video"]["a"]["per_class"][1]
    assert (kept["relaxed_hits"], kept["relaxed_hits_published"]) == (20, 15)


def test_the_published_script_cuts_the_infinite_precision_of_a_phase_that_is_not_predicted():
    reference = np.repeat([0, 1, 0], [10, 4, 10])
    metric = PhaseMetric(2, relaxed_seconds=5)
    metric.add(np.zeros(24, int), reference, "a")
    phase = metric.compute()["per_class"][1]
    assert math.isnan(phase["relaxed_precision"])
    assert phase["relaxed_precision_published"] == 1


def test_segmental_f1_pooled_and_as_a_mean_over_videos():
    metric = PhaseMetric(3)
    metric.add(np.repeat([0, 1, 2], 10), np.repeat([0, 1, 2], 10), "a")
    metric.add(np.tile([0, 1], 15), np.repeat([0, 1, 2], 10), "b")  # 30 segments against 3
    result = metric.compute()
    # two segments have an IoU of 0.1, with phases 0 and 1
    assert result["per_video"]["b"]["segments@10"] == [2, 30, 3]
    of_video = 2 * 2 / 33
    assert result["video_f1@10"] == pytest.approx((1 + of_video) / 2)
    assert result["f1@10"] == pytest.approx(2 * (3 + 2) / (3 + 3 + 30 + 3))
    assert result["per_video"]["a"]["segments@10"] == [3, 3, 3]
