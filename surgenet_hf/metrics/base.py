"""What the metrics share: small records, each of one video, and values on any sample of those videos."""

from collections.abc import Sequence

import numpy as np


class VideoMetric:
    """Accumulator of records (plain dataclasses with a field `video`), and the metrics of any sample of their videos.

    Records can be pickled, and the `records` of several processes joined in any order with bit-identical results. A
    subclass summarizes the records of each video once, and computes metrics from weighted summaries.

    A scalar metric that `per_video` holds under the same name is the mean over the videos that have a value. The
    others (pooled over videos, or averaged over classes last) are not.
    """

    def __init__(self):
        self.records: list = []
        self._cached = (0, [], None)

    @property
    def videos(self) -> list[str]:
        """The ids of the videos added so far, sorted."""
        return list(self._summary()[0])

    def compute(self, videos: Sequence[str] | None = None) -> dict:
        """Compute the metrics of these videos (None: all), a list that may name a video several times.

        Raises:
            ValueError: no frame was added, no video is named, or a named video was not added.
        """
        names, summary = self._summary()
        if not names:
            raise ValueError("No frame was added: there is nothing to compute.")
        weights = np.ones(len(names))
        if videos is not None:
            index = {name: row for row, name in enumerate(names)}
            unknown = sorted(set(videos) - set(index))
            if unknown or not len(videos):
                raise ValueError(f"No metrics for the videos {unknown}: there are {', '.join(names)}.")
            weights = np.bincount([index[name] for name in videos], minlength=len(names)).astype(float)
        values = {name: float(value) for name, value in self._values(summary, weights).items()}
        return values | self._details(summary, weights, {names[row]: int(row) for row in np.flatnonzero(weights)})

    def resample(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the scalar metrics of many samples of the videos at once.

        Args:
            weights: (samples, videos), how often each sample holds each video, in the order of `videos`.

        Returns:
            {name: (samples,)}, NaN where a sample has no value.
        """
        return self._values(self._summary()[1], np.asarray(weights, float))

    def definitions(self) -> dict:
        """Describe the conventions of the metrics, for a results file."""
        raise NotImplementedError

    def _summarise(self, videos: dict[str, list]):
        """Records by video, videos sorted -> whatever `_values` and `_details` need, with one row per video."""
        raise NotImplementedError

    def _values(self, summary, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Scalar metrics (...,) of samples of the videos; `weights` is (..., videos)."""
        raise NotImplementedError

    def _details(self, summary, weights: np.ndarray, rows: dict[str, int]) -> dict:
        """Metrics per class and per video; `weights` is (videos,), `rows` names the rows that are not 0."""
        raise NotImplementedError

    def _summary(self) -> tuple[list[str], object]:
        if self._cached[0] != len(self.records):
            videos: dict[str, list] = {}
            for record in self.records:
                videos.setdefault(record.video, []).append(record)
            videos = {name: videos[name] for name in sorted(videos)}
            self._cached = (len(self.records), list(videos), self._summarise(videos))
        return self._cached[1:]


def mean(values: np.ndarray, axis: int | None = None):
    """Mean of what is not NaN; NaN where nothing is left."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = np.where(there, values, 0).sum(axis) / there.sum(axis)
    return float(means) if axis is None else means


def weighted_mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean over videos of what is not NaN, each as often as its weight; NaN where nothing is left.

    Args:
        weights: (..., videos).
        values: (videos, ...).

    Returns:
        the leading dimensions of `weights`, then the trailing ones of `values`.
    """
    there = ~np.isnan(values)
    total = np.tensordot(weights, np.where(there, values, 0.0), axes=1)
    return ratio(total, np.tensordot(weights, there.astype(float), axes=1))


def standard_deviation(values: np.ndarray, axis: int | None = None):
    """Sample standard deviation (divisor n - 1) of what is not NaN; NaN where less than two values are left."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        center = np.where(there, values, 0).sum(axis, keepdims=True) / there.sum(axis, keepdims=True)
        squares = np.where(there, (values - center) ** 2, 0).sum(axis)
        counts = there.sum(axis)
        deviations = np.where(counts > 1, np.sqrt(squares / (counts - 1)), np.nan)
    return float(deviations) if axis is None else deviations


def ratio(numerator, denominator) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.equal(denominator, 0), np.nan, np.true_divide(numerator, denominator))


def check_ids(where: str, name: str, ids: np.ndarray, num_labels: int) -> None:
    """Refuse what are not integer class ids of 0 ... num_labels - 1.

    Raises:
        ValueError: with `where` (which frame or video) and `name` (prediction or reference).
    """
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{where}: {name} must hold integer class ids, found {ids.dtype}.")
    if ids.size and (ids.min() < 0 or ids.max() >= num_labels):
        wrong = [int(i) for i in np.unique(ids) if not 0 <= i < num_labels]
        raise ValueError(f"{where}: {name} holds the ids {wrong}, valid are 0 to {num_labels - 1}.")
