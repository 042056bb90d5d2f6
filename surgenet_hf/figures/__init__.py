"""Figures from arrays: charts, curves, overlays, phase ribbons, and feature maps."""

from .charts import bar_figure, blob_figure, radar_figure
from .curves import precision_recall_figure
from .features import feature_figure, pca_to_rgb, scatter_figure, tsne
from .overlays import segmentation_figure
from .ribbons import phase_figure
from .style import save_both, save_figure

__all__ = [
    "bar_figure",
    "blob_figure",
    "feature_figure",
    "pca_to_rgb",
    "phase_figure",
    "precision_recall_figure",
    "radar_figure",
    "save_both",
    "save_figure",
    "scatter_figure",
    "segmentation_figure",
    "tsne",
]
