import itertools
import math

import numpy as np
import pytest
from scipy import stats

from surgenet_hf.evaluation.statistics import (
    BOOTSTRAP,
    STUDENT,
    bootstrap_interval,
    cannot_be_significant,
    holm,
    interval_warning,
    mean_draws,
    metric_intervals,
    resample_weights,
    sign_flip_test,
    student_interval,
)
from surgenet_hf.metrics import MultiLabelMetric, PhaseMetric, SegmentationMetric


def test_students_interval_is_scipys():
    values = [0.71, 0.64, math.nan, 0.8, 0.55, 0.69]
    found = student_interval(values)
    kept = [value for value in values if not math.isnan(value)]
    expected = stats.t.interval(0.95, 4, np.mean(kept), stats.sem(kept))
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.videos, found.method) == (5, STUDENT)


def test_intervals_stay_in_the_range_of_the_metric():
    found = student_interval([1, 1, 1, 1, 0.2], bounds=(0, 1))
    assert found.high == 1
    assert found.low > 0
    assert bootstrap_interval(np.linspace(-0.3, 1.4, 1000), 6, bounds=(0, 1)).low == 0


def test_expanded_percentiles():
    """Test expanded percentiles.

    For n = 10 and t = 2.262, Phi(-sqrt(10 / 9) t) is 0.00855 instead of 0.025.
    """
    draws = np.arange(100_001) / 100_000
    found = bootstrap_interval(draws, 10)
    assert found.low == pytest.approx(stats.norm.cdf(-math.sqrt(10 / 9) * 2.2621571), abs=1e-5)
    assert found.low == pytest.approx(0.00855, abs=1e-4)
    assert found.high == pytest.approx(1 - found.low, abs=2e-5)
    many = bootstrap_interval(draws, 10_000)
    assert (many.low, many.high) == pytest.approx((0.025, 0.975), abs=1e-4)


@pytest.mark.parametrize(("videos", "warning"), [(5, "rough"), (9, "rough"), (10, "few videos"), (20, "")])
def test_the_number_of_videos_decides_what_is_said(videos, warning):
    assert interval_warning(videos) == warning


def test_no_interval_below_five_videos():
    assert student_interval([0.1, 0.2, 0.3, 0.4]) is None
    assert student_interval([0.1, 0.2, 0.3, 0.4, math.nan]) is None
    assert bootstrap_interval([0.1, 0.2, 0.3], 4) is None
    assert bootstrap_interval([math.nan], 8) is None


def phases(videos):
    rng = np.random.default_rng(0)
    metric = PhaseMetric(3)
    for index in range(videos):
        metric.add(*rng.integers(0, 3, (2, 30)), f"v{index:02}")
    return metric


def test_means_over_videos_have_students_interval_and_the_others_the_bootstraps():
    metric = phases(8)
    found, draws = metric_intervals(metric, resamples=500)
    computed = metric.compute()
    assert found["accuracy"].method == found["video_f1@50"].method == STUDENT
    assert found["framewise_f1"].method == found["f1@50"].method == found["relaxed_jaccard"].method == BOOTSTRAP
    assert "accuracy" not in draws
    assert not [name for name in found if name.endswith("_sd")]
    for name, interval in found.items():
        assert 0 <= interval.low <= computed[name] <= interval.high <= 1
        assert interval.videos == 8
    again, _ = metric_intervals(phases(8), resamples=500)
    assert again == found
    assert metric_intervals(phases(4)) == ({}, {})


def test_distances_have_no_upper_bound_and_empty_videos_do_not_count():
    metric = SegmentationMetric(2, background_id=0)
    for index in range(7):
        reference = np.zeros((40, 40), int)
        reference[10:20, 10:20] = index != 0  # the first video has no foreground
        metric.add(np.roll(reference, index, axis=1), reference, f"v{index}")
    found, _ = metric_intervals(metric, resamples=200)
    assert found["video_hd95"].high > 1
    assert found["video_dice"].videos == 6
    assert found["pooled_dice"].videos == 7


def test_multilabel_has_bootstrap_intervals():
    rng = np.random.default_rng(0)
    metric = MultiLabelMetric(2)
    metric.add(rng.random((120, 2)), rng.random((120, 2)), [f"v{i % 6}" for i in range(120)])
    found, draws = metric_intervals(metric, resamples=200)
    assert {interval.method for interval in found.values()} == {BOOTSTRAP}
    assert draws["mean_average_precision"].shape == (200,)


def test_models_are_resampled_alike():
    """Test that all models use the same resamples.

    One model is right where the other is wrong, so their accuracies add up to 1 in each draw.
    """
    values = np.random.default_rng(0).random(6)
    pair = mean_draws(values, 50), mean_draws(1 - values, 50)
    np.testing.assert_allclose(pair[0] + pair[1], 1)
    assert pair[0].std() > 0
    np.testing.assert_allclose(pair[0], resample_weights(6, 50) @ values / 6)


def test_sign_flips_by_brute_force():
    first, second = np.random.default_rng(1).random((2, 7))
    found = sign_flip_test([*first, 0.3], [*second, math.nan])
    differences = first - second
    flipped = [abs(np.mean(differences * signs)) for signs in itertools.product([-1, 1], repeat=7)]
    assert found.p == np.mean(np.array(flipped) >= abs(differences.mean()) - 1e-12)
    assert (found.videos, found.smallest_p) == (7, 2 / 128)
    assert found.difference == pytest.approx(differences.mean())
    assert sign_flip_test([1, 2], [1, 2]).p == 1
    assert sign_flip_test([1] * 8, [0.5] * 8).p == 2 / 256
    assert sign_flip_test([math.nan], [1]) is None


@pytest.mark.slow
def test_sign_flips_are_exact_up_to_20_videos_and_sampled_above():
    rng = np.random.default_rng(0)
    for videos in (20, 40):
        differences = rng.normal(0.3, 1, videos)
        found = sign_flip_test(differences, np.zeros(videos))
        assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert found.smallest_p == 1 / (2**20 + 1)
    assert sign_flip_test(differences, np.zeros(40)) == found


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_when_no_difference_could_be_significant():
    assert not cannot_be_significant(sign_flip_test([1] * 7, [0] * 7).smallest_p, 1)
    assert cannot_be_significant(sign_flip_test([1] * 7, [0] * 7).smallest_p, 6)
    assert cannot_be_significant(sign_flip_test([1] * 5, [0] * 5).smallest_p, 1)


def test_no_interval_without_variation():
    """Test that equal values in all resamples give no interval.

    An example is the balanced accuracy of a model that predicts nothing.
    """
    assert bootstrap_interval([0.5] * 100, 8) is None
