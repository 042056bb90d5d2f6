"""Metrics of phase recognition on whole videos: video-wise, frame-wise, relaxed, and segmental.

Sources:
    Funke, Rivoir, Speidel: Metrics Matter in Surgical Phase Recognition, arXiv 2305.13961, 2023.
    `Evaluate.m` of the M2CAI 2016 workflow challenge and its revision for Cholec80 (relaxed boundaries).
    `eval.py` of MS-TCN, Abu Farha and Gall, CVPR 2019 (edit score, segmental F1).
"""

from dataclasses import dataclass

import numpy as np

from .base import VideoMetric, check_ids, mean, ratio, standard_deviation, weighted_mean
from .sequences import Transitions, edit_score, relaxed_correct, segment_matches

SCORES = ("precision", "recall", "f1", "jaccard")
RELAXED = ("relaxed_precision", "relaxed_recall", "relaxed_jaccard")
OVERLAPS = (10, 25, 50)
PUBLISHED = "_published"


@dataclass(frozen=True)
class PhaseRecord:
    """Record of one video.

    Attributes:
        video: id of the video.
        confusion: int64 (num_labels, num_labels), frames by annotated (row) and predicted (column) phase.
        relaxed_hits: int64 (2, num_labels), the relaxed true positives of each phase by the corrected and by the
            published script, see `PhaseMetric`.
        relaxed_correct: (2,), numbers of frames that these scripts count as correct or accept.
        edit: edit score, 0 to 1.
        segments: int64 (3, 3), numbers of found, predicted, and annotated segments (columns) at overlaps of 10, 25,
            and 50 % (rows).
    """

    video: str
    confusion: np.ndarray
    relaxed_hits: np.ndarray
    relaxed_correct: np.ndarray
    edit: float
    segments: np.ndarray


