"""What all figures share: colors, markers, hatches, text sizes for print, and saving."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

from ..atomic import atomic_write
from ..errors import UserError

# Okabe and Ito's palette, made to be told apart with every kind of color vision (https://jfly.uni-koeln.de/color/):
# dark gray for black, yellow last, as it is faint on white. A marker, dash or hatch of its own goes with each color.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h", "p")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oo", "++++", "||||", "**")

WIDTH = 7.2  # inches: a page's text width, so that sizes below are those in print
SMALL, NORMAL, LARGE = 8, 9, 10.5  # points


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def marker(i: int) -> str:
    """Another marker for each index; where colors begin again, the pair of color and marker is still new."""
    return MARKERS[i % len(MARKERS)]


def hatch(i: int) -> str:
    return HATCHES[i % len(HATCHES)]


def dash(i: int):
    return DASHES[i % len(DASHES)]


def outline(width: float, color: str = "white") -> list[AbstractPathEffect]:
    """The `path_effects` of a text that is read on any ground: a stroke of `width` points around its letters."""
    return [withStroke(linewidth=width, foreground=color)]


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Create an empty figure of `width` x `height` inches that arranges its contents.

    A title that is wider than the figure is wrapped, and the figure becomes higher by the additional lines.
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
    """Return a figure and its axes for rows of pictures, each row as high as its frame.

    Args:
        frames: (H, W, 3), one for each row.
        names: what is in each column.
        row_titles: a line above each row, or nothing.
        title: a line above all, or nothing.
        width: width of a picture in inches.
        sizes: font sizes of the title, the names, and the row titles.
        legend_lines: lines of room below the rows.

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
    """Only the axes that are read: no frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> None:
    """Write a figure in the format of the file's ending.

    Raises:
        UserError: the ending is not that of a format.
    """
    ending = Path(path).suffix[1:] or "png"
    if ending not in (known := figure.canvas.get_supported_filetypes()):
        raise UserError(f"{path} ends with .{ending}, expected one of {', '.join(known)}")
    # in PDF: text as text, and no date, so that the same figure gives the same file
    undated = {"metadata": {"CreationDate": None}} if ending == "pdf" else {}
    with atomic_write(path) as temporary, rc_context({"pdf.fonttype": 42}):
        figure.savefig(temporary, dpi=dpi, format=ending, **undated)


def save_both(figure: Figure, path: str | os.PathLike, dpi: int = 300) -> tuple[Path, Path]:
    """Write a figure as `path`.png and `path`.pdf; returns the two paths. `path` is without the ending."""
    path = Path(path)
    paths = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.pdf")
    for each in paths:
        save_figure(figure, each, dpi)
    return paths
