"""Phase ribbons: annotated and predicted phases of videos over time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..metrics.sequences import segments
from .style import NORMAL, SMALL, WIDTH, color, hatch, new_figure, outline, plain

UNLABELED = "0.88"  # color of frames without a phase
ROW = 0.42  # height of the row of a video in inches


def phase_figure(
    truths: Mapping[str, np.ndarray] | None,
    predictions: Mapping[str, np.ndarray],
    labels: Sequence[str],
    seconds_per_frame: float = 1.0,
    title: str = "",
) -> Figure:
    """Draw one row per video, with the annotated phases above the predicted phases, over time in minutes.

    Each segment has the color and hatch of its phase, and a long segment also has its number, counted from 1. The
    share of correct frames, among those with an annotated phase, is to the right of each row.

    Args:
        truths: annotated phase ids (T,) by video. An id below 0 marks a frame without a phase. None draws only the
            predicted phases.
        predictions: predicted phase ids (T,) by video.
        labels: names of the phases, in the order of their ids.
        seconds_per_frame: time between consecutive frames in seconds.
        title: title of the figure.
    """
    minutes = seconds_per_frame / 60
    longest = max(map(len, predictions.values())) * minutes
    columns = 2 if max(map(len, labels)) > 22 else 3
    legend_rows = -(-(len(labels) + 1) // columns)
    figure = new_figure(WIDTH, 0.85 + ROW * len(predictions) + 0.24 * legend_rows, title)
    axes = figure.add_subplot()
    present, unlabeled = set(), False
    for row, video in enumerate(predictions):
        prediction = np.asarray(predictions[video])
        ribbons = [(prediction, row + 0.02 if truths else row - 0.19)]
        if truths:
            truth = np.asarray(truths[video])
            ribbons.insert(0, (truth, row - 0.4))
        for phases, top in ribbons:
            for phase, start, end in zip(*segments(phases), strict=True):
                if phase < 0:
                    unlabeled = True
                else:
                    present.add(phase)
                _draw(axes, phase, start * minutes, end * minutes, top, longest)
        if truths:
            known = truth >= 0
            right = f"{np.mean(truth[known] == prediction[known]):.0%}" if known.any() else "-"
            axes.annotate(right, (1.01, row), xycoords=("axes fraction", "data"), fontsize=SMALL, va="center")
    if truths:
        axes.annotate(
            "correct\nframes", (1.01, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=SMALL
        )
        axes.set_title("each video: labels above, prediction below", fontsize=SMALL, color="0.3", loc="left")
    axes.set_xlim(0, longest)
    axes.set_ylim(len(predictions) - 0.45, -0.55)
    axes.set_yticks(range(len(predictions)), predictions)
    axes.set_xlabel("time (min)", fontsize=NORMAL)
    plain(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelsize=NORMAL, length=0)
    handles = [Patch(label=f"{i + 1}  {labels[i]}", **_fill(i)) for i in sorted(present)]
    if unlabeled:
        handles.append(Patch(label="no phase", **_fill(-1)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=NORMAL, frameon=False, handleheight=1.2
    )
    return figure


def _draw(axes, phase: int, start: float, end: float, top: float, longest: float) -> None:
    axes.broken_barh([(start, end - start)], (top, 0.38), **_fill(phase))
    if phase >= 0 and end - start > 0.022 * longest:
        text = axes.text((start + end) / 2, top + 0.2, str(phase + 1), fontsize=SMALL, ha="center", va="center")
        text.set_path_effects(outline(2.5))


def _fill(phase: int) -> dict:
    if phase < 0:
        return {"facecolor": UNLABELED, "linewidth": 0}
    return {"facecolor": color(phase), "hatch": hatch(phase), "edgecolor": (1, 1, 1, 0.6), "linewidth": 0}