class PhaseMetric(VideoMetric):
    """Metrics of phase recognition, all from 0 to 1.

    The formulas count the predicted and annotated frames of a phase in one video. tp counts the correct frames:

        precision = tp / predicted    f1      = 2 tp / (predicted + annotated)
        recall    = tp / annotated    jaccard =   tp / (predicted + annotated - tp)

    The conventions follow Funke et al.:

    - **Absent phases.** By default (strategy A), only undefined values (0 / 0) are excluded. These are the precision
      of a phase that is not predicted in the video and the recall of a phase that is not annotated. They are also the
      F1 and Jaccard of a phase that is neither predicted nor annotated. A phase that is predicted but not annotated
      counts with precision, F1, and Jaccard 0. `..._annotated` (strategy B) excludes all values of a phase that is not
      annotated in the video. Recall is the same under both strategies.
    - **Video-wise.** `macro_...` is the mean over the phases of a video, then over videos. `..._sd` is the sample
      standard deviation over videos (n - 1). F1 is the mean of the F1 of the phases, not the F1 of mean precision and
      mean recall, which is larger. In `per_class`, the values of a phase are averaged over the videos that have a
      value.
    - **Frame-wise.** For `framewise_...`, the frames of all videos are pooled in one confusion matrix, and strategy A
      is applied to it. Long videos have more weight.
    - **Relaxed boundaries.** Near the boundaries of an annotated segment, a neighboring phase is also accepted. In the
      first `relaxed_seconds`, this is the phase of the previous annotated segment. In the last `relaxed_seconds`, it
      is the phase of the next one. A shorter segment is relaxed in full. `transitions` replaces the annotated
      neighbors. `CHOLEC80_TRANSITIONS` is the rule of the challenge script for Cholec80.
    - **Relaxed metrics.** As in that script, tp of a phase counts every correct or accepted frame that is annotated or
      predicted as the phase. Precision divides tp by predicted, and recall divides it by annotated. Jaccard divides it
      by the number of frames that are annotated or predicted as the phase. Precision and recall can exceed 1 and are
      clipped to 1. Phases that are not annotated in the video are excluded (strategy B). Values are averaged over
      videos, then over phases.
    - **Published and corrected script.** `relaxed_..._published` follows the script as published, whose values most
      papers report. It applies the mask of a segment's last frames to its first frames
      (`curDiff(curDiff(end-t+1:end)==1) = 0`). It gives precision 1 to a phase that is not predicted but has accepted
      frames. `relaxed_...` is the corrected script, where such a phase has no precision.
    - **Segments** (MS-TCN). A segment is a run of frames of one phase. The edit score is 1 - (Levenshtein distance of
      the two sequences of phases) / (length of the longer one), averaged over videos. For F1@k, each predicted segment
      is compared with the annotated segment of its phase with the highest IoU. It is found if the IoU is at least k %
      and no other predicted segment has matched that annotated segment. `f1@k` is 2 found / (predicted + annotated),
      with counts pooled over videos. `video_f1@k` is the mean of the F1@k of each video (Funke et al.,
      SurgPhaseBench).

    Args:
        num_labels: number of phases. Valid ids are 0 to num_labels - 1.
        relaxed_seconds: width of the relaxed boundaries in seconds.
        frames_per_second: frame rate of the added sequences.
        transitions: {phase: (phases accepted at its start, phases accepted at its end)}.
    """

    def __init__(
        self,
        num_labels: int,
        relaxed_seconds: float = 10,
        frames_per_second: float = 1.0,
        transitions: Transitions | None = None,
    ):
        super().__init__()
        self.num_labels = num_labels
        self.tolerance = round(relaxed_seconds * frames_per_second)
        self.transitions = transitions

    def add(self, prediction: np.ndarray, reference: np.ndarray, video: str) -> None:
        """Add one whole video.

        Args:
            prediction: integers (T,), the predicted phase of each frame in temporal order.
            reference: integers (T,), the annotated phase of each frame in temporal order.
            video: id of the video, which must be new.

        Raises:
            ValueError: the video is empty or was added before, the shapes differ, or an id is not a phase.
        """
        where = f"Video {video!r}"
        if any(record.video == video for record in self.records):
            raise ValueError(f"{where} was already added; add each video once, with all its frames.")
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.ndim != 1 or prediction.shape != reference.shape or not prediction.size:
            raise ValueError(
                f"{where}: prediction and reference must have the same shape (T,) with at least one frame, "
                f"found {prediction.shape} and {reference.shape}."
            )
        for name, ids in (("prediction", prediction), ("reference", reference)):
            check_ids(where, name, ids, self.num_labels)
        prediction, reference = prediction.astype(np.int64), reference.astype(np.int64)
        pairs = np.bincount(reference * self.num_labels + prediction, minlength=self.num_labels**2)
        hits, correct = [], []
        for published in (False, True):
            accepted = relaxed_correct(prediction, reference, self.tolerance, self.transitions, published)
            twice = accepted & (prediction == reference)  # the sum below counts these twice for their phase
            counts = sum(np.bincount(ids[accepted], minlength=self.num_labels) for ids in (prediction, reference))
            hits.append(counts - np.bincount(reference[twice], minlength=self.num_labels))
            correct.append(accepted.sum())
        record = PhaseRecord(
            video,
            pairs.reshape(self.num_labels, self.num_labels),
            np.array(hits),
            np.array(correct),
            edit_score(prediction, reference),
            np.array([segment_matches(prediction, reference, overlap / 100) for overlap in OVERLAPS]),
        )
        self.records.append(record)

    def compute(self, videos=None) -> dict:
        """Compute the metrics.

        The result has these entries, which are NaN where undefined. The class docstring defines the terms.

        - `accuracy`: share of correct frames of a video, averaged over videos. `accuracy_sd` is its standard
          deviation.
        - `macro_precision`, `macro_recall`, `macro_f1`, `macro_jaccard`: video-wise metrics, each also with `_sd`.
        - `macro_precision_annotated`, `macro_f1_annotated`, `macro_jaccard_annotated`: the same under strategy B, each
          also with `_sd`.
        - `framewise_accuracy`, `framewise_precision`, `framewise_recall`, `framewise_f1`, `framewise_jaccard`: metrics
          of the pooled frames.
        - `relaxed_accuracy` (averaged over videos), `relaxed_precision`, `relaxed_recall`, `relaxed_jaccard`: metrics
          with relaxed boundaries, each also with `_published`.
        - `edit_score`: edit score, averaged over videos.
        - `f1@10`, `f1@25`, `f1@50`: segmental F1, each also with the prefix `video_`.
        - `frames`: number of frames.
        - `per_class`: a dict for each phase.
            - `precision`, `recall`, `f1`, `jaccard`: means over videos, each also with `_sd` and with `framewise_`.
            - `relaxed_precision`, `relaxed_recall`, `relaxed_jaccard`: means over videos, each also with `_published`.
            - `annotated_videos`, `predicted_videos`: numbers of videos in which the phase occurs.
        - `per_video`: a dict for each video.
            - The metrics that are means over videos, and `frames`.
            - `segments@10`, `segments@25`, `segments@50`: numbers of found, predicted, and annotated segments.
            - `per_class`: for each phase, `annotated_frames`, `predicted_frames`, `correct_frames`, `relaxed_hits`,
              and `relaxed_hits_published`.

        Args:
            videos: ids of the videos to include, which may repeat. None means all videos.

        Returns:
            A dict with the entries above.

        Raises:
            ValueError: no video was added, `videos` is empty, or one of `videos` was not added.
        """
        return super().compute(videos)

    def definitions(self) -> dict[str, str]:
        """Return a description of the metrics' conventions, for a results file."""
        rule = "the phase of the annotated neighbor" if self.transitions is None else "the challenge's list of phases"
        return {
            "headline": "accuracy",
            "averaging": "accuracy: share of correct frames of a video, mean over videos; macro_*: mean over the "
            "phases of a video, then over videos; *_sd: sample standard deviation over videos; framewise_*: frames of "
            "all videos pooled; relaxed precision, recall and Jaccard: mean over videos, then over phases",
            "absent_phases": "macro_*: strategy A of Funke et al. (2023), a phase that is predicted but not annotated "
            "counts as 0, and undefined values are excluded, such as the precision of a phase that is not predicted; "
            "*_annotated: strategy B, phases that are not annotated are excluded",
            "relaxed": f"{self.tolerance} frames at each border of an annotated segment also accept {rule}; "
            "*_published: as the published Evaluate.m, without the correction of its mask; precision and recall are "
            "clipped to 1, and phases that are not annotated are excluded",
            "edit_score": "1 - Levenshtein distance of the sequences of segments / length of the longer one, mean "
            "over videos",
            "segments": "a predicted segment is found if it overlaps an annotated one of its phase, not yet taken, by "
            "an IoU of at least k %; f1@k: segments pooled over videos (MS-TCN); video_f1@k: mean over the F1@k of "
            "each video",
        }

    def _summarise(self, videos: dict[str, list[PhaseRecord]]) -> dict:
        records = [record for records in videos.values() for record in records]
        confusion = np.array([record.confusion for record in records])
        annotated, predicted, frames = confusion.sum(2), confusion.sum(1), confusion.sum((1, 2))
        correct = np.diagonal(confusion, axis1=1, axis2=2)
        scores = phase_scores(confusion)
        in_annotation = np.where(annotated[:, None] > 0, scores, np.nan)
        hits = np.array([record.relaxed_hits for record in records])  # (videos, 2, phases)
        ratios = [ratio(hits, predicted[:, None]), ratio(hits, annotated[:, None])]
        ratios.append(ratio(hits, (annotated + predicted - correct)[:, None]))
        # The published script clips an infinite precision to 1.
        ratios[0][:, 1] = np.where((predicted == 0) & (hits[:, 1] > 0), 1.0, ratios[0][:, 1])
        relaxed = np.where(annotated[:, None, None] > 0, np.stack(ratios, 1).clip(max=1), np.nan)
        segments = np.array([record.segments for record in records])
        means = {"accuracy": ratio(correct.sum(1), frames)}
        for index, name in enumerate(SCORES):
            means[f"macro_{name}"] = mean(scores[:, index], axis=1)
            if name != "recall":
                means[f"macro_{name}_annotated"] = mean(in_annotation[:, index], axis=1)
        for index, suffix in enumerate(("", PUBLISHED)):
            accepted = np.array([record.relaxed_correct[index] for record in records])
            means[f"relaxed_accuracy{suffix}"] = accepted / frames
        means["edit_score"] = np.array([record.edit for record in records])
        for index, overlap in enumerate(OVERLAPS):
            means[f"video_f1@{overlap}"] = _segmental_f1(segments[:, index])
        return {
            "confusion": confusion,
            "scores": scores,
            # (videos, phases) each
            "relaxed": {
                f"{name}{suffix}": relaxed[:, i, j]
                for j, suffix in enumerate(("", PUBLISHED))
                for i, name in enumerate(RELAXED)
            },
            "segments": segments,
            "video_means": means,
            "counts": {
                "annotated_frames": annotated,
                "predicted_frames": predicted,
                "correct_frames": correct,
                "relaxed_hits": hits[:, 0],
                f"relaxed_hits{PUBLISHED}": hits[:, 1],
            },
        }

    def _values(self, summary: dict, weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {name: weighted_mean(weights, column) for name, column in summary["video_means"].items()}
        pooled = np.tensordot(weights, summary["confusion"], axes=1)
        values["framewise_accuracy"] = ratio(np.trace(pooled, axis1=-2, axis2=-1), pooled.sum((-2, -1)))
        for index, name in enumerate(SCORES):
            values[f"framewise_{name}"] = mean(phase_scores(pooled)[..., index, :], axis=-1)
        for name, column in summary["relaxed"].items():
            values[name] = mean(weighted_mean(weights, column), axis=-1)
        f1 = _segmental_f1(np.tensordot(weights, summary["segments"], axes=1))
        return values | {f"f1@{overlap}": f1[..., index] for index, overlap in enumerate(OVERLAPS)}

    def _details(self, summary: dict, weights: np.ndarray, rows: dict[str, int]) -> dict:
        means, counts = summary["video_means"], summary["counts"]
        repeated = np.repeat(np.arange(len(weights)), weights.astype(int))
        deviations = {
            f"{name}_sd": standard_deviation(values[repeated])
            for name, values in means.items()
            if name.startswith(("accuracy", "macro_"))
        }
        scores = summary["scores"][repeated]
        columns = dict(zip(SCORES, mean(scores, axis=0), strict=True))
        columns |= {f"{name}_sd": sd for name, sd in zip(SCORES, standard_deviation(scores, axis=0), strict=True)}
        pooled = phase_scores(np.tensordot(weights, summary["confusion"], axes=1))
        columns |= {f"framewise_{name}": values for name, values in zip(SCORES, pooled, strict=True)}
        columns |= {name: weighted_mean(weights, column) for name, column in summary["relaxed"].items()}
        occurs = {f"{kind}_videos": weights @ (counts[f"{kind}_frames"] > 0) for kind in ("annotated", "predicted")}
        return {
            **deviations,
            "frames": int(weights @ counts["annotated_frames"].sum(1)),
            "per_class": {
                phase: {
                    **{name: float(values[phase]) for name, values in columns.items()},
                    **{name: int(values[phase]) for name, values in occurs.items()},
                }
                for phase in range(self.num_labels)
            },
            "per_video": {
                video: {
                    **{name: float(values[row]) for name, values in means.items()},
                    "frames": int(counts["annotated_frames"][row].sum()),
                    **{
                        f"segments@{overlap}": summary["segments"][row, index].tolist()
                        for index, overlap in enumerate(OVERLAPS)
                    },
                    "per_class": {
                        phase: {name: int(values[row, phase]) for name, values in counts.items()}
                        for phase in range(self.num_labels)
                    },
                }
                for video, row in rows.items()
            },
        }


def phase_scores(confusion: np.ndarray) -> np.ndarray:
    """Compute precision, recall, F1, and Jaccard of each phase, with NaN where undefined.

    Args:
        confusion: array (..., num_labels, num_labels), frames by annotated (row) and predicted (column) phase.

    Returns:
        An array (..., 4, num_labels) in the order of `SCORES`.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    annotated, predicted = confusion.sum(-1), confusion.sum(-2)
    both = annotated + predicted
    return np.stack(
        [ratio(hits, predicted), ratio(hits, annotated), ratio(2 * hits, both), ratio(hits, both - hits)], axis=-2
    )


def _segmental_f1(counts: np.ndarray) -> np.ndarray:
    found, predicted, annotated = np.moveaxis(counts, -1, 0)
    return ratio(2 * found, predicted + annotated)
