"""Base class of the metrics and helper functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class VideoMetric:
    """Accumulator of records that computes metrics for any sample of their videos.

    Records are plain dataclasses with a field `video`. They can be pickled. The `records` of several processes can be
    joined in any order with bit-identical results. A subclass summarizes the records of each video once, and computes
    metrics from weighted summaries.

    A scalar metric with the same name in `per_video` is the mean over the videos that have a value. Other scalar
    metrics are pooled over videos, or averaged over classes last.
    """

    def __init__(self) -> None:
        self.records: list = []
        self._cached: tuple[int, list[str], Any] = (0, [], None)

    @property
    def videos(self) -> list[str]:
        """Sorted ids of the videos added so far."""
        return list(self._summary()[0])

    def compute(self, videos: Sequence[str] | None = None) -> dict:
        """Compute the metrics.

        Args:
            videos: ids of the videos to include, which may repeat. None means all videos.

        Returns:
            A dict of scalar metrics, and of details per class and per video.

        Raises:
            ValueError: no frame was added, `videos` is empty, or one of `videos` was not added.
        """
        names, summary = self._summary()
        if not names:
            raise ValueError("No frames were added, so there is nothing to compute.")
        weights = np.ones(len(names))
        if videos is not None:
            index = {name: row for row, name in enumerate(names)}
            unknown = sorted(set(videos) - set(index))
            if unknown or not len(videos):
                raise ValueError(f"No metrics for the videos {unknown}; the videos are {', '.join(names)}.")
            weights = np.bincount([index[name] for name in videos], minlength=len(names)).astype(float)
        values = {name: float(value) for name, value in self._values(summary, weights).items()}
        return values | self._details(summary, weights, {names[row]: int(row) for row in np.flatnonzero(weights)})

    def resample(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the scalar metrics of many samples of the videos at once.

        Args:
            weights: array (samples, videos), how often each sample contains each video, in the order of `videos`.

        Returns:
            A dict {name: values (samples,)}, with NaN for a sample without a value.
        """
        return self._values(self._summary()[1], np.asarray(weights, float))

    def definitions(self) -> dict:
        """Return a description of the metrics' conventions, for a results file."""
        raise NotImplementedError

    def _summarise(self, videos: dict[str, list]):
        """Summarize the records by video, sorted, for `_values` and `_details`, with one row per video."""
        raise NotImplementedError

    def _values(self, summary, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the scalar metrics (...,) of samples of the videos.

        Args:
            summary: result of `_summarise`.
            weights: array (..., videos).
        """
        raise NotImplementedError

    def _details(self, summary, weights: np.ndarray, rows: dict[str, int]) -> dict:
        """Compute the metrics per class and per video.

        Args:
            summary: result of `_summarise`.
            weights: array (videos,).
            rows: row of each video whose weight is not 0, by name.
        """
        raise NotImplementedError

    def _summary(self) -> tuple[list[str], Any]:
        if self._cached[0] != len(self.records):
            videos: dict[str, list] = {}
            for record in self.records:
                videos.setdefault(record.video, []).append(record)
            videos = {name: videos[name] for name in sorted(videos)}
            self._cached = (len(self.records), list(videos), self._summarise(videos))
        return self._cached[1:]


def mean(values: np.ndarray, axis: int | None = None):
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = np.where(there, values, 0).sum(axis) / there.sum(axis)
    return float(means) if axis is None else means


def weighted_mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weighted mean over videos of the values that are not NaN, or NaN if there are none.

    Args:
        weights: array (..., videos).
        values: array (videos, ...).

    Returns:
        An array with the leading dimensions of `weights`, then the trailing dimensions of `values`.
    """
    there = ~np.isnan(values)
    total = np.tensordot(weights, np.where(there, values, 0.0), axes=1)
    return ratio(total, np.tensordot(weights, there.astype(float), axes=1))


def standard_deviation(values: np.ndarray, axis: int | None = None):
    """Return the sample standard deviation (divisor n - 1) of the values that are not NaN.

    The result is NaN for fewer than two values.
    """
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        center = np.where(there, values, 0).sum(axis, keepdims=True) / there.sum(axis, keepdims=True)
        squares = np.where(there, (values - center) ** 2, 0).sum(axis)
        counts = there.sum(axis)
        deviations = np.where(counts > 1, np.sqrt(squares / (counts - 1)), np.nan)
    return float(deviations) if axis is None else deviations


def ratio(numerator, denominator) -> np.ndarray:
    """Return numerator / denominator, with NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.equal(denominator, 0), np.nan, np.true_divide(numerator, denominator))


def check_ids(where: str, name: str, ids: np.ndarray, num_labels: int) -> None:
    """Check that an array holds integer class ids from 0 to num_labels - 1.

    Args:
        where: frame or video, for the message.
        name: "prediction" or "reference", for the message.
        ids: the array.
        num_labels: number of classes.

    Raises:
        ValueError: the array is not of integers, or holds another id.
    """
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{where}: {name} must contain integer class ids, found {ids.dtype}.")
    if ids.size and (ids.min() < 0 or ids.max() >= num_labels):
        wrong = [int(i) for i in np.unique(ids) if not 0 <= i < num_labels]
        raise ValueError(f"{where}: {name} contains the ids {wrong}; valid ids are 0 to {num_labels - 1}.")
