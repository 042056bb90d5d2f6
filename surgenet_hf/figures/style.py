"""Shared style of all figures: colors, markers, hatches, text sizes for print, and saving."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

from ..atomic import atomic_write
from ..errors import UserError

# Palette of Okabe and Ito, distinct for every kind of color vision (https://jfly.uni-koeln.de/color/). Dark gray
# replaces black, and yellow comes last because it is faint on white. Markers, dashes, and hatches add a second cue.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h", "p")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oo", "++++", "||||", "**")

WIDTH = 7.2  # inches: text width of a page, so that font sizes are those in print
SMALL, NORMAL, LARGE = 8, 9, 10.5  # points


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def marker(i: int) -> str:
    """Return the marker of an index.

    Pairs of color and marker stay unique when the colors repeat, because there are 8 colors and 11 markers.
    """
    return MARKERS[i % len(MARKERS)]


def hatch(i: int) -> str:
    return HATCHES[i % len(HATCHES)]


def dash(i: int):
    return DASHES[i % len(DASHES)]


def outline(width: float, color: str = "white") -> list[AbstractPathEffect]:
    """Return `path_effects` that draw a stroke of `width` points around text, readable on any background."""
    return [withStroke(linewidth=width, foreground=color)]


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Create an empty figure of `width` x `height` inches with automatic layout.

    A title that is wider than the figure is wrapped. The figure grows by the height of the additional lines.
    """
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    if title:
        text = figure.suptitle("one line", fontsize=LARGE, weight="bold", wrap=True)
        one_line = text.get_window_extent().height
        text.set_text(title)
        figure.set_figheight(height + (text.get_window_extent().height - one_line) / figure.dpi)
    return figure


def picture_rows(
    frames: Sequence[np.ndarray],
    names: Sequence[str],
    row_titles: Sequence[str],
    title: str,
    width: float,
    sizes: tuple[float, float, float] = (LARGE, NORMAL, SMALL),
    legend_lines: int = 0,
) -> tuple[Figure, list[list]]:
    """Create a figure with axes for rows of pictures, where each row is as high as its frame.

    Args:
        frames: array (H, W, 3) for each row.
        names: title of each column.
        row_titles: a line of text above each row, or an empty sequence.
        title: title of the figure, or an empty string.
        width: width of a picture in inches.
        sizes: font sizes of the title, the names, and the row titles.
        legend_lines: number of text lines to reserve below the rows.

    Returns:
        The figure, and for each row the axes of its pictures.
    """
    strip, columns = width / 12, len(names)  # a strip is the height of a line of text
    heights = [width * frame.shape[0] / frame.shape[1] for frame in frames]
    total = strip * (1 + bool(title) + len(frames) * bool(row_titles) + legend_lines) + sum(heights)
    figure = Figure(figsize=(columns * width, total), facecolor="white")
    top = total - strip
    if title:
        figure.text(0.5, (top + strip / 2) / total, title, ha="center", va="center", fontsize=sizes[0], weight="bold")
        top -= strip
    for column, name in enumerate(names):
        place = (column + 0.5) / columns, (top + strip / 2) / total
        figure.text(*place, name, ha="center", va="center", fontsize=sizes[1])
    rows = []
    for row, height in enumerate(heights):
        if row_titles:
            figure.text(
                0.006, (top - strip / 2) / total, row_titles[row], va="center", fontsize=sizes[2], color="0.25"
            )
            top -= strip
        top -= height
        boxes = [((i + 0.005) / columns, top / total, 0.99 / columns, 0.98 * height / total) for i in range(columns)]
        rows.append([figure.add_axes(box) for box in boxes])
        for axes in rows[-1]:
            axes.set_axis_off()
    return figure, rows


def plain(axes) -> None:
    """Hide the top and right spines, and set the size of the tick labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> None:
    """Write a figure in the format of the file suffix, PNG by default.

    Raises:
        UserError: the suffix is not that of a supported format.
    """
    ending = Path(path).suffix[1:] or "png"
    if ending not in (known := figure.canvas.get_supported_filetypes()):
        raise UserError(f"{path} ends with .{ending}, expected one of {', '.join(known)}")
    # In PDF files, keep text as text, and omit the date so that the same figure always gives the same file.
    undated: dict[str, Any] = {"metadata": {"CreationDate": None}} if ending == "pdf" else {}
    with atomic_write(path) as temporary, rc_context({"pdf.fonttype": 42}):
        figure.savefig(temporary, dpi=dpi, format=ending, **undated)


def save_both(figure: Figure, path: str | os.PathLike, dpi: int = 300) -> tuple[Path, Path]:
    """Write a figure as `path`.png and `path`.pdf, where `path` has no suffix.

    Returns:
        The two paths.
    """
    path = Path(path)
    paths = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.pdf")
    for each in paths:
        save_figure(figure, each, dpi)
    return paths
