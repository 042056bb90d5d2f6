"""Phase sequences: runs, relaxed boundaries, edit score, and found segments, as defined in `PhaseMetric`."""

from collections.abc import Collection, Mapping

import numpy as np

# Cholec80 revision of the challenge's rule, with phases counted from 0. For each phase, it lists the phases that are
# accepted at the start and at the end of an annotated segment. Phases 3 to 6 can follow each other in several orders.
CHOLEC80_TRANSITIONS = {
    **{phase: ({phase - 1}, {phase + 1}) for phase in (0, 1, 2)},
    **{phase: ({phase - 1}, {phase + 1, phase + 2}) for phase in (3, 4)},
    **{phase: ({phase - 1, phase - 2}, {phase + 1, phase + 2}) for phase in (5, 6)},
}

Transitions = Mapping[int, tuple[Collection[int], Collection[int]]]


def relaxed_correct(
    prediction: np.ndarray,
    reference: np.ndarray,
    tolerance: int,
    transitions: Transitions | None = None,
    published: bool = False,
) -> np.ndarray:
    """Return which frames are correct, or accepted within `tolerance` frames of a boundary, see `PhaseMetric`.

    Args:
        prediction: predicted phases (T,).
        reference: annotated phases (T,).
        tolerance: width of a relaxed boundary in frames.
        transitions: as in `PhaseMetric`.
        published: whether to follow the published `Evaluate.m`, which applies the mask of a segment's last frames to
            its first frames.

    Returns:
        bool (T,).
    """
    correct = prediction == reference
    phases, starts, ends = segments(reference)
    for index, (phase, start, end) in enumerate(zip(phases.tolist(), starts, ends, strict=True)):
        late, early = phases[max(index - 1, 0) : index].tolist(), phases[index + 1 : index + 2].tolist()
        if transitions is not None:
            late, early = transitions.get(phase, ((), ()))
        width = min(tolerance, end - start)
        first, last = slice(start, start + width), slice(end - width, end)
        correct[first] |= np.isin(prediction[first], list(late))
        accepted = np.isin(prediction[last], list(early)) & ~(correct[last] & published)
        correct[first if published else last] |= accepted
    return correct


def segments(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs of equal labels in a sequence (T,): their labels, first frames, and end frames (exclusive)."""
    borders = np.flatnonzero(np.diff(labels)) + 1
    starts = np.concatenate([[0], borders])
    return labels[starts], starts, np.concatenate([borders, [len(labels)]])


def edit_score(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Return 1 - (Levenshtein distance of the two sequences of segments) / (length of the longer sequence)."""
    rows, columns = segments(prediction)[0], segments(reference)[0]
    steps = np.arange(len(columns) + 1)
    distances = steps
    for index, label in enumerate(rows, start=1):
        best = np.minimum(distances[1:] + 1, distances[:-1] + (columns != label))
        best = np.concatenate([[index], best])
        distances = np.minimum.accumulate(best - steps) + steps  # all insertions at once
    return float(1 - distances[-1] / max(len(rows), len(columns)))


def segment_matches(prediction: np.ndarray, reference: np.ndarray, overlap: float) -> tuple[int, int, int]:
    """Return the numbers of found, predicted, and annotated segments.

    A segment is found at an IoU of at least `overlap`, see `PhaseMetric`.
    """
    labels, starts, ends = segments(prediction)
    true_labels, true_starts, true_ends = segments(reference)
    taken = np.zeros(len(true_labels), bool)
    for label, start, end in zip(labels, starts, ends, strict=True):
        shared = np.minimum(end, true_ends) - np.maximum(start, true_starts)
        iou = shared / (np.maximum(end, true_ends) - np.minimum(start, true_starts)) * (label == true_labels)
        best = iou.argmax()
        taken[best] |= iou[best] >= overlap
    return int(taken.sum()), len(labels), len(true_labels)
