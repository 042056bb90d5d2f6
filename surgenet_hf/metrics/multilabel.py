"""Metrics of multi-label classification (critical view of safety, tools): average precision and balanced accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .base import VideoMetric, mean, ratio


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
    """All frames, ranked by one criterion's score from high to low. Frames with equal scores form a group."""

    videos: np.ndarray  # (n,) row of the video of each frame
    positive: np.ndarray  # (n,) 1 or 0
    group_ends: np.ndarray  # (groups,) last frame of each group with a positive frame

    def average_precision(self, weights: np.ndarray) -> float:
        """Compute average precision, with each frame counted as often as its video.

        Args:
            weights: integers (videos,).
        """
        weights = weights[self.videos]
        hits = np.cumsum(weights * self.positive)[self.group_ends]
        if not len(hits) or not hits[-1]:
            return float("nan")
        ranks = np.cumsum(weights)[self.group_ends]
        return float(np.sum(np.diff(hits, prepend=0) * (hits / np.maximum(ranks, 1))) / hits[-1])


class MultiLabelMetric(VideoMetric):
    """Average precision and balanced accuracy of each criterion, over the pooled frames of all videos.

    A frame is positive for a criterion if its target, such as the mean of three raters, is at least 0.5.

    Average precision is the sum over the distinct scores s, from high to low, of (recall at s - previous recall) x
    precision at s. As in scikit-learn, there is no interpolation, and ties count as one step. Balanced accuracy is the
    mean of sensitivity and specificity, where a score of at least 0.5 predicts the criterion.

    Both metrics are NaN for a criterion without positive frames in the sample. Balanced accuracy is also NaN without
    negative frames. Means over criteria exclude NaN, and are NaN if no value is left.

    Args:
        num_labels: number of criteria.
    """

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels = num_labels

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
        - `frames`: number of frames.
        - `per_class`: for each criterion, `average_precision`, `balanced_accuracy`, and `positives` (number of
          frames).
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
        return {
            "headline": "mean_average_precision",
            "pooling": "frames of all videos together; mean over the criteria",
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
            "rankings": [_rank(*columns, row_of) for columns in zip(scores.T, targets.T, strict=True)],
        }

    def _scores(self, summary: dict, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute average precision and balanced accuracy, each (..., num_labels)."""
        samples = weights.reshape(-1, weights.shape[-1]).astype(np.int64)
        precision = np.array([[r.average_precision(sample) for r in summary["rankings"]] for sample in samples])
        positives, negatives, found, rejected = np.moveaxis(np.tensordot(weights, summary["counts"], axes=1), -2, 0)
        accuracy = (ratio(found, positives) + ratio(rejected, negatives)) / 2
        return precision.reshape(accuracy.shape), accuracy

    def _values(self, summary: dict, weights: np.ndarray) -> dict[str, np.ndarray]:
        precision, accuracy = self._scores(summary, weights)
        return {
            "mean_average_precision": mean(precision, axis=-1),
            "mean_balanced_accuracy": mean(accuracy, axis=-1),
        }

    def _details(self, summary: dict, weights: np.ndarray, rows: dict[str, int]) -> dict:
        precision, accuracy = self._scores(summary, weights)
        positives = weights @ summary["counts"][:, 0]
        alone = self._scores(summary, np.eye(len(weights)))
        kinds = ("positives", "negatives", "true_positives", "true_negatives")
        return {
            "frames": int(weights @ summary["frames"]),
            "per_class": {
                index: {
                    "average_precision": float(precision[index]),
                    "balanced_accuracy": float(accuracy[index]),
                    "positives": int(positives[index]),
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


def _rank(scores: np.ndarray, targets: np.ndarray, row_of: np.ndarray) -> _Ranking:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positive = targets[order].astype(np.int64)
    group_hits = np.diff(np.cumsum(positive)[ends], prepend=0)
    return _Ranking(row_of[order], positive, ends[group_hits > 0])
