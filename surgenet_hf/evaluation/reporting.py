"""Text tables and summaries of results, and the figures of each task."""

import math
import os
from pathlib import Path

import numpy as np

from ..data import SurgicalData
from ..figures import bar_figure, phase_figure, precision_recall_figure, save_both, segmentation_figure
from ..inference.prediction import predict_segmentation
from ..metrics import MultiLabelMetric
from ..metrics.segmentation import dice_and_iou
from .evaluate import Evaluation
from .results import headlines, metric_title
from .statistics import MIN_VIDEOS, interval_warning, student_interval

FRAMES_DRAWN = 4
MOST_CURVES = 20  # number of classes with a precision-recall curve each
HEADLINE_ROW = "mean over videos"


def summary(results: dict) -> str:
    """Summarize the main metrics with their intervals, and the note on leakage, as text."""
    data = results["data"]
    lines = [f"\n{data['name']}, {data['split']}: {data['frames']} frames of {len(data['videos'])} videos"]
    for name in headlines(results):
        lines.append(f"  {metric_title(name):<24}{results['metrics'][name]:8.3f}   {_interval_text(results, name)}")
    if data["leakage"]:
        lines.append(f"  Leakage: {data['leakage']}.")
    return "\n".join(lines)


def _interval_text(results: dict, name: str) -> str:
    interval = results["intervals"].get(name)
    if interval is None:
        return f"no interval: fewer than {MIN_VIDEOS} videos with a value, or no variation"
    warning = interval_warning(interval["videos"])
    return (
        f"95 % interval {interval['low']:.3f} to {interval['high']:.3f}, n = {interval['videos']} videos"
        + f" ({warning})" * bool(warning)
    )


def comparison_table(columns: dict[str, dict]) -> str:
    """Format metrics side by side as text: Dice and IoU in % for each class, and the means over videos.

    Args:
        columns: {name: metrics of a results file}.
    """
    first = next(iter(columns.values()))
    rows = {label: [metrics["per_class"][label] for metrics in columns.values()] for label in first["per_class"]}
    rows[HEADLINE_ROW] = list(columns.values())
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
            line += f"   {_percent(cell['video_dice']):>{width - 6}}{_percent(cell['video_iou']):>6}"
        lines.append(line)
    lines.insert(-1, lines[2])
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def draw_segmentation(model, processor, data: SurgicalData, split: str, dice: float):
    """Draw frame, labels, and prediction for evenly spaced frames of a split.

    Args:
        model: segmentation model.
        processor: image processor of the model.
        data: dataset.
        split: split of the frames.
        dice: Dice for the title of the figure.

    Returns:
        (matplotlib Figure, rows, class maps)
    """
    rows = data.split(split)
    drawn = sorted({i * len(rows) // FRAMES_DRAWN for i in range(FRAMES_DRAWN)})
    rows, class_maps = zip(*predict_segmentation(model, processor, rows, indices=drawn), strict=True)
    figure = segmentation_figure(
        [row["image"] for row in rows],
        [row["mask"] for row in rows],
        class_maps,
        data.labels,
        data.colors,
        row_titles=[f"{row['video']}, frame {row['frame']}" for row in rows],
        title=f"{data.name}, {split}: {metric_title('video_dice')} {dice:.3f}",
    )
    return figure, rows, class_maps


def _dice_intervals(results: dict) -> list[tuple[float, float]]:
    """Return Student's t interval of each class's Dice over the videos that contain the class.

    A class without an interval has (NaN, NaN).
    """
    bounds = []
    for label in results["data"]["labels"]:
        counts = [video["per_class"][label] for video in results["per_video"].values()]
        columns = [[one[f"{kind}_pixels"] for one in counts] for kind in ("reference", "predicted", "intersection")]
        reference, predicted, intersection = np.array(columns, float)
        dice, _ = dice_and_iou(reference, predicted, intersection)
        interval = student_interval(np.where(reference > 0, dice, np.nan), (0, 1))
        bounds.append((math.nan, math.nan) if interval is None else (interval.low, interval.high))
    return bounds


def write_figures(
    evaluation: Evaluation, model, processor, data: SurgicalData, split: str, output_dir: str | os.PathLike
) -> None:
    """Write the figures of the task as PNG and PDF.

    These are overlays and bars for segmentation, precision-recall curves or bars for frame classification (bars if
    there are more than `MOST_CURVES` classes), and phase ribbons for phase recognition.
    """
    for name, figure in _FIGURES[data.task](
        evaluation, model, processor, data, split, f"{data.name}, {split}"
    ).items():
        save_both(figure, Path(output_dir, name))


def _segmentation_figures(evaluation, model, processor, data, split, title) -> dict:
    metrics = evaluation.results["metrics"]
    figure, *_ = draw_segmentation(model, processor, data, split, metrics["video_dice"])
    dice = [metrics["per_class"][label]["video_dice"] for label in data.labels]
    bars = bar_figure({"Dice": dice}, data.labels, {"Dice": _dice_intervals(evaluation.results)}, title=title)
    return {"segmentation": figure, "per_class": bars}


def _frame_figures(evaluation, model, processor, data, split, title) -> dict:
    metric = evaluation.scores.metric
    if isinstance(metric, MultiLabelMetric) and len(data.labels) > MOST_CURVES:
        of_labels = evaluation.results["metrics"]["per_class"]
        labels = [label for label in data.labels if of_labels[label]["positives"]]
        name = "video_average_precision" if metric.video_wise else "average_precision"
        precision = [of_labels[label][name] for label in labels]
        quantity = f"{name.replace('_', ' ')} of the {len(labels)} of {len(data.labels)} classes that occur"
        return {"per_class": bar_figure({"AP": precision}, labels, quantity=quantity, title=title)}
    if isinstance(metric, MultiLabelMetric):
        targets = np.concatenate([record.targets for record in metric.records])
        scores = np.concatenate([record.scores for record in metric.records])
        return {"precision_recall": precision_recall_figure(targets, scores, data.labels, title=title)}
    f1 = [evaluation.results["metrics"]["per_class"][label]["f1"] for label in data.labels]
    return {"per_class": bar_figure({"F1": f1}, data.labels, quantity="F1", title=title)}


def _phase_figures(evaluation, model, processor, data, split, title) -> dict:
    scores, seconds = evaluation.scores, 1 / (data.frames_per_second or 1.0)
    return {"phases": phase_figure(scores.truths, scores.predictions, data.labels, seconds, title=title)}


_FIGURES = {
    "semantic-segmentation": _segmentation_figures,
    "image-classification": _frame_figures,
    "phase-recognition": _phase_figures,
}
