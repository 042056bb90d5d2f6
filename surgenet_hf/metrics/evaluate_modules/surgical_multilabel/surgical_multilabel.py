"""`surgenet_hf.metrics.MultiLabelMetric` for `evaluate.load`."""

import datasets
import evaluate

from surgenet_hf.metrics import MultiLabelMetric

VALUES = datasets.Sequence(datasets.Value("float64"))


class SurgicalMultilabel(evaluate.Metric):
    """`evaluate` module whose items are single frames.

    A frame has scores (k,) as prediction, soft targets (k,) as reference, and the id of its video.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Average precision and balanced accuracy of each criterion, from soft targets.",
            citation="",
            inputs_description=MultiLabelMetric.__doc__ + "\n\nMetrics: " + MultiLabelMetric.compute.__doc__,
            features=datasets.Features(
                {"predictions": VALUES, "references": VALUES, "videos": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, videos, num_labels, video_wise=False):
        metric = MultiLabelMetric(num_labels, video_wise)
        metric.add(predictions, references, videos)
        return metric.compute()
