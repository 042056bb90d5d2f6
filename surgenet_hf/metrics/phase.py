"""Phase recognition: frame-wise, relaxed and segmental figures of whole videos.

Sources:
    Funke, Rivoir, Speidel: Metrics Matter in Surgical Phase Recognition, arXiv 2305.13961, 2023.
    `Evaluate.m` of the M2CAI 2016 workflow challenge and its revision for Cholec80 (relaxed boundaries).
    `eval.py` of MS-TCN, Abu Farha and Gall, CVPR 2019 (edit score, segmental F1).
"""

from dataclasses import dataclass

import numpy as np

from .base import VideoMetric, check_ids, mean, ratio, standard_deviation
from .sequences import Transitions, edit_score, relaxed_correct, segment_matches

SCORES = ("precision", "recall", "f1", "jaccard")
OVERLAPS = (10, 25, 50)


@dataclass(frozen=True)
class PhaseRecord:
    """What is kept of one video.

    confusion: int64 (num_labels, num_labels), frames by annotated (row) and predicted (column) phase.
    relaxed_hits: int64 (num_labels,), the relaxed true positives of each phase; see `PhaseMetric`.
    relaxed_correct: number of frames that are right or accepted.
    edit: edit score, 0 to 1.
    segments: int64 (3, 3), per overlap of 10, 25, 50 %: segments found, predicted, annotated.
    """

    video: str
    confusion: np.ndarray
    relaxed_hits: np.ndarray
    relaxed_correct: int
    edit: float
    segments: np.ndarray


