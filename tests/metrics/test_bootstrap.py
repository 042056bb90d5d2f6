"""What all metrics share: samples of videos, merging over processes, and the bootstrap."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from surgenet_hf.metrics import MultiLabelMetric, PhaseMetric, SegmentationMetric, bootstrap, confidence_interval

VIDEOS = [f"v{i}" for i in range(6)]


def segmentation(seed=0):
    rng = np.random.default_rng(seed)
    metric = SegmentationMetric(3)
    for index in range(25):
        metric.add(*rng.integers(0, rng.integers(1, 4), (2, 9, 11)), VIDEOS[index % 6])
    return metric


def phase(seed=0):
    rng = np.random.default_rng(seed)
    metric = PhaseMetric(5)
    for video in VIDEOS:
        metric.add(*rng.integers(0, rng.integers(2, 6), (2, rng.integers(1, 80))), video)
    return metric


def multilabel(seed=0):
    rng = np.random.default_rng(seed)
    metric = MultiLabelMetric(2)
    metric.add(rng.random((90, 2)).round(2), rng.random((90, 2)) < [0.5, 0.05], rng.choice(VIDEOS, 90).tolist())
    return metric


METRICS = pytest.mark.parametrize("build", [segmentation, phase, multilabel])


def empty_like(metric):
    return type(metric)(metric.num_labels)


def floats(figures):
    return {name: value for name, value in figures.items() if isinstance(value, float)}


@METRICS
def test_a_video_drawn_twice_is_as_two_videos(build):
    """Brute force: a new metric with the records of every drawn video under a name of its own."""
    metric = build()
    for seed in range(5):
        sample = np.random.default_rng(seed).choice(metric.videos, 6).tolist()
        copies = empty_like(metric)
        for copy, video in enumerate(sample):
            drawn = [record for record in metric.records if record.video == video]
            copies.merge([dataclasses.replace(record, video=f"{copy} {video}") for record in drawn])
        found, expected = metric.compute(sample), copies.compute()
        assert floats(found) == pytest.approx(floats(expected), nan_ok=True, abs=1e-12)
        for index, values in expected["per_class"].items():
            assert found["per_class"][index] == pytest.approx(values, nan_ok=True, abs=1e-12)
        assert sorted(found["per_video"]) == sorted(set(sample))


@METRICS
def test_two_processes_give_what_one_gives(build):
    metric = build()
    records = pickle.loads(pickle.dumps(metric.records))
    halves = [empty_like(metric), empty_like(metric)]
    halves[0].merge(records[1::2])
    halves[1].merge(records[::2])
    halves[0].compute()  # what was computed before must not linger
    halves[0].merge(halves[1])
    np.testing.assert_equal(halves[0].compute(), metric.compute())  # to the bit
    np.testing.assert_equal(bootstrap(halves[0], draws=20), bootstrap(metric, draws=20))


@METRICS
def test_bootstrap_is_reproducible_and_covers_the_estimate(build):
    metric = build()
    first, again, other = (bootstrap(metric, draws=200, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_equal(first, again)
    assert set(first) == set(floats(metric.compute()))
    for name, estimate in floats(metric.compute()).items():
        assert first[name].shape == (200,)
        if not name.endswith("_sd"):
            low, high = confidence_interval(first[name], 0.99)
            assert low <= estimate <= high
    assert any(not np.array_equal(first[name], other[name], equal_nan=True) for name in first)


def test_two_models_are_paired_draw_by_draw():
    """Where one model is right the other is wrong, so that accuracies add up to 1 in each draw."""
    rng = np.random.default_rng(0)
    first, second = PhaseMetric(2), PhaseMetric(2)
    sequences = {video: rng.integers(0, 2, (2, 10)) for video in VIDEOS}
    for video in VIDEOS:
        first.add(*sequences[video], video)
    for video in reversed(VIDEOS):
        second.add(1 - sequences[video][0], sequences[video][1], video)
    pair = [bootstrap(metric, draws=100)["accuracy"] for metric in (first, second)]
    np.testing.assert_allclose(pair[0] + pair[1], 1)
    assert pair[0].std() > 0


def test_one_video_has_no_spread():
    metric = PhaseMetric(2)
    metric.add(np.array([0, 1, 1]), np.array([0, 0, 1]), "only")
    values = bootstrap(metric, draws=10)
    assert confidence_interval(values["accuracy"]) == pytest.approx((2 / 3, 2 / 3))
    assert all(math.isnan(bound) for bound in confidence_interval(values["accuracy_sd"]))


def test_confidence_interval_is_of_percentiles():
    assert confidence_interval(np.arange(1001)) == pytest.approx((25, 975))
    assert confidence_interval(np.arange(1001), level=0.5) == pytest.approx((250, 750))
    assert confidence_interval([math.nan, 2, math.nan]) == (2, 2)
    assert all(math.isnan(bound) for bound in confidence_interval([math.nan]))


@METRICS
def test_refusals(build):
    metric = build()
    assert metric.videos == VIDEOS
    with pytest.raises(ValueError, match=r"videos \['x'\]: there are v0, v1"):
        metric.compute(["v0", "x"])
    with pytest.raises(ValueError, match="No figures"):
        metric.compute([])
    with pytest.raises(ValueError, match="No frame was added"):
        empty_like(metric).compute()
    with pytest.raises(ValueError, match="No frame was added"):
        bootstrap(empty_like(metric))
    with pytest.raises(ValueError, match="can be merged"):
        type(metric)(metric.num_labels + 1).merge(metric)
    with pytest.raises(ValueError, match=r"[Ee]xpected a record"):
        type(metric)(metric.num_labels + 1).merge(metric.records)
    with pytest.raises(ValueError, match="Expected a "):
        metric.merge(["x"])
