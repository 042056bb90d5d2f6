"""Segmentation overlays with frame, reference, and prediction in one row."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .style import outline, picture_rows

FILL = 0.4  # opacity of a class over the frame
IGNORED = (200, 200, 200)  # color of reference pixels without a class
SPECK = 0.002  # share of the picture below which a class is painted without its id
NOT_PAINTED = "background"  # a class with this name is transparent


def segmentation_figure(
    frames: Sequence,
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    row_titles: Sequence[str] = (),
    title: str = "",
    ignore_index: int = 255,
) -> Figure:
    """Draw one row per frame with frame, reference, and prediction, above a legend of the classes that occur.

    Every class, except on very small areas, has its id in the picture and in the legend. Readers can therefore
    identify it without its color. A class named "background" is not painted. Pixels without a class are gray.

    Args:
        frames: RGB images, PIL or uint8 (H, W, 3).
        truths: reference class map (H, W) of integer ids for each frame. `ignore_index` marks pixels without a class.
        predictions: predicted class map (H, W) of integer ids for each frame.
        labels: name of each class id.
        colors: RGB color (0 to 255) of each class id.
        row_titles: a line of text for each frame, such as its video and number.
        title: title of the figure.
        ignore_index: id of pixels without a class.
    """
    frames = [np.asarray(frame) for frame in frames]
    present = sorted({int(i) for maps in (truths, predictions) for one in maps for i in np.unique(one)})
    columns = 4
    figure, rows = picture_rows(
        frames,
        ("frame", "reference", "prediction"),
        row_titles,
        title,
        width=3.6,
        sizes=(12, 11, 9),
        legend_lines=1 - (-len(present) // columns),
    )
    for row, frame, *class_maps in zip(rows, frames, truths, predictions, strict=True):
        for axes, class_map in zip(row, (None, *class_maps), strict=True):
            picture = frame if class_map is None else paint(frame, class_map, labels, colors, ignore_index)
            axes.imshow(picture, aspect="auto", interpolation="none" if frame.shape[1] > 400 else "nearest")
            if class_map is not None:
                write_ids(axes, class_map, ignore_index)
    patches = [legend_patch(i, labels, colors, ignore_index) for i in present]
    figure.legend(
        handles=patches,
        loc="lower center",
        ncols=min(columns, len(patches)),
        frameon=False,
        fontsize=10,
        bbox_to_anchor=(0.5, 0),
    )
    return figure


def paint(
    frame: np.ndarray,
    class_map: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    ignore_index: int = 255,
) -> np.ndarray:
    """Paint a class map over a frame, half transparent with opaque borders.

    Args:
        frame: uint8 (H, W, 3).
        class_map: integers (H, W).
        labels: as in `segmentation_figure`.
        colors: as in `segmentation_figure`.
        ignore_index: as in `segmentation_figure`.

    Returns:
        uint8 (H, W, 3).
    """
    table = np.zeros((max(int(class_map.max()), ignore_index, len(colors)) + 1, 3), np.float32)
    table[: len(colors)] = colors
    table[ignore_index] = IGNORED
    painted = np.ones(len(table), bool)
    painted[: len(labels)] = [label.lower() != NOT_PAINTED for label in labels]
    opacity = np.where(_borders(class_map), 1.0, FILL) * painted[class_map]
    return (frame + opacity[..., None] * (table[class_map] - frame)).round().astype(np.uint8)


def _borders(class_map: np.ndarray) -> np.ndarray:
    """Return the border pixels between classes, bool (H, W), with a width that scales with the image size."""
    border = np.zeros(class_map.shape, bool)
    for step in range(1, max(1, round(max(class_map.shape) / 400)) + 1):
        down = class_map[step:] != class_map[:-step]
        right = class_map[:, step:] != class_map[:, :-step]
        border[step:] |= down
        border[:-step] |= down
        border[:, step:] |= right
        border[:, :-step] |= right
    return border


def write_ids(axes, class_map: np.ndarray, ignore_index: int) -> None:
    """Write the id of each class at its thickest place."""
    style = {"fontsize": 9, "color": "white", "weight": "bold", "ha": "center", "va": "center"}
    for i, x, y in id_places(class_map):
        if i != ignore_index:
            axes.text(x, y, str(i), clip_on=True, **style).set_path_effects(outline(2, "black"))


def id_places(class_map: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (id, x, y) for each id that covers more than a very small area, where (x, y) is its thickest place."""
    stride = max(1, max(class_map.shape) // 128)  # a coarse map is sufficient to find the place
    coarse = class_map[::stride, ::stride]
    for i in np.unique(coarse).tolist():
        region = coarse == i
        if region.mean() > SPECK:
            y, x = thickest(region)
            yield i, x * stride, y * stride


def thickest(region: np.ndarray) -> tuple[int, int]:
    """Return the (row, column) of a pixel that survives the most erosions of the region."""
    while region.any():
        last, padded = region, np.pad(region, 1)
        region = region & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    rows, columns = np.nonzero(last)
    return int(rows[len(rows) // 2]), int(columns[len(rows) // 2])


def legend_patch(i: int, labels: Sequence[str], colors: Sequence[tuple[int, int, int]], ignore_index: int) -> Patch:
    if i == ignore_index:
        return Patch(facecolor=_fractions(IGNORED), edgecolor="0.3", label="no class (ignored)")
    color = "none" if labels[i].lower() == NOT_PAINTED else _fractions(colors[i])
    return Patch(facecolor=color, edgecolor="0.3", label=f"{i}  {labels[i]}")


def _fractions(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """Convert a color from 0 to 255 to matplotlib's range from 0 to 1."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255
