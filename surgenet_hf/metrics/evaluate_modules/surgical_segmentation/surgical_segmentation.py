"""`surgenet_hf.metrics.SegmentationMetric` for `evaluate.load`."""

import datasets
import evaluate
import numpy as np

from surgenet_hf.metrics import SegmentationMetric

CLASS_MAP = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))


class SurgicalSegmentation(evaluate.Metric):
    """`evaluate` module whose items are single frames.

    A frame has class maps (H, W) as prediction and reference, and the id of its video.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Dice, IoU, ASSD and HD95 of class maps; averaged over classes, frames and videos.",
            citation="",
            inputs_description=SegmentationMetric.__doc__ + "\n\nMetrics: " + SegmentationMetric.compute.__doc__,
            features=datasets.Features(
                {"predictions": CLASS_MAP, "references": CLASS_MAP, "videos": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions, references, videos, num_labels, ignore_index=255, distances=True, background_id=None
    ):
        metric = SegmentationMetric(num_labels, ignore_index, distances, background_id)
        for prediction, reference, video in zip(predictions, references, videos, strict=True):
            metric.add(np.array(prediction), np.array(reference), video)
        return metric.compute()
