"""Arrays in, numbers out: accumulating cores that keep a small record per frame."""

from .segmentation import FrameRecord, SegmentationMetric

__all__ = ["FrameRecord", "SegmentationMetric"]
