"""Dice and IoU of class maps, accumulated frame by frame."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FrameRecord:
    """What is kept of one frame: its video and three pixel counts per class, each int64 of shape (num_labels,)."""

    video: str
    reference: np.ndarray
    predicted: np.ndarray
    intersection: np.ndarray


class SegmentationMetric:
    """Dice and IoU per class from pixel counts.

    Pixels whose reference is `ignore_index` count nowhere: neither as reference nor as prediction.

    For each class c, with pixel counts summed over a group of frames (the whole split, or one video):

        Dice[c] = 2 intersection[c] / (reference[c] + predicted[c])
        IoU[c]  =   intersection[c] / (reference[c] + predicted[c] - intersection[c])

    A class found in neither reference nor prediction of the group has no value (NaN) and is left out of every
    mean; a class that is predicted but not in the reference, or the reverse, has the value 0 and counts.

    Args:
        num_labels: number of classes; valid ids are 0 ... num_labels - 1.
        ignore_index: the id of reference pixels that do not count.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255):
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index {ignore_index} is the id of one of the {num_labels} classes.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.records: list[FrameRecord] = []

    def add(self, prediction: np.ndarray, reference: np.ndarray, video: str = "") -> None:
        """Add one frame.

        Args:
            prediction: (H, W) integers, class ids.
            reference: (H, W) integers, class ids or `ignore_index`.
            video: the video that the frame comes from.

        Raises:
            ValueError: arrays that are not two-dimensional, of integers and of one shape, or an id that is no class.
        """
        where = f"Frame {len(self.records)} (video {video!r})"
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.ndim != 2 or prediction.shape != reference.shape:
            raise ValueError(
                f"{where}: prediction and reference must be of one shape (H, W), "
                f"found {prediction.shape} and {reference.shape}."
            )
        counted = reference != self.ignore_index
        for name, ids in (("prediction", prediction), ("reference", reference[counted])):
            if not np.issubdtype(ids.dtype, np.integer):
                raise ValueError(f"{where}: {name} must hold integer class ids, found {ids.dtype}.")
            if ids.size and (ids.min() < 0 or ids.max() >= self.num_labels):
                wrong = sorted({int(i) for i in np.unique(ids) if not 0 <= i < self.num_labels})
                raise ValueError(f"{where}: {name} holds the ids {wrong}, valid are 0 to {self.num_labels - 1}.")
        prediction, reference = prediction[counted], reference[counted]
        counts = (self._count(ids) for ids in (reference, prediction, reference[reference == prediction]))
        self.records.append(FrameRecord(video, *counts))

    def compute(self) -> dict:
        """All frames so far in numbers.

        Returns:
            dice, iou: lists of num_labels values from the pixels of all frames together, NaN for absent classes.
            mean_dice, mean_iou: their means over the classes that are not NaN.
            pixel_accuracy: share of counted pixels that are right.
            video_dice: for each video the mean over classes of Dice from the pixels of that video.
            mean_video_dice: the mean of these over videos (each counts the same, however many frames it has).
            frames: number of frames.

        Raises:
            ValueError: no frame was added.
        """
        if not self.records:
            raise ValueError("No frame was added: there is nothing to compute.")
        dice, iou, accuracy = self._scores(self.records)
        videos: dict[str, list[FrameRecord]] = {}
        for record in self.records:
            videos.setdefault(record.video, []).append(record)
        video_dice = {video: _mean(self._scores(records)[0]) for video, records in videos.items()}
        return {
            "dice": dice.tolist(),
            "iou": iou.tolist(),
            "mean_dice": _mean(dice),
            "mean_iou": _mean(iou),
            "pixel_accuracy": accuracy,
            "video_dice": video_dice,
            "mean_video_dice": _mean(np.array(list(video_dice.values()))),
            "frames": len(self.records),
        }

    def _count(self, ids: np.ndarray) -> np.ndarray:
        return np.bincount(ids.ravel(), minlength=self.num_labels)

    @staticmethod
    def _scores(records: list[FrameRecord]) -> tuple[np.ndarray, np.ndarray, float]:
        reference = sum(record.reference for record in records)
        predicted = sum(record.predicted for record in records)
        intersection = sum(record.intersection for record in records)
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an absent class
            dice = 2 * intersection / (reference + predicted)
            iou = intersection / (reference + predicted - intersection)
            accuracy = float(intersection.sum() / reference.sum())
        return dice, iou, accuracy


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
