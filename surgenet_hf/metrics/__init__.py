"""Metrics: accumulators that take arrays and keep a small record per frame or video.

Each metric has `add`, `records`, `videos`, and `compute(videos=None)`. The records of other processes can be appended
to `records`. `compute` returns a dict whose floats are the scalar metrics, with "per_class" and "per_video" for
details. `evaluation.statistics` provides confidence intervals and tests over videos.

The same metrics exist as modules of `evaluate`: `evaluate.load(str(EVALUATE_MODULES / "surgical_segmentation"))`, or
"surgical_phase", "surgical_multilabel".
"""

from pathlib import Path

from .multilabel import MultiLabelMetric, ScoreRecord
from .phase import PhaseMetric, PhaseRecord
from .segmentation import FrameRecord, SegmentationMetric
from .sequences import CHOLEC80_TRANSITIONS

EVALUATE_MODULES = Path(__file__).parent / "evaluate_modules"

__all__ = [
    "CHOLEC80_TRANSITIONS",
    "EVALUATE_MODULES",
    "FrameRecord",
    "MultiLabelMetric",
    "PhaseMetric",
    "PhaseRecord",
    "ScoreRecord",
    "SegmentationMetric",
]
