"""Confidence intervals by drawing videos with replacement: frames of one video are not independent, videos are."""

import numpy as np

from .base import VideoMetric


def bootstrap(metric: VideoMetric, draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Recompute a metric on samples of its videos, each as many videos as there are, drawn with replacement.

    The samples depend on the seed and the sorted video ids alone. Two models evaluated on the same videos are so
    compared draw by draw: `bootstrap(a)["mean_dice"] - bootstrap(b)["mean_dice"]` is a paired bootstrap.

    Returns:
        {name: (draws,) float64} for every float that `metric.compute()` gives; NaN where a sample has no value.
    """
    videos = np.array(metric.videos, object)
    names = [name for name, value in metric.compute().items() if isinstance(value, float)]
    samples = np.random.default_rng(seed).integers(0, len(videos), (draws, len(videos)))
    values = np.empty((len(names), draws))
    for draw, sample in enumerate(samples):
        figures = metric.compute(videos[sample].tolist())
        values[:, draw] = [figures[name] for name in names]
    return dict(zip(names, values, strict=True))


def confidence_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval that holds the middle `level` of the values; NaNs are left out, nothing left is NaN.

    Args:
        values: (draws,), of one figure, from `bootstrap`.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
