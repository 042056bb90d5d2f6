"""Dice, IoU and surface distances of class maps, accumulated frame by frame."""

import math
from dataclasses import dataclass

import numpy as np

from .base import VideoMetric, check_ids, mean, ratio
from .surface import class_surface_distances

VIDEO_MEANS = ("mean_dice", "mean_iou", "mean_frame_dice", "mean_frame_iou", "mean_assd", "mean_hd95")
CLASS_FRAMES = ("reference_frames", "missed", "spurious")


@dataclass(frozen=True)
class FrameRecord:
    """What is kept of one frame.

    video: the video it comes from.
    reference, predicted, intersection: pixel counts per class, each int64 of shape (num_labels,).
    distances: ASSD and HD95 per class in pixels, float64 of shape (num_labels, 2), or None if they were not asked for.
    """

    video: str
    reference: np.ndarray
    predicted: np.ndarray
    intersection: np.ndarray
    distances: np.ndarray | None = None


class SegmentationMetric(VideoMetric):
    """Dice and IoU per class from pixel counts, ASSD and HD95 per class from outlines.

    Pixels whose reference is `ignore_index` count nowhere: neither as reference nor as prediction.

    **Pooled.** For each class c, with pixel counts summed over a group of frames (the whole sample, or one video):

        Dice[c] = 2 intersection[c] / (reference[c] + predicted[c])
        IoU[c]  =   intersection[c] / (reference[c] + predicted[c] - intersection[c])

    A class found in neither reference nor prediction of the group has no value (NaN) and is left out of every
    mean; a class that is predicted but not in the reference, or the reverse, has the value 0 and counts.

    **Frame by frame.** Dice, IoU, ASSD and HD95 (in pixels of the map, see `surface.surface_distances`) of each class
    in each frame are averaged over the classes present in the frame's reference, then over the frames of a video,
    then over videos. A class present in the reference but not predicted at all has Dice and IoU 0 and both distances
    the frame's diagonal; a class predicted but absent from the reference has no distance and takes no part here (the
    pooled figures punish it). How often both happened is said per class. All classes take part, id 0 too.

    Args:
        num_labels: number of classes; valid ids are 0 ... num_labels - 1.
        ignore_index: the id of reference pixels that do not count.
        distances: also compute ASSD and HD95, by far the slowest part (needs scipy).
    """

    record_type = FrameRecord

    def __init__(self, num_labels: int, ignore_index: int = 255, distances: bool = True):
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index {ignore_index} is the id of one of the {num_labels} classes.")
        super().__init__(num_labels=num_labels, ignore_index=ignore_index, distances=distances)
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.distances = distances

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
        check_ids(where, "prediction", prediction, self.num_labels)
        check_ids(where, "reference", reference[counted], self.num_labels)
        distances = None
        if self.distances:
            distances = class_surface_distances(prediction, reference, counted, self.num_labels)
        prediction, reference = prediction[counted], reference[counted]
        counts = (self._count(ids) for ids in (reference, prediction, reference[reference == prediction]))
        self._append(FrameRecord(video, *counts, distances))

    def compute(self, videos=None) -> dict:
        """The figures of these videos (a list, with repeats if wanted), by default of all.

        Returns:
            dice, iou: lists of num_labels pooled values, NaN for absent classes.
            mean_dice, mean_iou: their means over the classes that are not NaN.
            pixel_accuracy: share of counted pixels that are right.
            mean_video_dice, mean_video_iou: pooled per video, averaged over its classes, then over videos.
            mean_frame_dice, mean_frame_iou, mean_assd, mean_hd95: averaged over the classes of a frame's reference,
                over frames, over videos; the last two only with `distances`.
            frames: number of frames.
            video_dice: {video: mean over classes of its pooled Dice}.
            per_class: {class id: dice and iou (pooled), assd and hd95 (means over the frames of a video with the class
                in the reference, then over videos), and numbers of frames: reference_frames (in the reference),
                missed (of these, not predicted), spurious (predicted, not in the reference)}.
            per_video: {video: mean_dice and mean_iou (pooled), mean_frame_dice, mean_frame_iou, mean_assd, mean_hd95,
                frames}.

        Raises:
            ValueError: no frame was added, no video is named, or one that was not added.
        """
        return super().compute(videos)

    def _append(self, record: FrameRecord) -> None:
        if len(record.reference) != self.num_labels or (record.distances is None) == self.distances:
            raise ValueError(
                f"Expected a record of {self.num_labels} classes {'with' if self.distances else 'without'} distances, "
                f"found {len(record.reference)} {'without' if record.distances is None else 'with'}."
            )
        self.records.append(record)

    def _summarise(self, videos: dict[str, list[FrameRecord]]) -> dict[str, np.ndarray]:
        rows = [self._summarise_video(records) for records in videos.values()]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _summarise_video(self, records: list[FrameRecord]) -> dict:
        counts = np.array([(record.reference, record.predicted, record.intersection) for record in records])
        there, predicted = counts[:, 0] > 0, counts[:, 1] > 0
        dice, iou = _dice_and_iou(counts.sum(0))
        per_frame = [np.where(there, score, np.nan) for score in _dice_and_iou(counts)]
        summary = {
            "counts": counts.sum(0),
            "frames": len(records),
            "class_frames": np.array([there, there & ~predicted, predicted & ~there]).sum(1),
        }
        if self.distances:
            distances = np.array([record.distances for record in records])
            per_frame += [distances[..., 0], distances[..., 1]]
            summary["class_distances"] = _exact_mean(distances)
        frame_means = _exact_mean(np.stack([mean(values, axis=1) for values in per_frame], axis=1))
        return {**summary, "means": [mean(dice), mean(iou), *frame_means]}

    def _figures(self, summary: dict, rows: np.ndarray, distinct: list[tuple[int, str]]) -> dict:
        counts = summary["counts"][rows].sum(0)
        dice, iou = _dice_and_iou(counts)
        columns = {"dice": dice, "iou": iou}
        if self.distances:
            columns["assd"], columns["hd95"] = mean(summary["class_distances"][rows], axis=0).T
        class_frames = dict(zip(CLASS_FRAMES, summary["class_frames"][rows].sum(0), strict=True))
        video_dice, video_iou, *of_frames = mean(summary["means"][rows], axis=0).tolist()
        names = VIDEO_MEANS if self.distances else VIDEO_MEANS[:4]
        of_videos = {video: dict(zip(names, summary["means"][row].tolist(), strict=True)) for row, video in distinct}
        return {
            "dice": dice.tolist(),
            "iou": iou.tolist(),
            "mean_dice": mean(dice),
            "mean_iou": mean(iou),
            "pixel_accuracy": float(ratio(counts[2].sum(), counts[0].sum())),
            "mean_video_dice": video_dice,
            "mean_video_iou": video_iou,
            **dict(zip(names[2:], of_frames, strict=True)),
            "frames": int(summary["frames"][rows].sum()),
            "video_dice": {video: means["mean_dice"] for video, means in of_videos.items()},
            "per_class": {
                index: {
                    **{name: float(values[index]) for name, values in columns.items()},
                    **{name: int(values[index]) for name, values in class_frames.items()},
                }
                for index in range(self.num_labels)
            },
            "per_video": {
                video: {**of_videos[video], "frames": int(summary["frames"][row])} for row, video in distinct
            },
        }

    def _count(self, ids: np.ndarray) -> np.ndarray:
        return np.bincount(ids.ravel(), minlength=self.num_labels)


def _dice_and_iou(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (..., 3, num_labels) of reference, prediction and intersection -> two of (..., num_labels)."""
    reference, predicted, intersection = np.moveaxis(counts, -2, 0)
    return (
        ratio(2 * intersection, reference + predicted),
        ratio(intersection, reference + predicted - intersection),
    )


def _exact_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN, the same to the bit in whatever order processes add the frames."""
    columns = values.reshape(len(values), -1).T
    kept = [column[~np.isnan(column)] for column in columns]
    means = [math.fsum(column) / len(column) if len(column) else math.nan for column in kept]
    return np.array(means).reshape(values.shape[1:])
