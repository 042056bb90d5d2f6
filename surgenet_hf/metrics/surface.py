"""Distances between the outlines of two masks, in pixels."""

import numpy as np


def class_surface_distances(
    prediction: np.ndarray, reference: np.ndarray, counted: np.ndarray, num_labels: int
) -> np.ndarray:
    """ASSD and HD95 of each class of a frame.

    Pixels that do not count belong to no class, on either side. A class that the reference does not have has no
    distances (NaN). A class of the reference that was not predicted at all has no outline to measure from: both its
    distances are the image's diagonal, so that leaving a class out never pays.

    Args:
        prediction, reference: (H, W) class ids.
        counted: (H, W) bool, False for ignored pixels.

    Returns:
        (num_labels, 2) float64: ASSD and HD95 in pixels.
    """
    from scipy.ndimage import find_objects

    maps = [np.where(counted, ids.astype(np.int32) + 1, 0) for ids in (prediction, reference)]  # 0 is no class
    boxes = [find_objects(ids, max_label=num_labels) for ids in maps]
    distances = np.full((num_labels, 2), np.nan)
    for index, (predicted, referenced) in enumerate(zip(*boxes, strict=True)):
        if referenced is None:
            continue
        if predicted is None:
            distances[index] = np.hypot(*reference.shape)
            continue
        box = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(predicted, referenced, strict=True)
        )
        distances[index] = surface_distances(*(ids[box] == index + 1 for ids in maps))
    return distances


def surface_distances(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Average symmetric surface distance and 95 % Hausdorff distance of two masks that are not empty, in pixels.

    The surface of a mask is those of its pixels that have one of their four neighbours outside it; outside the
    image counts as outside. With d(A, B) the Euclidean distances of all pixels of surface A to the nearest of B:

        ASSD = mean of d(A, B) and d(B, A) together            (symmetric; not the mean of the two means)
        HD95 = max(95th percentile of d(A, B), 95th percentile of d(B, A)), linearly interpolated

    These are MONAI's `compute_average_surface_distance(symmetric=True)` and
    `compute_hausdorff_distance(percentile=95)`, in units of pixels.

    Args:
        prediction, reference: (H, W) bool.
    """
    from scipy.spatial import KDTree

    points = [np.argwhere(_surface(mask)) for mask in (prediction, reference)]
    # A tree on the outlines is exact, as a distance transform is, and several times faster: outlines are short.
    trees = [KDTree(outline, balanced_tree=False, compact_nodes=False) for outline in points]
    directed = [trees[1].query(points[0])[0], trees[0].query(points[1])[0]]
    return float(np.concatenate(directed).mean()), float(max(np.percentile(d, 95) for d in directed))


def _surface(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
