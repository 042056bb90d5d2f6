"""Tests of behavior that all metrics share: samples of videos and merging across processes."""

import dataclasses
import pickle

import numpy as np
import pytest

from surgenet_hf.metrics import MultiLabelMetric, PhaseMetric, SegmentationMetric

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
    """Test that a video drawn twice counts as two videos.

    The reference is a new metric in which every drawn video has its own name.
    """
    metric = build()
    for seed in range(5):
        sample = np.random.default_rng(seed).choice(metric.videos, 6).tolist()
        copies = empty_like(metric)
        for copy, video in enumerate(sample):
            drawn = [record for record in metric.records if record.video == video]
            copies.records += [dataclasses.replace(record, video=f"{copy} {video}") for record in drawn]
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
    halves[0].records += records[1::2]
    halves[1].records += records[::2]
    halves[0].compute()  # earlier results must not persist
    halves[0].records += halves[1].records
    np.testing.assert_equal(halves[0].compute(), metric.compute())  # exactly equal
    weights = np.random.default_rng(0).integers(0, 3, (20, 6))
    np.testing.assert_equal(halves[0].resample(weights), metric.resample(weights))


@METRICS
def test_samples_at_once_give_what_each_gives(build):
    metric = build()
    weights = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, 8)
    found = metric.resample(weights)
    for index, sample in enumerate(weights):
        expected = floats(metric.compute([v for v, n in zip(metric.videos, sample, strict=True) for _ in range(n)]))
        expected = {name: value for name, value in expected.items() if not name.endswith("_sd")}
        assert {name: values[index] for name, values in found.items()} == pytest.approx(expected, nan_ok=True)


@METRICS
def test_a_metric_that_each_video_has_is_the_mean_over_videos(build):
    metric = build()
    computed = metric.compute()
    of_videos = list(computed["per_video"].values())
    for name in floats(computed).keys() & of_videos[0].keys():
        assert computed[name] == pytest.approx(np.nanmean([values[name] for values in of_videos]))


@METRICS
def test_refusals(build):
    metric = build()
    assert metric.videos == VIDEOS
    with pytest.raises(ValueError, match=r"videos \['x'\]; the videos are v0, v1"):
        metric.compute(["v0", "x"])
    with pytest.raises(ValueError, match="No metrics"):
        metric.compute([])
    with pytest.raises(ValueError, match="No frames were added"):
        empty_like(metric).compute()
