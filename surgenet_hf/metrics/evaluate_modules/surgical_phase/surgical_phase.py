"""`surgenet_hf.metrics.PhaseMetric` for `evaluate.load`."""

import datasets
import evaluate
import numpy as np

from surgenet_hf.metrics import PhaseMetric

PHASES = datasets.Sequence(datasets.Value("int64"))


class SurgicalPhase(evaluate.Metric):
    """`evaluate` module whose items are whole videos.

    A video has phases (T,) as prediction and reference, and its id.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Phase recognition: video-wise, frame-wise, relaxed, and segmental metrics.",
            citation="arXiv 2305.13961",
            inputs_description=PhaseMetric.__doc__ + "\n\nMetrics: " + PhaseMetric.compute.__doc__,
            features=datasets.Features(
                {"predictions": PHASES, "references": PHASES, "videos": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        videos,
        num_labels,
        relaxed_seconds=10,
        frames_per_second=1.0,
        transitions=None,
    ):
        metric = PhaseMetric(num_labels, relaxed_seconds, frames_per_second, transitions)
        for prediction, reference, video in zip(predictions, references, videos, strict=True):
            metric.add(np.array(prediction), np.array(reference), video)
        return metric.compute()
