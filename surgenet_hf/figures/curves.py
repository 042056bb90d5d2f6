"""Precision-recall curves of the critical view of safety and other multi-label tasks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .style import NORMAL, SMALL, WIDTH, color, new_figure, outline, plain


def precision_recall_figure(targets: np.ndarray, scores: np.ndarray, labels: Sequence[str], title: str = "") -> Figure:
    """Draw a precision-recall curve per criterion in separate panels, with average precision and prevalence.

    Args:
        targets: array (N, C) from 0 to 1, such as the mean of the raters. Values of at least 0.5 are positive, and NaN
            is ignored.
        scores: array (N, C), where a higher score is more likely positive.
        labels: names of the C criteria.
        title: title of the figure.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    targets, scores = np.asarray(targets, float), np.asarray(scores, float)
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    figure = new_figure(WIDTH * columns / 3, 0.3 + 2.9 * rows, title)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(labels) :]:
        panel.set_axis_off()
    for i, (panel, label) in enumerate(zip(panels, labels, strict=False)):
        known = ~np.isnan(targets[:, i])
        positive = targets[known, i] >= 0.5
        panel.set_title(f"{label}\nAP undefined", fontsize=NORMAL, weight="bold")
        panel.set(xlim=(0, 1.02), ylim=(0, 1.05), aspect="equal")
        panel.set_xlabel("recall", fontsize=NORMAL)
        panel.set_xticks([0, 0.5, 1])
        panel.set_yticks([0, 0.5, 1])
        plain(panel)
        panel.tick_params(labelbottom=True)
        if not positive.any():
            panel.text(0.5, 0.5, "no positive frames", fontsize=NORMAL, ha="center")
            continue
        precision, recall, _ = precision_recall_curve(positive, scores[known, i])
        average = average_precision_score(positive, scores[known, i])
        prevalence = positive.mean()
        # Points run from the highest threshold down. With "pre", the area under the steps is the average precision.
        panel.step(recall[::-1], precision[::-1], where="pre", color=color(i), linewidth=1.8)
        panel.axhline(prevalence, color="0.35", linewidth=1.2, linestyle=(0, (4, 2)))
        above = prevalence < 0.9
        style = {"fontsize": SMALL, "color": "0.25", "path_effects": outline(2)}
        offset = 0.02 if above else -0.02
        va = "bottom" if above else "top"
        panel.text(0.02, prevalence + offset, f"prevalence {prevalence:.2f}", va=va, **style)
        panel.set_title(f"{label}\nAP {average:.3f}", fontsize=NORMAL, weight="bold")
    panels[0].set_ylabel("precision", fontsize=NORMAL)
    return figure