class PhaseMetric(VideoMetric):
    """Figures of phase recognition, all from 0 to 1.

    With tp, predicted and annotated the frames of a phase in one video:

        precision = tp / predicted    f1      = 2 tp / (predicted + annotated)
        recall    = tp / annotated    jaccard =   tp / (predicted + annotated - tp)

    The choices of Funke et al., made explicit:

    - **Absent phases.** Default (their strategy A): only what is undefined (0 / 0) is left out: precision of a phase
      that was not predicted in the video, recall of one that is not annotated, F1 and Jaccard of one that is neither.
      A phase that is predicted though not annotated thus has precision, F1 and Jaccard 0, and they count.
      `..._annotated` (strategy B): every value of a phase that is not annotated in the video is left out as well
      (recall is the same under both).
    - **Video-wise.** `macro_...`: averaged over the phases of a video, then over videos; `..._sd` is the sample
      standard deviation over videos (n - 1). F1 is the mean of the phases' F1, not the F1 of mean precision and mean
      recall, which is larger. In `per_class` each phase's values are averaged over the videos that have one; the mean
      of those over phases is the other order found in the literature, and another number.
    - **Frame-wise.** `framewise_...`: the frames of all videos are pooled in one confusion matrix, and strategy A is
      applied to that. Long videos weigh more.
    - **Relaxed boundaries.** Near the borders of an annotated segment the neighbouring phase is accepted: in its
      first `relaxed_seconds` the phase of the annotated segment before it, in its last `relaxed_seconds` the phase of
      the one after it (a shorter segment is relaxed as a whole). With `transitions` given these decide instead of the
      annotated neighbours; `CHOLEC80_TRANSITIONS` is the rule of the challenge script for Cholec80. As in the
      challenge, tp of a phase counts every frame, annotated or predicted as that phase, that is right or accepted;
      jaccard divides it by the number of those frames, precision by predicted, recall by annotated. Precision and
      recall can so exceed 1 and are cut to 1. Phases not annotated in the video are left out (strategy B). They are
      averaged over videos, then over phases, as in the challenge. Not followed: the challenge script applies the mask
      of a segment's last frames to its first ones (`curDiff(curDiff(end-t+1:end)==1) = 0`), so that figures of the
      unrepaired script differ; and a phase that was not predicted has no relaxed precision here, where the script
      has infinity cut to 1 as soon as one of its frames is accepted.
    - **Segments** (MS-TCN). A segment is a run of frames of one phase. Edit score: 1 - Levenshtein distance of the two
      sequences of phases / length of the longer one, averaged over videos. F1@k: a predicted segment is found if the
      annotated segment of its phase that it overlaps most is overlapped by an IoU of at least k % and not yet taken;
      counts are pooled over videos, 2 found / (predicted + annotated). `per_video` has the F1@k of each video.

    Args:
        num_labels: number of phases; valid ids are 0 ... num_labels - 1.
        relaxed_seconds: width of the relaxed borders.
        frames_per_second: of the sequences that are added.
        transitions: {phase: (accepted at its start, accepted at its end)}.
    """

    record_type = PhaseRecord

    def __init__(
        self,
        num_labels: int,
        relaxed_seconds: float = 10,
        frames_per_second: float = 1.0,
        transitions: Transitions | None = None,
    ):
        tolerance = round(relaxed_seconds * frames_per_second)
        super().__init__(num_labels=num_labels, tolerance=tolerance, transitions=transitions)
        self.num_labels = num_labels
        self.tolerance = tolerance
        self.transitions = transitions

    def add(self, prediction: np.ndarray, reference: np.ndarray, video: str) -> None:
        """Add one whole video.

        Args:
            prediction, reference: (T,) integers, the phase of each frame in order.
            video: its id, which must be new.

        Raises:
            ValueError: a video that is empty or was added before, sequences of another shape, an id that is no phase.
        """
        where = f"Video {video!r}"
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.ndim != 1 or prediction.shape != reference.shape or not prediction.size:
            raise ValueError(
                f"{where}: prediction and reference must be of one shape (T,) with at least one frame, "
                f"found {prediction.shape} and {reference.shape}."
            )
        for name, ids in (("prediction", prediction), ("reference", reference)):
            check_ids(where, name, ids, self.num_labels)
        prediction, reference = prediction.astype(np.int64), reference.astype(np.int64)
        pairs = np.bincount(reference * self.num_labels + prediction, minlength=self.num_labels**2)
        correct = relaxed_correct(prediction, reference, self.tolerance, self.transitions)
        twice = correct & (prediction == reference)  # in the sum below these would count for their one phase twice
        hits = sum(np.bincount(ids[correct], minlength=self.num_labels) for ids in (prediction, reference))
        hits -= np.bincount(reference[twice], minlength=self.num_labels)
        record = PhaseRecord(
            video,
            pairs.reshape(self.num_labels, self.num_labels),
            hits,
            int(correct.sum()),
            edit_score(prediction, reference),
            np.array([segment_matches(prediction, reference, overlap / 100) for overlap in OVERLAPS]),
        )
        self._append(record)

    def compute(self, videos=None) -> dict:
        """The figures of these videos (a list, with repeats if wanted), by default of all.

        Returns:
            accuracy: share of right frames of a video, averaged over videos, and accuracy_sd.
            macro_precision, macro_recall, macro_f1, macro_jaccard, each with ..._sd;
            macro_precision_annotated, macro_f1_annotated, macro_jaccard_annotated, each with ..._sd.
            framewise_accuracy, framewise_precision, framewise_recall, framewise_f1, framewise_jaccard.
            relaxed_accuracy (averaged over videos), relaxed_precision, relaxed_recall, relaxed_jaccard.
            edit_score, f1@10, f1@25, f1@50.
            frames: number of frames.
            per_class: {phase: precision, recall, f1, jaccard: means over videos, each with ..._sd; the same
                framewise_...; relaxed_precision, relaxed_recall, relaxed_jaccard; annotated_videos and
                predicted_videos: in how many videos it occurs}.
            per_video: {video: accuracy, macro_..., relaxed_accuracy, edit_score, f1@10, f1@25, f1@50, frames}.
            Where nothing is defined the value is NaN.

        Raises:
            ValueError: no video was added, none is named, or one that was not added.
        """
        return super().compute(videos)

    def _append(self, record: PhaseRecord) -> None:
        if len(record.confusion) != self.num_labels:
            raise ValueError(
                f"Video {record.video!r}: expected a record of {self.num_labels} phases, "
                f"found {len(record.confusion)}."
            )
        if any(other.video == record.video for other in self.records):
            raise ValueError(f"Video {record.video!r} was added before: a video is added once, as a whole.")
        self.records.append(record)

    def _summarise(self, videos: dict[str, list[PhaseRecord]]) -> dict[str, np.ndarray]:
        records = [record for records in videos.values() for record in records]
        confusion = np.array([record.confusion for record in records])
        annotated, predicted, frames = confusion.sum(2), confusion.sum(1), confusion.sum((1, 2))
        scores = phase_scores(confusion)
        in_annotation = np.where(annotated[:, None] > 0, scores, np.nan)
        hits = np.array([record.relaxed_hits for record in records])
        union = annotated + predicted - np.diagonal(confusion, axis1=1, axis2=2)
        relaxed = np.stack([ratio(hits, predicted), ratio(hits, annotated), ratio(hits, union)], 1).clip(max=1)
        segments = np.array([record.segments for record in records])
        per_video = {"accuracy": ratio(np.trace(confusion, axis1=1, axis2=2), frames)}
        for index, name in enumerate(SCORES):
            per_video[f"macro_{name}"] = mean(scores[:, index], axis=1)
            if name != "recall":
                per_video[f"macro_{name}_annotated"] = mean(in_annotation[:, index], axis=1)
        per_video["relaxed_accuracy"] = np.array([record.relaxed_correct for record in records]) / frames
        per_video["edit_score"] = np.array([record.edit for record in records])
        for index, overlap in enumerate(OVERLAPS):
            per_video[f"f1@{overlap}"] = _segmental_f1(segments[:, index])
        return {
            "confusion": confusion,
            "scores": scores,
            "relaxed": np.where(annotated[:, None] > 0, relaxed, np.nan),
            "segments": segments,
            "occurs": np.stack([annotated > 0, predicted > 0], 1),
            "per_video": per_video,
        }

    def _figures(self, summary: dict, rows: np.ndarray, distinct: list[tuple[int, str]]) -> dict:
        per_video, confusion = summary["per_video"], summary["confusion"]
        pooled, pooled_scores = confusion[rows].sum(0), phase_scores(confusion[rows].sum(0))
        relaxed, scores = mean(summary["relaxed"][rows], axis=0), summary["scores"][rows]
        figures = {}
        for name, values in per_video.items():
            if name.startswith(("accuracy", "macro_")):
                figures[name], figures[f"{name}_sd"] = mean(values[rows]), standard_deviation(values[rows])
        figures["framewise_accuracy"] = float(ratio(np.trace(pooled), pooled.sum()))
        figures |= {
            f"framewise_{name}": mean(of_phases) for name, of_phases in zip(SCORES, pooled_scores, strict=True)
        }
        figures["relaxed_accuracy"] = mean(per_video["relaxed_accuracy"][rows])
        names = [f"relaxed_{name}" for name in ("precision", "recall", "jaccard")]
        figures |= {name: mean(of_phases) for name, of_phases in zip(names, relaxed, strict=True)}
        figures["edit_score"] = mean(per_video["edit_score"][rows])
        pooled_f1 = _segmental_f1(summary["segments"][rows].sum(0))
        figures |= {f"f1@{overlap}": float(f1) for overlap, f1 in zip(OVERLAPS, pooled_f1, strict=True)}
        columns = dict(zip(SCORES, mean(scores, axis=0), strict=True))
        columns |= {f"{name}_sd": sd for name, sd in zip(SCORES, standard_deviation(scores, axis=0), strict=True)}
        columns |= {f"framewise_{name}": values for name, values in zip(SCORES, pooled_scores, strict=True)}
        columns |= dict(zip(names, relaxed, strict=True))
        annotated_videos, predicted_videos = summary["occurs"][rows].sum(0)
        return {
            **figures,
            "frames": int(pooled.sum()),
            "per_class": {
                phase: {
                    **{name: float(values[phase]) for name, values in columns.items()},
                    "annotated_videos": int(annotated_videos[phase]),
                    "predicted_videos": int(predicted_videos[phase]),
                }
                for phase in range(self.num_labels)
            },
            "per_video": {
                video: {
                    **{name: float(values[row]) for name, values in per_video.items()},
                    "frames": int(confusion[row].sum()),
                }
                for row, video in distinct
            },
        }


def phase_scores(confusion: np.ndarray) -> np.ndarray:
    """Precision, recall, F1, Jaccard of each phase, NaN where undefined.

    Args:
        confusion: (..., num_labels, num_labels), frames by annotated (row) and predicted (column) phase.

    Returns:
        (..., 4, num_labels) in the order of `SCORES`.
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
