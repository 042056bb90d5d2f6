"""Confidence intervals and tests over videos. Frames of the same video are not independent, but videos are.

Sources:
    Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69(4), 2015: expanded
        percentiles, which correct the narrowness of percentile intervals in small samples.
    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6(2), 1979.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..metrics.base import VideoMetric, weighted_mean

LEVEL = 0.95
RESAMPLES = 10_000
MIN_VIDEOS, ROUGH_BELOW, CAUTION_BELOW = 5, 10, 20  # videos, see `Interval`
EXACT_UP_TO = 20  # videos, for 2**20 sign patterns
STUDENT, BOOTSTRAP = "Student's t", "bootstrap with expanded percentiles"
INTERVALS = (  # text for results files
    f"95 % confidence intervals over videos. Means over videos have Student's t intervals. Other metrics have "
    f"bootstrap intervals from {RESAMPLES:,} resamples with expanded percentiles (Hesterberg 2015). Intervals are "
    f"clipped to the range of the metric. A class that does not occur in a resample is excluded from it. There is no "
    f"interval below {MIN_VIDEOS} videos with a value, or if all resamples are equal. Intervals are rough below "
    f"{ROUGH_BELOW} videos; read them with caution below {CAUTION_BELOW}"
)


@dataclass(frozen=True)
class Interval:
    """95 % confidence interval over videos.

    Intervals require at least `MIN_VIDEOS` videos. With fewer videos, even good methods cover far less than 95 %.

    Attributes:
        low: lower bound, clipped to the range of the metric.
        high: upper bound, clipped to the range of the metric.
        videos: number of videos with a value.
        method: `STUDENT` or `BOOTSTRAP`.
    """

    low: float
    high: float
    videos: int
    method: str


def interval_warning(videos: int) -> str:
    """Return the warning for an interval: "rough" below 10 videos, "few videos" below 20, otherwise ""."""
    return "rough" if videos < ROUGH_BELOW else "few videos" if videos < CAUTION_BELOW else ""


def student_interval(
    values: Sequence[float] | np.ndarray, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval | None:
    """Compute Student's t interval of a mean over videos.

    Args:
        values: one value per video. NaN values are excluded.
        bounds: range of the metric.

    Returns:
        The interval, or None for fewer than `MIN_VIDEOS` values.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    n = len(known)
    if n < MIN_VIDEOS:
        return None
    half = _student_quantile(n) * known.std(ddof=1) / math.sqrt(n)
    low, high = np.clip([known.mean() - half, known.mean() + half], *bounds)
    return Interval(float(low), float(high), n, STUDENT)


def bootstrap_interval(
    draws: Sequence[float] | np.ndarray, videos: int, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval | None:
    """Compute a bootstrap interval with expanded percentiles (Hesterberg 2015).

    Args:
        draws: metric on each resample of the videos. NaN values are excluded.
        videos: number of resampled videos.
        bounds: range of the metric.

    Returns:
        The interval. None for fewer than `MIN_VIDEOS` videos, or if the draws do not vary and thus carry no
        information.
    """
    known = np.asarray(draws, float)
    known = known[~np.isnan(known)]
    if videos < MIN_VIDEOS or not len(known) or known.min() == known.max():
        return None
    tail = NormalDist().cdf(-math.sqrt(videos / (videos - 1)) * _student_quantile(videos))
    low, high = np.clip(np.quantile(known, [tail, 1 - tail]), *bounds)
    return Interval(float(low), float(high), videos, BOOTSTRAP)


def _student_quantile(videos: int) -> float:
    from scipy.stats import t  # local import, because cards use this module without the extra "train"

    return float(t.ppf((1 + LEVEL) / 2, videos - 1))


def resample_weights(videos: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return how often each resample contains each video, as floats (resamples, videos).

    The weights depend only on the seed and the number of videos. Two models on the same videos, in sorted order,
    therefore have paired resamples.
    """
    return np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), resamples).astype(float)


def metric_intervals(
    metric: VideoMetric, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[dict[str, Interval], dict[str, np.ndarray]]:
    """Compute intervals of all scalar metrics, and bootstrap draws of metrics that are not means over videos.

    Standard deviations (`..._sd`) have no interval.

    Args:
        metric: metric with the records of all frames.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Returns:
        ({name: interval}, {name: draws (resamples,)}). Both are empty for fewer than `MIN_VIDEOS` videos.
    """
    computed = metric.compute()
    videos = metric.videos
    if len(videos) < MIN_VIDEOS:
        return {}, {}
    of_videos = [computed["per_video"][video] for video in videos]
    draws = metric.resample(resample_weights(len(videos), resamples, seed))
    draws = {name: values for name, values in draws.items() if name not in of_videos[0]}
    found = {}
    for name, value in computed.items():
        if not isinstance(value, float) or name.endswith("_sd"):
            continue
        bounds = metric_bounds(name)
        if name in of_videos[0]:
            found[name] = student_interval([values[name] for values in of_videos], bounds)
        else:
            found[name] = bootstrap_interval(draws[name], len(videos), bounds)
    return {name: interval for name, interval in found.items() if interval is not None}, draws


def metric_bounds(name: str) -> tuple[float, float]:
    """Return the range of a metric by its name. Distances are at least 0, and all other metrics are shares."""
    return (0.0, math.inf if "assd" in name or "hd95" in name else 1.0)


def mean_draws(values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return bootstrap draws (resamples,) of a mean over videos.

    Args:
        values: values of the videos, sorted by the names of the videos.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    values = np.asarray(values, float)
    return weighted_mean(resample_weights(len(values), resamples, seed), values)


@dataclass(frozen=True)
class PairedTest:
    """Sign-flip permutation test of the differences between two models on the same videos.

    Attributes:
        difference: mean difference.
        videos: number of videos with a value of both models.
        p: two-sided p-value, 1 if there is no difference.
        smallest_p: smallest possible p-value for this number of videos.
    """

    difference: float
    videos: int
    p: float
    smallest_p: float


def sign_flip_test(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, seed: int = 0
) -> PairedTest | None:
    """Test whether two models differ on the same videos.

    Under the null hypothesis, each video's difference has either sign with the same probability. The p-value is the
    share of the 2**n sign patterns whose absolute mean is at least the observed one. For 21 or more videos, it uses
    2**20 random patterns and the observed one.

    Args:
        first: one value per video of the first model. Videos with a NaN value are excluded.
        second: one value per video of the second model, in the same order.
        seed: seed of the random patterns.

    Returns:
        The test, or None without videos.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    if not n:
        return None
    exact = n <= EXACT_UP_TO
    patterns = 2 ** min(n, EXACT_UP_TO)
    rng = np.random.default_rng(seed)
    observed = abs(differences.sum()) * (1 - 1e-12)  # tolerate rounding, as the order of summation varies
    reached = 0
    for start in range(0, patterns, 2**16):
        size = min(2**16, patterns - start)
        if exact:
            bits = np.arange(start, start + size)[:, None] >> np.arange(n) & 1
        else:
            bits = rng.integers(0, 2, (size, n), dtype=np.int8)
        reached += int((abs((2.0 * bits - 1) @ differences) >= observed).sum())
    p = reached / patterns if exact else (reached + 1) / (patterns + 1)
    smallest = 2 / patterns if exact else 1 / (patterns + 1)
    return PairedTest(float(differences.mean()), n, p, min(smallest, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests by Holm's step-down procedure, and return them in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def cannot_be_significant(smallest_p: float, comparisons: int) -> bool:
    """Return whether there are too few videos for a significant test after Holm's correction."""
    return smallest_p * comparisons > 1 - LEVEL
