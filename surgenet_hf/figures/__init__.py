"""Arrays in, pictures out."""

from .overlays import save_figure, segmentation_figure

__all__ = ["save_figure", "segmentation_figure"]
