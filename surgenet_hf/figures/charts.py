"""Charts that compare models: radar charts of ranks, blob charts of bootstrap ranks, and bars with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from .style import NORMAL, SMALL, WIDTH, color, dash, hatch, marker, new_figure, outline, plain


def radar_figure(ranks: np.ndarray, models: Sequence[str], axes: Sequence[str], title: str = "") -> Figure:
    """Draw the ranks of models over datasets and metrics as in the SurgeNet paper, with rank 1 outermost.

    Args:
        ranks: array (models, axes), where 1 is the best rank. NaN marks a missing result and interrupts the model's
            line.
        models: names of the models. Their order determines colors, markers, and dashes.
        axes: names of dataset and metric. A line break keeps them short.
        title: title of the figure.
    """
    ranks = np.asarray(ranks, float)
    worst = max(len(models), 2)
    rows = -(-len(models) // 3)
    figure = new_figure(WIDTH, 5.2 + 0.22 * rows, title)
    chart = figure.add_subplot(projection="polar")
    assert isinstance(chart, PolarAxes)  # matplotlib declares only Axes
    chart.set_theta_offset(np.pi / 2)
    chart.set_theta_direction(-1)
    chart.set_ylim(0, worst)
    chart.spines["polar"].set_color("0.75")
    chart.grid(color="0.85", linewidth=0.8)

    angles = np.arange(len(axes)) * 2 * np.pi / len(axes)
    chart.set_xticks(angles, axes, fontsize=NORMAL)
    for label, angle in zip(chart.get_xticklabels(), angles, strict=True):
        across = np.sin(angle)
        label.set_horizontalalignment("center" if abs(across) < 0.2 else "left" if across > 0 else "right")
    chart.tick_params(axis="x", pad=7)
    chart.set_yticks(range(1, worst + 1), [])
    for rank in range(1, worst + 1):  # in the gap between the first two spokes, away from the lines' corners
        radius = worst + 1 - rank
        text = chart.text(angles[1] / 2, radius, str(rank), fontsize=SMALL, color="0.35", ha="center", va="center")
        text.set_path_effects(outline(2))

    radii = worst + 1 - ranks
    closed = np.append(angles, angles[0])
    for i, model in enumerate(models):
        style: dict[str, Any] = {"color": color(i), "marker": marker(i), "markeredgecolor": "white", "zorder": 3 + i}
        style["markersize"] = max(6, 11 - 1.5 * i)  # tied models: the lower marker shows around the upper one
        line = np.append(radii[i], radii[i, 0])
        chart.plot(closed, line, linestyle=dash(i), linewidth=1.8, label=model, clip_on=False, **style)
    _legend_below(figure, handlelength=3)
    for _ in range(3):  # each updates the label positions, so that the next layout reserves space for them
        figure.draw_without_rendering()
    return figure


def blob_figure(ranks: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Draw the distribution of each model's ranks over columns and bootstrap resamples.

    The area of a blob is the share of columns and resamples in which the model has that rank. A cross marks the
    median, and a line spans the central 95 %. With at most ten models, shares of 10 % and more are written as text.

    Args:
        ranks: {model: ranks of any shape}, such as (columns, resamples), in drawing order. Rank 1 is the best, and NaN
            is ignored.
        title: title of the figure.
    """
    pooled = {model: np.ravel(values)[~np.isnan(np.ravel(values))] for model, values in ranks.items()}
    cell = min(1.0, (WIDTH - 1.2) / len(pooled))  # inches between neighboring blobs
    count = max(len(pooled), 2)
    figure = new_figure(1.6 + cell * len(pooled), 1.6 + cell * count, title)
    axes = figure.add_subplot()
    whole = (0.92 * 72 * cell) ** 2  # points squared: area of a blob with a share of 1
    for x, (model, values) in enumerate(pooled.items()):
        found, counts = np.unique(values, return_counts=True)
        shares = counts / len(values)
        axes.scatter(
            np.full(len(found), x), found, s=whole * shares, color=color(x), alpha=0.75, linewidth=0, label=model
        )
        low, middle, high = np.percentile(values, [2.5, 50, 97.5])
        axes.plot([x, x], [low, high], color="black", linewidth=1.2, zorder=3)
        axes.plot(x, middle, marker="x", color="black", markersize=8, markeredgewidth=2, zorder=4)
        for rank, share in zip(found, shares, strict=True):
            if share >= 0.1 and len(pooled) <= 10:
                _write_share(axes, x, rank, share, 0.46 * 72 * cell * share**0.5)
    axes.set_xlim(-0.6, len(pooled) - 0.4)
    axes.set_ylim(count + 0.6, 0.4)
    axes.set_yticks(range(1, count + 1))
    axes.set_xticks(range(len(pooled)), pooled, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_ylabel("rank (1 is best)", fontsize=NORMAL)
    axes.set_axisbelow(True)
    axes.grid(color="0.9", linewidth=0.8)
    plain(axes)
    axes.tick_params(axis="x", labelsize=NORMAL)
    caption = "area: share of columns and resamples\n×: median    line: central 95 %"
    axes.set_title(caption, fontsize=SMALL, color="0.3")
    return figure


def _legend_below(figure: Figure, **style) -> None:
    """Add a legend below the axes with as many columns as fit, at most three."""
    for columns in (3, 2, 1):
        legend = figure.legend(loc="outside lower center", ncols=columns, fontsize=NORMAL, frameon=False, **style)
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            return
        legend.remove()


def _write_share(axes, x: float, rank: float, share: float, radius: float) -> None:
    """Write the share of a blob as text.

    The text is inside the blob below the median's cross, or to the right of a small blob.

    Args:
        axes: axes of the chart.
        x: position of the model.
        rank: rank of the blob.
        share: share from 0 to 1.
        radius: radius of the blob in points.
    """
    place, align = ((0, -0.55 * radius), "center") if radius >= 18 else ((radius + 2, 0), "left")
    style = {"fontsize": SMALL, "ha": align, "va": "center", "zorder": 5, "path_effects": outline(2)}
    text = ">99%" if 0.995 <= share < 1 else f"{share:.0%}"
    axes.annotate(text, (x, rank), place, textcoords="offset points", **style)


def bar_figure(
    values: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    quantity: str = "Dice",
    title: str = "",
) -> Figure:
    """Draw one group of bars per class, with one bar per model and error bars for intervals.

    Args:
        values: {name of a model or run: a value from 0 to 1 for each label}. NaN is written as "none".
        labels: names of the classes.
        intervals: {name: (low, high) for each label}, for all or some of the names. NaN marks a missing interval.
        quantity: name of the metric, for the axis.
        title: title of the figure.
    """
    intervals = intervals or {}
    thickness = 0.8 / len(values)
    rows = -(-len(values) // 3) if len(values) > 1 else 0
    height = 0.8 + 0.22 * rows + len(labels) * max(0.3, 0.2 * len(values) + 0.1)
    figure = new_figure(WIDTH, height, title)
    axes = figure.add_subplot()
    for i, (name, of_labels) in enumerate(values.items()):
        series = np.asarray(of_labels, float)
        y = np.arange(len(labels)) + (i - (len(values) - 1) / 2) * thickness
        axes.barh(
            y,
            np.nan_to_num(series),
            0.9 * thickness,
            color=color(i),
            hatch=hatch(i),
            edgecolor="white",
            linewidth=0,
            label=name,
        )
        bounds = np.asarray(intervals.get(name, np.full((len(labels), 2), np.nan)), float)
        for place, value, (low, high) in zip(y, series, bounds, strict=True):
            end = np.nanmax([value, high, 0]) if not np.isnan(value) else 0
            if not np.isnan([value, low, high]).any():
                axes.plot([low, high], [place, place], color="white", linewidth=3, solid_capstyle="butt")
                axes.plot([low, high], [place, place], color="black", linewidth=1.3, solid_capstyle="butt")
            text = "none" if np.isnan(value) else f"{value:.2f}"
            axes.text(end + 0.008, place, text, fontsize=SMALL, va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, 1.06)
    has_intervals = not np.isnan(list(intervals.values())).all()
    axes.set_xlabel(quantity + ", with 95 % interval" * has_intervals, fontsize=NORMAL)
    plain(axes)
    axes.tick_params(axis="y", labelsize=NORMAL, length=0)
    if len(values) > 1:
        _legend_below(figure)
    return figure
