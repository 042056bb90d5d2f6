"""Metrics of multi-label classification (view of safety, tools, triplets): average precision and balanced accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .base import VideoMetric, mean, ratio, weighted_mean

_BLOCK = 1_000_000  # number of values of a resample block, so that its arrays take a few MB


@dataclass(frozen=True)
class ScoreRecord:
    """Record of some frames of one video.

    Attributes:
        video: id of the video.
        scores: float64 (n, num_labels).
        targets: bool (n, num_labels).
    """

    video: str
    scores: np.ndarray
    targets: np.ndarray


@dataclass
class _Ranking:
    """All frames, ranked by one criterion's score from high to low. Frames with equal scores form a group.

    Attributes:
        frames: int32 (groups, videos), number of frames of each video up to the end of a group with a positive frame.
        hits: int32 (groups, videos), number of positive frames among them.
    """

    frames: np.ndarray
    hits: np.ndarray

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Compute average precision (samples,), with each frame counted as often as its video.

        Args:
            weights: array (samples, videos).
        """
        values = np.full(len(weights), np.nan)
        if not len(self.hits):
            return values
        size = max(1, _BLOCK // len(self.hits))
        for start in range(0, len(weights), size):
            block = weights[start : start + size]
            hits, ranks = block @ self.hits.T, block @ self.frames.T
            areas = np.sum(np.diff(hits, prepend=0) * (hits / np.maximum(ranks, 1)), axis=-1)
            values[start : start + size] = ratio(areas, hits[:, -1])
        return values


class MultiLabelMetric(VideoMetric):
    """Average precision and balanced accuracy of each criterion, over the pooled frames of all videos.

    A frame is positive for a criterion if its target, such as the mean of three raters, is at least 0.5.

    Average precision is the sum over the distinct scores s, from high to low, of (recall at s - previous recall) x
    precision at s. As in scikit-learn, there is no interpolation, and ties count as one step. Balanced accuracy is the
    mean of sensitivity and specificity, where a score of at least 0.5 predicts the criterion.

    Both metrics are NaN for a criterion without positive frames in the sample. Balanced accuracy is also NaN without
    negative frames. Means over criteria exclude NaN, and are NaN if no value is left.

    Video-wise average precision is the convention for action triplets (CholecT50). It is the average precision of a
    criterion in each video, then its mean over the videos in which the criterion occurs, then the mean over the
    criteria that have a value. If every criterion occurs in every video, this is `compute_video_AP` of the package
    ivtmetrics. Otherwise, ivtmetrics differs: with current versions of scikit-learn, it counts a criterion that does
    not occur in a video as 0.

    Args:
        num_labels: number of criteria.
        video_wise: whether to compute video-wise average precision, in addition to the other metrics.
    """

    def __init__(self, num_labels: int, video_wise: bool = False):
        super().__init__()
        self.num_labels = num_labels
        self.video_wise = video_wise

    def add(self, scores: np.ndarray, targets: np.ndarray, video: str | Sequence[str] = "") -> None:
        """Add frames.

        Args:
            scores: array (n, num_labels) from 0 to 1 (after the sigmoid).
            targets: array (n, num_labels) from 0 to 1.
            video: id of the video of all n frames, or a list of n ids.

        Raises:
            ValueError: an array has another shape, a value is outside 0 to 1, or the numbers of videos and frames
                differ.
        """
        scores, targets = np.array(scores, np.float64), np.asarray(targets, np.float64)
        videos = [video] * len(scores) if isinstance(video, str) else list(video)
        if scores.shape != (len(videos), self.num_labels) or scores.shape != targets.shape:
            raise ValueError(
                f"Scores and targets must have the same shape (n, {self.num_labels}), with one video per frame; "
                f"found {scores.shape}, {targets.shape} and {len(videos)} videos."
            )
        for name, values in (("scores", scores), ("targets", targets)):
            if not np.all((values >= 0) & (values <= 1)):
                hint = " (apply the sigmoid to logits)" if name == "scores" else ""
                raise ValueError(f"The {name} must be from 0 to 1, found {values.min()} to {values.max()}{hint}.")
        video_of = np.array(videos, object)
        for name in dict.fromkeys(videos):
            self.records.append(ScoreRecord(name, scores[video_of == name], targets[video_of == name] >= 0.5))

    def compute(self, videos=None) -> dict:
        """Compute the metrics.

        The result has these entries, which are NaN where undefined:

        - `mean_average_precision`, `mean_balanced_accuracy`: means over the criteria that have a value, with the
          frames of all videos pooled.
        - `mean_video_average_precision`: video-wise average precision, mean over the criteria that have a value. Only
          if `video_wise`.
        - `frames`: number of frames.
        - `per_class`: for each criterion, `average_precision`, `balanced_accuracy`, and `positives` (number of
          frames). If `video_wise`, also `video_average_precision`, the mean over the videos in which the criterion
          occurs.
        - `per_video`: a dict for each video.
            - `frames`: number of frames.
            - `per_class`: for each criterion, the counts `positives`, `negatives`, `true_positives`, and
              `true_negatives`. Also `average_precision` and `balanced_accuracy`, which are noisy or NaN in short
              videos.

        Args:
            videos: ids of the videos to include, which may repeat. None means all videos.

        Returns:
            A dict with the entries above.

        Raises:
            ValueError: no frame was added, `videos` is empty, or one of `videos` was not added.
        """
        return super().compute(videos)

    def definitions(self) -> dict[str, str]:
        """Return a description of the metrics' conventions, for a results file."""
        of_videos = {
            "headline": "mean_video_average_precision",
            "video_average_precision": "average precision in each video; mean over the videos in which the criterion "
            "occurs, then over the criteria (compute_video_AP of ivtmetrics, without its zeros for absent classes)",
        }
        return {
            "headline": "mean_average_precision",
            "pooling": "frames of all videos together; mean over the criteria",
            **(of_videos if self.video_wise else {}),
            "targets": "positive if at least 0.5, e.g. the mean of three raters",
            "average_precision": "step-wise, without interpolation, as in scikit-learn; ties count as one step",
            "balanced_accuracy": "mean of sensitivity and specificity at a score of 0.5",
            "absent_classes": "a criterion without positives has no value, and is excluded from the mean",
        }

    def _summarise(self, videos: dict[str, list[ScoreRecord]]) -> dict:
        records = [record for records in videos.values() for record in records]
        rows = {name: row for row, name in enumerate(videos)}
        scores = np.concatenate([record.scores for record in records])
        targets = np.concatenate([record.targets for record in records])
        row_of = np.concatenate([np.full(len(record.scores), rows[record.video]) for record in records])
        decided = scores >= 0.5
        kinds = (targets, ~targets, targets & decided, ~targets & ~decided)  # the last two are correct predictions
        counts = np.zeros((len(videos), 4, self.num_labels), np.int64)
        for index, kind in enumerate(kinds):
            np.add.at(counts[:, index], row_of, kind)
        return {
            "frames": np.bincount(row_of, minlength=len(videos)),
            "counts": counts,
            "rankings": [_rank(*columns, row_of, len(videos)) for columns in zip(scores.T, targets.T, strict=True)],
        }

    def _scores(self, summary: dict, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute average precision and balanced accuracy, each (..., num_labels)."""
        samples = weights.reshape(-1, weights.shape[-1])
        precision = np.stack([ranking.average_precision(samples) for ranking in summary["rankings"]], axis=-1)
        positives, negatives, found, rejected = np.moveaxis(np.tensordot(weights, summary["counts"], axes=1), -2, 0)
        accuracy = (ratio(found, positives) + ratio(rejected, negatives)) / 2
        return precision.reshape(accuracy.shape), accuracy

    def _values(self, summary: dict, weights: np.ndarray) -> dict[str, np.ndarray]:
        precision, accuracy = self._scores(summary, weights)
        values = {
            "mean_average_precision": mean(precision, axis=-1),
            "mean_balanced_accuracy": mean(accuracy, axis=-1),
        }
        if self.video_wise:
            values["mean_video_average_precision"] = mean(self._video_precision(summary, weights), axis=-1)
        return values

    def _video_precision(self, summary: dict, weights: np.ndarray) -> np.ndarray:
        """Compute the mean over videos of the average precision in each video, (..., num_labels)."""
        return weighted_mean(weights, self._scores(summary, np.eye(weights.shape[-1]))[0])

    def _details(self, summary: dict, weights: np.ndarray, rows: dict[str, int]) -> dict:
        precision, accuracy = self._scores(summary, weights)
        positives = weights @ summary["counts"][:, 0]
        alone = self._scores(summary, np.eye(len(weights)))
        kinds = ("positives", "negatives", "true_positives", "true_negatives")
        video_precision = weighted_mean(weights, alone[0])
        return {
            "frames": int(weights @ summary["frames"]),
            "per_class": {
                index: {
                    "average_precision": float(precision[index]),
                    "balanced_accuracy": float(accuracy[index]),
                    "positives": int(positives[index]),
                    **({"video_average_precision": float(video_precision[index])} if self.video_wise else {}),
                }
                for index in range(self.num_labels)
            },
            "per_video": {
                video: {
                    "frames": int(summary["frames"][row]),
                    "per_class": {
                        index: {
                            "average_precision": float(alone[0][row, index]),
                            "balanced_accuracy": float(alone[1][row, index]),
                            **{kind: int(summary["counts"][row, i, index]) for i, kind in enumerate(kinds)},
                        }
                        for index in range(self.num_labels)
                    },
                }
                for video, row in rows.items()
            },
        }


def _rank(scores: np.ndarray, targets: np.ndarray, row_of: np.ndarray, num_videos: int) -> _Ranking:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positive = targets[order]
    ends = ends[np.diff(np.cumsum(positive)[ends], prepend=0) > 0]

    def counts(positions: np.ndarray) -> np.ndarray:
        """Count the frames of each video at these positions of the ranking, up to the end of each group."""
        found = np.zeros((len(ends), num_videos), np.int32)
        group = np.searchsorted(ends, positions)
        inside = group < len(ends)
        np.add.at(found, (group[inside], row_of[order][positions[inside]]), 1)
        return np.cumsum(found, axis=0, dtype=np.int32)

    return _Ranking(counts(np.arange(len(scores))), counts(np.flatnonzero(positive)))
