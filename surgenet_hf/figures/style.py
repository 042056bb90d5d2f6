"""What all figures share: colours, markers, hatches, text sizes for print, and saving."""

import os
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

from ..atomic import atomic_write
from ..errors import UserError

# Okabe and Ito's palette, made to be told apart with every kind of colour vision (https://jfly.uni-koeln.de/color/):
# dark grey for black, yellow last, as it is faint on white. A marker, dash or hatch of its own goes with each colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h", "p")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oo", "++++", "||||", "**")

WIDTH = 7.2  # inches: a page's text width, so that sizes below are those in print
SMALL, NORMAL, LARGE = 8, 9, 10.5  # points


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def marker(i: int) -> str:
    """Another marker for each index; where colours begin again, the pair of colour and marker is still new."""
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
