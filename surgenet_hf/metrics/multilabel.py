"""Multi-label classification (critical view of safety, tools): average precision and balanced accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .base import VideoMetric, mean, ratio


@dataclass(frozen=True)
class ScoreRecord:
    """What is kept of some frames of one video: scores float64 (n, num_labels) and targets bool (n, num_labels)."""

    video: str
    scores: np.ndarray
    targets: np.ndarray


@dataclass
class _Ranking:
    """All frames by one criterion's score, highest first; frames of equal score are a group."""

    videos: np.ndarray  # (n,) row of each frame's video
    positive: np.ndarray  # (n,) 1 or 0
    group_ends: np.ndarray  # (groups,) the last frame of each group that holds a positive

    def average_precision(self, weights: np.ndarray) -> float:
        """Average precision with each frame counted as often as its video: `weights` (videos,) integers."""
        weights = weights[self.videos]
        hits = np.cumsum(weights * self.positive)[self.group_ends]
        if not len(hits) or not hits[-1]:
            return float("nan")
        ranks = np.cumsum(weights)[self.group_ends]
        return float(np.sum(np.diff(hits, prepend=0) * (hits / np.maximum(ranks, 1))) / hits[-1])


class MultiLabelMetric(VideoMetric):
    """Average precision and balanced accuracy of each criterion, over the frames of all videos together.

    A frame is positive for a criterion where its target, e.g. the mean of three raters, is at least 0.5.

    Average precision is the step-wise sum over the distinct scores s, from high to low, of
    (recall at s - recall before s) x precision at s, as in scikit-learn: no interpolation, ties count as one step.
    Balanced accuracy is the mean of sensitivity and specificity where a score of at least 0.5 predicts the criterion.

    A criterion without a positive frame in the sample has neither (NaN), one without a negative frame has no balanced
    accuracy; NaNs are left out of the means over criteria, and a mean of nothing is NaN.

    Args:
        num_labels: number of criteria.
    """

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels = num_labels

    def add(self, scores: np.ndarray, targets: np.ndarray, video: str | Sequence[str] = "") -> None:
        """Add frames.

        Args:
            scores: (n, num_labels) from 0 to 1 (after the sigmoid).
            targets: (n, num_labels) from 0 to 1.
            video: the video of all n frames, or a list of n videos.

        Raises:
            ValueError: arrays of another shape, values not in 0 to 1, or another number of videos than frames.
        """
        scores, targets = np.array(scores, np.float64), np.asarray(targets, np.float64)
        videos = [video] * len(scores) if isinstance(video, str) else list(video)
        if scores.shape != (len(videos), self.num_labels) or scores.shape != targets.shape:
            raise ValueError(
                f"Scores and targets must be of one shape (n, {self.num_labels}) with a video for each frame, "
                f"found {scores.shape}, {targets.shape} and {len(videos)} videos."
            )
        for name, values in (("scores", scores), ("targets", targets)):
            if not np.all((values >= 0) & (values <= 1)):
                hint = " (logits? apply the sigmoid)" if name == "scores" else ""
                raise ValueError(f"The {name} must lie in 0 to 1, found {values.min()} to {values.max()}{hint}.")
        videos = np.array(videos, object)
        for name in dict.fromkeys(videos):
            self.records.append(ScoreRecord(name, scores[videos == name], targets[videos == name] >= 0.5))

    def compute(self, videos=None) -> dict:
        """Compute the metrics of these videos (a list, with repeats if wanted), by default of all.

        Returns:
            mean_average_precision, mean_balanced_accuracy: of the frames of all videos together, means over the
                criteria that have a value.
            frames: number of frames.
            per_class: {criterion: average_precision, balanced_accuracy, positives (number of frames)}.
            per_video: {video: frames; per_class: {criterion: average_precision and balanced_accuracy of the video's
                frames (often NaN, noisy in short videos), positives, negatives, true_positives, true_negatives}}.

        Raises:
            ValueError: no frame was added, no video is named, or a named video was not added.
        """
        return super().compute(videos)

    def definitions(self) -> dict[str, str]:
        """Describe the conventions of the metrics, for a results file."""
        return {
            "headline": "mean_average_precision",
            "pooling": "frames of all videos together; mean over the criteria",
            "targets": "positive from 0.5 on, e.g. the mean of three raters",
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
        kinds = (targets, ~targets, targets & decided, ~targets & ~decided)  # positive, negative, and those found
        counts = np.zeros((len(videos), 4, self.num_labels), np.int64)
        for index, kind in enumerate(kinds):
            np.add.at(counts[:, index], row_of, kind)
        return {
            "frames": np.bincount(row_of, minlength=len(videos)),
            "counts": counts,
            "rankings": [_rank(*columns, row_of) for columns in zip(scores.T, targets.T, strict=True)],
        }

    def _scores(self, summary: dict, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision and balanced accuracy (..., num_labels)."""
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
