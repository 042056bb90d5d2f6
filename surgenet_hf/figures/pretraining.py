"""Curves of a pretraining run: loss, schedules, statistics of outputs and features, and k-NN metrics."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from .style import NORMAL, SMALL, WIDTH, color, dash, marker, new_figure, plain

SMOOTHED = 0.04  # window of the running mean, as a share of a curve's points
FEW = 50  # curves with fewer points are not smoothed


class Panel(NamedTuple):
    """Panel of the figure.

    Attributes:
        title: title with the unit.
        curves: {key of the history: label of its curve}.
        noisy: whether the values vary between batches, so that a running mean is drawn.
    """

    title: str
    curves: dict[str, str]
    noisy: bool = True


PANELS = (
    Panel("loss (nats)", {"loss": "loss"}),
    Panel(
        "k-NN, validation",
        {
            "knn_accuracy": "accuracy",
            "knn_mean_average_precision": "mean average precision",
            "knn_chance": "chance",
        },
        noisy=False,
    ),
    Panel("learning rate", {"lr": "learning rate"}, noisy=False),
    Panel("teacher momentum", {"momentum": "momentum"}, noisy=False),
    Panel(
        "entropy of the teacher (nats)",
        {"teacher_entropy": "single outputs", "teacher_mean_entropy": "mean output"},
    ),
    Panel("KL(teacher || student) (nats)", {"teacher_student_kl": "KL"}),
    Panel("feature standard deviation (1: isotropic)", {"feature_std": "standard deviation"}),
    Panel("feature rank", {"feature_rank": "rank"}),
)


def pretraining_figure(history: Sequence[dict], title: str = "") -> Figure:
    """Draw a panel for each logged metric over the steps. Noisy curves are pale, with their running mean on top.

    Args:
        history: rows of the training log with "step" and any of "loss", "lr", "momentum", "teacher_entropy",
            "teacher_mean_entropy", "teacher_student_kl", "feature_std", "feature_rank", "knn_accuracy",
            "knn_mean_average_precision", "knn_chance". A row may lack some of these keys. None and NaN are ignored. If
            a resumed run logged a step again, the last row counts.
        title: title of the figure.

    Raises:
        ValueError: the history has nothing to draw.
    """
    curves = {key: _curve(history, key) for panel in PANELS for key in panel.curves}
    panels = [panel for panel in PANELS if any(len(curves[key][0]) for key in panel.curves)]
    if not panels:
        known = ", ".join(curves)
        raise ValueError(f"cannot draw a history of {len(history)} rows: no row has a step and one of {known}")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(WIDTH * columns / 2, 0.4 + 1.75 * rows, title)
    all_axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(all_axes, panels, strict=False):
        drawn = [(key, name) for key, name in panel.curves.items() if len(curves[key][0])]
        for i, (key, name) in enumerate(drawn):
            _draw(axes, *curves[key], name, i, panel.noisy)
        if len(drawn) > 1:
            axes.legend(fontsize=SMALL, frameon=False, handlelength=2.5)
        axes.set_title(panel.title, fontsize=NORMAL, weight="bold", loc="left")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # short labels, such as 2e-05 for a learning rate
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(color="0.92", linewidth=0.8)
        plain(axes)
    for axes in all_axes[max(len(panels) - columns, 0) : len(panels)]:  # the lowest panel of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=NORMAL)
    return figure


def _curve(history: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted steps and the values of one metric."""
    points = {}
    for row in history:
        if "step" in row and row.get(key) is not None and math.isfinite(row[key]):
            points[row["step"]] = row[key]
    steps = sorted(points)
    return np.array(steps, float), np.array([points[step] for step in steps], float)


def _draw(axes, steps: np.ndarray, values: np.ndarray, name: str, i: int, noisy: bool) -> None:
    style = {"color": color(i), "linestyle": dash(i), "linewidth": 1.6, "label": name}
    if len(steps) < FEW or not noisy:
        few = {"marker": marker(i), "markersize": 3.5} if len(steps) < FEW else {}
        axes.plot(steps, values, **style, **few)
        return
    width = max(3, round(SMOOTHED * len(steps)))
    kernel = np.ones(width)
    means = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    axes.plot(steps, values, color=color(i), linewidth=0.6, alpha=0.35)
    axes.plot(steps, means, **style)
