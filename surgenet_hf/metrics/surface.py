"""Distances between the outlines of two masks, in pixels."""

import numpy as np


def class_surface_distances(
    prediction: np.ndarray, reference: np.ndarray, counted: np.ndarray, num_labels: int
) -> np.ndarray:
    """Compute the surface distances of each class that occurs in both the reference and the prediction of a frame.

    Ignored pixels belong to no class and form no edge.

    Args:
        prediction: class ids (H, W).
        reference: class ids (H, W).
        counted: bool (H, W), False for ignored pixels.
        num_labels: number of classes.

    Returns:
        float64 (num_labels, 3) in pixels, with the columns of `surface_distances`. NaN for a class without a surface
        in the reference or in the prediction.
    """
    from scipy.ndimage import find_objects

    # 0 stands for no class. The padding of one pixel makes the outside of the image count as outside of every class.
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
    """Compute ASSD and two variants of HD95 for two masks that are not empty.

    The surface of a mask consists of its pixels with at least one of their four neighbors outside the mask. The
    outside of the image counts as outside the mask. Let d(A, B) be the Euclidean distances from all pixels of surface
    A to the nearest pixel of surface B:

        ASSD        = mean of d(A, B) and d(B, A) together       (not the mean of the two means)
        HD95        = max(95th percentile of d(A, B), 95th percentile of d(B, A)), linearly interpolated
        pooled HD95 = 95th percentile of d(A, B) and d(B, A) together

    The first two are `compute_average_surface_distance(symmetric=True)` and
    `compute_hausdorff_distance(percentile=95)` of MONAI. The third is that of `inference_metrics.py` in SurgeNetDINO.

    Args:
        prediction: bool (H, W).
        reference: bool (H, W).

    Returns:
        (ASSD, HD95, pooled HD95) in pixels.
    """
    masks = [np.pad(mask, 1) for mask in (prediction, reference)]
    return _outline_distances(*(np.argwhere(surface(mask, np.zeros_like(mask))) for mask in masks))


def surface(mask: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Return the surface of a mask. An ignored neighbor does not count as outside the mask.

    Args:
        mask: bool (H, W), empty in the outermost rows and columns.
        ignored: bool (H, W).

    Returns:
        bool (H, W).
    """
    inside = mask | ignored
    enclosed = np.zeros_like(mask)
    enclosed[1:-1, 1:-1] = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return mask & ~enclosed


def _outline_distances(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Compute the distances of `surface_distances` between two outlines of pixel positions, (n, 2) and (m, 2)."""
    from scipy.spatial import KDTree

    # A tree on the outlines is exact, like a distance transform, but several times faster because outlines are short.
    there, back = (
        KDTree(to, balanced_tree=False, compact_nodes=False).query(start)[0]
        for start, to in ((prediction, reference), (reference, prediction))
    )
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(both.mean()), float(hd95), float(np.percentile(both, 95))
