"""Results as people read them: tables and summaries as text, and the pictures of each task."""

import math
import os
from pathlib import Path

import numpy as np

from .data import SegmentationData
from .evaluation import Evaluation, predict_segmentation, split_rows
from .metrics import MultiLabelMetric
from .results import HEADLINES

FRAMES_DRAWN = 4


def summary(results: dict) -> str:
    """The headline figures of results with their intervals, and the note on leakage, as text."""
    data = results["data"]
    lines = [f"\n{data['name']}, {data['split']}: {data['frames']} frames of {len(data['videos'])} videos"]
    for name, value in results["metrics"].items():
        if name in HEADLINES[results["task"]]:
            low, high = results["intervals"].get(name, (None, None))
            interval = "one video: no interval" if low is None else f"95 % interval {low:.3f} to {high:.3f}"
            lines.append(f"  {name:<24}{value:8.3f}   {interval}")
    if data["leakage"]:
        lines.append(f"  Leakage: {data['leakage']}.")
    return "\n".join(lines)


def comparison_table(columns: dict[str, dict]) -> str:
    """Metrics side by side as text: a row per class and one of means, for each column's name Dice and IoU in %."""
    first = next(iter(columns.values()))
    rows = {label: [metrics["per_class"][label] for metrics in columns.values()] for label in first["per_class"]}
    rows["mean"] = [{"dice": metrics["mean_dice"], "iou": metrics["mean_iou"]} for metrics in columns.values()]
    name_width = max(len("class"), *map(len, rows))
    widths = [max(len(name), 12) for name in columns]
    lines = [
        " " * name_width + "".join(f"   {name:>{width}}" for name, width in zip(columns, widths, strict=True)),
        f"{'class':<{name_width}}" + "".join(f"   {'Dice':>{width - 6}}{'IoU':>6}" for width in widths),
    ]
    lines.append("-" * len(lines[0]))
    for label, cells in rows.items():
        line = f"{label:<{name_width}}"
        for cell, width in zip(cells, widths, strict=True):
            line += f"   {_percent(cell['dice']):>{width - 6}}{_percent(cell['iou']):>6}"
        lines.append(line)
    lines.insert(-1, lines[2])
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def draw_segmentation(model, processor, data: SegmentationData, split: str, mean_dice: float):
    """Some frames of a split, spread over it: frame, reference and prediction.

    Returns:
        (matplotlib Figure, rows, class maps)
    """
    from .figures import segmentation_figure

    rows = split_rows(data, split)
    drawn = sorted({i * len(rows) // FRAMES_DRAWN for i in range(FRAMES_DRAWN)})
    rows, class_maps = zip(*predict_segmentation(model, processor, rows, indices=drawn), strict=True)
    figure = segmentation_figure(
        [row["image"] for row in rows],
        [row["mask"] for row in rows],
        class_maps,
        data.labels,
        data.colors,
        row_titles=[f"{row['video']}, frame {row['frame']}" for row in rows],
        title=f"{data.name}, {split}: mean Dice {mean_dice:.3f}",
    )
    return figure, rows, class_maps


def write_figures(evaluation: Evaluation, model, processor, data, split: str, output_dir: str | os.PathLike) -> None:
    """The task's pictures as PNG and PDF: overlays and bars, precision-recall curves, or phase ribbons."""
    from . import figures

    output_dir = Path(output_dir)
    results = evaluation.results
    title = f"{data.name}, {split}"
    if results["task"] == "semantic-segmentation":
        figure, *_ = draw_segmentation(model, processor, data, split, results["metrics"]["mean_dice"])
        figures.save_both(figure, output_dir / "segmentation")
        dice = [results["metrics"]["per_class"][label]["dice"] for label in data.labels]
        figures.save_both(figures.bar_figure({"Dice": dice}, data.labels, title=title), output_dir / "per_class")
    elif isinstance(evaluation.metric, MultiLabelMetric):
        records = evaluation.metric.records
        targets = np.concatenate([record.targets for record in records])
        scores = np.concatenate([record.scores for record in records])
        figure = figures.precision_recall_figure(targets, scores, data.labels, title=title)
        figures.save_both(figure, output_dir / "precision_recall")
    elif results["task"] == "image-classification":
        f1 = [results["metrics"]["per_class"][label]["f1"] for label in data.labels]
        figures.save_both(
            figures.bar_figure({"F1": f1}, data.labels, quantity="F1", title=title), output_dir / "per_class"
        )
    else:
        seconds = 1 / (data.frames_per_second or 1.0)
        figure = figures.phase_figure(evaluation.truths, evaluation.predictions, data.labels, seconds, title=title)
        figures.save_both(figure, output_dir / "phases")
