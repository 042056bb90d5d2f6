"""Distances between the outlines of two masks, in pixels."""

import numpy as np


def class_surface_distances(
    prediction: np.ndarray, reference: np.ndarray, counted: np.ndarray, num_labels: int
) -> np.ndarray:
    """Compute the surface distances of each class of a frame that is both in the reference and in the prediction.

    Ignored pixels belong to no class and form no edge.

    Args:
        prediction, reference: (H, W) class ids.
        counted: (H, W) bool, False for ignored pixels.

    Returns:
        (num_labels, 3) float64 in pixels: see `surface_distances`. NaN for a class without a surface on either side.
    """
    from scipy.ndimage import find_objects

    # 0 is no class; a border of one pixel lies outside the image and counts as outside of every class
    maps = [np.pad(np.where(counted, ids.astype(np.int32) + 1, 0), 1) for ids in (prediction, reference)]
    ignored = np.pad(~counted, 1)
    boxes = [find_objects(ids, max_label=num_labels) for ids in maps]
    distances = np.full((num_labels, 3), np.nan)
    for index, (predicted, referenced) in enumerate(zip(*boxes, strict=True)):
        if predicted is None or referenced is None:
            continue
        box = tuple(
            slice(min(a.start, b.start) - 1, max(a.stop, b.stop) + 1)
            for a, b in zip(predicted, referenced, strict=True)
        )
        outlines = [np.argwhere(surface(ids[box] == index + 1, ignored[box])) for ids in maps]
        if all(map(len, outlines)):
            distances[index] = _outline_distances(*outlines)
    return distances


def surface_distances(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Compute ASSD and two kinds of HD95 of two masks that are not empty, in pixels.

    The surface of a mask consists of its pixels that have one of their four neighbors outside the mask. Outside the
    image counts as outside. With d(A, B) the Euclidean distances of all pixels of surface A to the nearest of B:

        ASSD        = mean of d(A, B) and d(B, A) together       (not the mean of the two means)
        HD95        = max(95th percentile of d(A, B), 95th percentile of d(B, A)), linearly interpolated
        pooled HD95 = 95th percentile of d(A, B) and d(B, A) together

    The first two are MONAI's `compute_average_surface_distance(symmetric=True)` and
    `compute_hausdorff_distance(percentile=95)`. The third is that of SurgeNetDINO's `inference_metrics.py`.

    Args:
        prediction, reference: (H, W) bool.

    Returns:
        (ASSD, HD95, pooled HD95)
    """
    masks = [np.pad(mask, 1) for mask in (prediction, reference)]
    return _outline_distances(*(np.argwhere(surface(mask, np.zeros_like(mask))) for mask in masks))


def surface(mask: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The surface (H, W) of a mask (H, W), both bool; a neighbor that is ignored is not outside.

    The outermost rows and columns of the mask must be empty.
    """
    inside = mask | ignored
    enclosed = np.zeros_like(mask)
    enclosed[1:-1, 1:-1] = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return mask & ~enclosed


def _outline_distances(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Distances of two outlines, (n, 2) and (m, 2) pixel positions."""
    from scipy.spatial import KDTree

    # A tree on the outlines is exact, as a distance transform is, and several times faster: outlines are short.
    there, back = (
        KDTree(to, balanced_tree=False, compact_nodes=False).query(start)[0]
        for start, to in ((prediction, reference), (reference, prediction))
    )
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(both.mean()), float(hd95), float(np.percentile(both, 95))
