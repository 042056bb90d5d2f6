"""Dice, IoU, and surface distances of class maps, accumulated frame by frame.

Sources:
    `inference_metrics.py` of github.com/rlpddejong/SurgeNetDINO (the SurgeNet authors).
    `SegmentationMetrics` of github.com/DominikBatic/EndoViT.
    github.com/TimJaspers0801/ATLAS-bench.
"""

import math
from dataclasses import dataclass

import numpy as np

from .base import VideoMetric, check_ids, mean, ratio, weighted_mean
from .surface import class_surface_distances

BACKGROUND = "_with_background"


@dataclass(frozen=True)
class FrameRecord:
    """Pixel counts and surface distances of one frame.

    Attributes:
        video: id of the video of the frame.
        reference: pixel counts of the reference per class, int64 (num_labels,).
        predicted: pixel counts of the prediction per class, int64 (num_labels,).
        intersection: counts of correct pixels per class, int64 (num_labels,).
        distances: float64 (num_labels, 3), see `surface.class_surface_distances`. None if they are not computed.
        size: (height, width) of the class map.
    """

    video: str
    reference: np.ndarray
    predicted: np.ndarray
    intersection: np.ndarray
    distances: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)


class SegmentationMetric(VideoMetric):
    """Dice, IoU, ASSD, and HD95 of class maps.

    Pixels whose reference is `ignore_index` count neither as reference nor as prediction. A border with such pixels is
    not part of a surface. Each metric except `pixel_accuracy` is a mean over the foreground classes, which are all
    classes except `background_id`. Some metrics also exist as a mean over all classes, with the suffix
    `_with_background`. Without a `background_id`, all classes are foreground, and no metric has the suffix.

    For a class and a group of frames, with pixel counts summed over the group:

        Dice = 2 intersection / (reference + predicted)
        IoU  =   intersection / (reference + predicted - intersection)

    - **`video_dice`, `video_iou`** (the headline). Pixels are pooled per video and class. The mean is over the classes
      in the video's reference, then over videos. A class that is absent from a video's reference is excluded from that
      mean. Its predicted pixels count as `spurious_pixels`. A video whose reference has no foreground has no value.
    - **`video_assd`, `video_hd95`**. Distances are per frame and class, in pixels of the class map. The mean is over
      the frames with the class in the reference, then over the video's classes, then over videos. The distance of a
      missed class (in the reference but not predicted) is the frame's diagonal. `video_assd_found` and
      `video_hd95_found` exclude missed classes.
    - **`frame_dice`, `frame_iou`**. The mean is over the classes in a frame's reference, then over the frames of a
      video, then over videos.
    - **`pooled_dice`, `pooled_iou`, `pixel_accuracy`**. Pixels are pooled over all frames. For Dice and IoU, the mean
      is over the classes that occur in the reference or the prediction.
    - **`endovit_dice`, `endovit_iou`** (EndoViT). The mean is over the frames with the class in the reference or the
      prediction, then over classes. EndoViT's code includes the background, as `endovit_*_with_background` does.
    - **`atlas_dice`** (ATLAS-bench). The mean is over the frames with the class in the reference, then over classes.
      ATLAS-bench counts a class that no frame has as 0, but this metric excludes it.
    - **`surgenetdino_dice`** (SurgeNetDINO). Like `video_dice`, but a class that is only predicted counts as 0.
      **`surgenetdino_hd95`** is the 95th percentile of the distances in both directions together, without missed
      classes. The mean is over a video's frames with the class, then over classes, then over videos.

    Args:
        num_labels: number of classes. Valid ids are 0 to num_labels - 1.
        ignore_index: id of reference pixels that do not count.
        distances: whether to compute surface distances, by far the slowest part (needs scipy).
        background_id: id of the background class, or None if the data has none.

    Raises:
        ValueError: `ignore_index` is the id of a class, or `background_id` is not.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int = 255,
        distances: bool = True,
        background_id: int | None = None,
    ):
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index {ignore_index} is the id of one of the {num_labels} classes.")
        if background_id is not None and not 0 <= background_id < num_labels:
            raise ValueError(f"background_id {background_id} is not the id of one of the {num_labels} classes.")
        super().__init__()
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.distances = distances
        self.background_id = background_id
        self.foreground = np.arange(num_labels) != background_id

    def add(self, prediction: np.ndarray, reference: np.ndarray, video: str = "") -> None:
        """Add one frame.

        Args:
            prediction: integers (H, W), class ids.
            reference: integers (H, W), class ids or `ignore_index`.
            video: id of the video of the frame.

        Raises:
            ValueError: the arrays are not two-dimensional, do not hold integers, or differ in shape. Also raised if an
                id is not a class.
        """
        where = f"Frame {len(self.records)} (video {video!r})"
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.ndim != 2 or prediction.shape != reference.shape:
            raise ValueError(
                f"{where}: prediction and reference must have the same shape (H, W), "
                f"found {prediction.shape} and {reference.shape}."
            )
        counted = reference != self.ignore_index
        check_ids(where, "prediction", prediction, self.num_labels)
        check_ids(where, "reference", reference[counted], self.num_labels)
        distances = None
        if self.distances:
            distances = class_surface_distances(prediction, reference, counted, self.num_labels)
        height, width = reference.shape
        prediction, reference = prediction[counted], reference[counted]
        maps = (reference, prediction, reference[reference == prediction])
        of_reference, of_prediction, of_both = (self._count(ids) for ids in maps)
        self.records.append(FrameRecord(video, of_reference, of_prediction, of_both, distances, (height, width)))

    def compute(self, videos=None) -> dict:
        """Compute the metrics.

        The result has these entries, which are NaN where undefined:

        - The metrics that the docstring of the class lists, as floats.
        - `frames`: number of frames.
        - `background_frames`: number of frames whose reference has no foreground.
        - `videos_without_foreground`: ids of the videos whose reference has no foreground.
        - `per_class`: a dict for each class id.
            - `dice`, `iou`: Dice and IoU of the pooled pixels.
            - `video_dice`, `video_iou`, `video_assd`, `video_hd95`, `video_assd_found`, `video_hd95_found`: means over
              videos.
            - `videos`: number of videos with the class in the reference.
            - `reference_frames`, `missed_frames`, `spurious_frames`: numbers of frames.
            - `spurious_pixels`: predicted pixels in videos without the class.
        - `per_video`: a dict for each video.
            - The metrics that are means over videos, and `frames`.
            - `per_class`: for each class id, the three pixel counts and the three frame counts. Also `frame_dice`,
              `frame_iou`, `assd`, `hd95`, `assd_found`, `hd95_found`, and `pooled_hd95_found`, which are means over
              the frames with the class in the reference.

        Args:
            videos: ids of the videos to include, which may repeat. None means all videos.

        Returns:
            A dict with the entries above.

        Raises:
            ValueError: no frame was added, `videos` is empty, or one of `videos` was not added.
        """
        return super().compute(videos)

    def definitions(self) -> dict[str, str | list]:
        """Return a description of the metrics' conventions, for a results file."""
        excluded = "none: every class is foreground"
        if self.background_id is not None:
            excluded = f"class {self.background_id}, excluded unless the metric's name ends in {BACKGROUND}"
        return {
            "headline": "video_dice",
            "pooling": "video_*: pixels pooled per video and class, mean over classes, then over videos; frame_*: "
            "mean over the classes of a frame, then over frames, then over videos; pooled_*: pixels of all frames "
            "pooled per class, mean over classes",
            "background": excluded,
            "absent_classes": "a class that is not in the reference of a video (frame) is excluded from the mean of "
            "the video (frame), and its predicted pixels count as spurious_pixels; pooled_* and surgenetdino_dice "
            "count it as 0 where it is predicted",
            "missed_classes": "a class that is in the reference of a frame, but not in its prediction, counts with "
            "Dice 0, IoU 0, and the frame's diagonal as its distance; *_found excludes it",
            "distances": "in pixels of the class map; ASSD: mean over both surfaces; HD95: larger of the two directed "
            "95th percentiles; ignored pixels form no edge",
            "pixel_accuracy": "share of correct pixels of all frames, including background",
            "map_size": sorted({tuple(map(int, record.size)) for record in self.records}),
            "endovit": "per class, mean over the frames that have it in reference or prediction, then over classes; "
            "EndoViT's own code includes the background: compare endovit_*_with_background",
            "atlas": "per class, mean over the frames that have it in the reference, then over classes; a class that "
            "no frame has is left out, whereas ATLAS-bench's code counts it as 0",
            "surgenetdino": "Dice: as video_dice, but predicted classes that are absent count as 0; HD95: 95th "
            "percentile of both directions together, without missed classes, mean over frames, classes, then videos",
        }

    def _summarise(self, videos: dict[str, list[FrameRecord]]) -> dict:
        rows = [self._summarise_video(records) for records in videos.values()]
        return {
            key: {name: np.array([row[key][name] for row in rows]) for name in rows[0][key]}
            for key in ("sums", "means")
        } | {"video_means": self._video_means(rows)}

    def _summarise_video(self, records: list[FrameRecord]) -> dict[str, dict[str, np.ndarray]]:
        """Summarize the frames of one video.

        Returns:
            A dict of three dicts. "sums" has counts over all frames, mostly per class (num_labels,). "means" has means
            per class over the frames with the class in the reference. "of_frames" has means over classes, then over
            frames.
        """
        counts = np.array([(record.reference, record.predicted, record.intersection) for record in records])
        there, predicted = counts[:, 0] > 0, counts[:, 1] > 0
        dice, iou = (np.where(there, score, np.nan) for score in dice_and_iou(*np.moveaxis(counts, 1, 0)))
        sums = {
            "reference_pixels": counts[:, 0].sum(0),
            "predicted_pixels": counts[:, 1].sum(0),
            "intersection_pixels": counts[:, 2].sum(0),
            "reference_frames": there.sum(0),
            "missed_frames": (there & ~predicted).sum(0),
            "spurious_frames": (predicted & ~there).sum(0),
            "frames": len(records),
            "background_frames": int((~there[:, self.foreground].any(1)).sum()),
        }
        of_classes = {"frame_dice": dice, "frame_iou": iou}
        if self.distances:
            found = np.array([record.distances for record in records])
            diagonals = np.array([np.hypot(*record.size) for record in records])[:, None]
            for index, name in enumerate(("assd", "hd95")):
                of_classes[name] = np.where(there & ~predicted, diagonals, found[..., index])
            for index, name in enumerate(("assd_found", "hd95_found", "pooled_hd95_found")):
                of_classes[name] = found[..., index]
        of_frames = {
            f"{name}{suffix}": _exact_mean(mean(values[:, classes], axis=1)[:, None])[0]
            for suffix, classes in self._class_sets()
            for name, values in (("frame_dice", dice), ("frame_iou", iou))
        }
        means = {name: _exact_mean(values) for name, values in of_classes.items()}
        return {"sums": sums, "means": means, "of_frames": of_frames}

    def _class_sets(self) -> list[tuple[str, np.ndarray]]:
        """Return pairs (suffix of metric names, classes that these metrics average over as bool (num_labels,))."""
        everything = np.ones(self.num_labels, bool)
        return [("", self.foreground)] + [(BACKGROUND, everything)] * (self.background_id is not None)

    def _video_means(self, rows: list[dict]) -> dict[str, np.ndarray]:
        """Compute the metrics that are means over videos, as {name: values (videos,)}."""
        sums, means = (
            {name: np.array([row[key][name] for row in rows]) for name in rows[0][key]} for key in ("sums", "means")
        )
        pooled = dice_and_iou(sums["reference_pixels"], sums["predicted_pixels"], sums["intersection_pixels"])
        there = sums["reference_pixels"] > 0
        of_classes = dict(zip(("video_dice", "video_iou"), (np.where(there, s, np.nan) for s in pooled), strict=True))
        if self.distances:
            names = ("assd", "hd95", "assd_found", "hd95_found")
            of_classes |= {f"video_{name}": means[name] for name in names}
        columns: dict[str, np.ndarray] = {}
        for suffix, classes in self._class_sets():
            columns |= {f"{name}{suffix}": mean(values[:, classes], axis=1) for name, values in of_classes.items()}
            for name in ("frame_dice", "frame_iou"):
                columns[f"{name}{suffix}"] = np.array([row["of_frames"][f"{name}{suffix}"] for row in rows])
        columns["surgenetdino_dice"] = mean(pooled[0][:, self.foreground], axis=1)
        if self.distances:
            columns["surgenetdino_hd95"] = mean(means["pooled_hd95_found"][:, self.foreground], axis=1)
        return columns

    def _values(self, summary: dict, weights: np.ndarray) -> dict[str, np.ndarray]:
        sums, means = summary["sums"], summary["means"]
        values = {name: weighted_mean(weights, column) for name, column in summary["video_means"].items()}
        reference, predicted, intersection = self._pooled_counts(summary, weights)
        frames, spurious = weights @ sums["reference_frames"], weights @ sums["spurious_frames"]
        # If a class is only in the reference or only in the prediction of a frame, its Dice and IoU there are 0.
        per_class = {
            **dict(zip(("pooled_dice", "pooled_iou"), dice_and_iou(reference, predicted, intersection), strict=True)),
            **{
                f"endovit_{name}": ratio(
                    weights @ (np.nan_to_num(means[f"frame_{name}"]) * sums["reference_frames"]), frames + spurious
                )
                for name in ("dice", "iou")
            },
        }
        for suffix, classes in self._class_sets():
            values |= {f"{name}{suffix}": mean(found[..., classes], axis=-1) for name, found in per_class.items()}
        atlas = ratio(weights @ (np.nan_to_num(means["frame_dice"]) * sums["reference_frames"]), frames)
        values["atlas_dice"] = mean(atlas[..., self.foreground], axis=-1)
        values["pixel_accuracy"] = ratio(intersection.sum(-1), reference.sum(-1))
        return values

    def _pooled_counts(self, summary: dict, weights: np.ndarray) -> list[np.ndarray]:
        return [weights @ summary["sums"][f"{name}_pixels"] for name in ("reference", "predicted", "intersection")]

    def _details(self, summary: dict, weights: np.ndarray, rows: dict[str, int]) -> dict:
        sums, means = summary["sums"], summary["means"]
        class_sums = [name for name, values in sums.items() if values.ndim == 2]
        there = sums["reference_pixels"] > 0
        pooled = dice_and_iou(*(sums[f"{name}_pixels"] for name in ("reference", "predicted", "intersection")))
        columns = dict(zip(("dice", "iou"), dice_and_iou(*self._pooled_counts(summary, weights)), strict=True))
        for name, values in zip(("video_dice", "video_iou"), pooled, strict=True):
            columns[name] = weighted_mean(weights, np.where(there, values, np.nan))
        for name in ("assd", "hd95", "assd_found", "hd95_found"):
            if name in means:
                columns[f"video_{name}"] = weighted_mean(weights, means[name])
        counts = {
            "videos": weights @ there,
            **{name: weights @ sums[name] for name in class_sums if name.endswith("_frames")},
            "spurious_pixels": weights @ (sums["predicted_pixels"] * ~there),
        }
        return {
            "frames": int(weights @ sums["frames"]),
            "background_frames": int(weights @ sums["background_frames"]),
            "videos_without_foreground": [v for v, row in rows.items() if not there[row, self.foreground].any()],
            "per_class": {
                index: {
                    **{name: float(values[index]) for name, values in columns.items()},
                    **{name: int(values[index]) for name, values in counts.items()},
                }
                for index in range(self.num_labels)
            },
            "per_video": {
                video: {
                    **{name: float(values[row]) for name, values in summary["video_means"].items()},
                    "frames": int(sums["frames"][row]),
                    "per_class": {
                        index: {
                            **{name: int(sums[name][row, index]) for name in class_sums},
                            **{name: float(values[row, index]) for name, values in means.items()},
                        }
                        for index in range(self.num_labels)
                    },
                }
                for video, row in rows.items()
            },
        }

    def _count(self, ids: np.ndarray) -> np.ndarray:
        return np.bincount(ids.ravel(), minlength=self.num_labels)


def dice_and_iou(
    reference: np.ndarray, predicted: np.ndarray, intersection: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute Dice and IoU from arrays of pixel counts of the same shape, with NaN where both masks are empty."""
    return (
        ratio(2 * intersection, reference + predicted),
        ratio(intersection, reference + predicted - intersection),
    )


def _exact_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of the values that are not NaN.

    The result is bit-identical for any order of the values, because `math.fsum` rounds only once.
    """
    columns = values.reshape(len(values), -1).T
    kept = [column[~np.isnan(column)] for column in columns]
    means = [math.fsum(column) / len(column) if len(column) else math.nan for column in kept]
    return np.array(means).reshape(values.shape[1:])
