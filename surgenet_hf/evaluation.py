"""Model and data in, results.json out: the one prediction loop and the one schema of results.

A results file holds

    schema       "surgenet_hf.results/1"
    task         "semantic-segmentation"
    model        name, type, parameters, and pretraining: the provenance of its weights, or "unknown"
    data         name, split, frames, videos, labels, notes of the integrity check
    metrics      mean_dice, mean_iou, pixel_accuracy, mean_video_dice,
                 per_class: {label: {dice, iou}}, per_video: {video: {mean_dice}}
                 (`surgenet_hf.metrics.SegmentationMetric` says what they mean; null is an absent class)
    comparisons  {name: metrics} of others on the same data, e.g. the majority-class baseline
    versions     of Python and the libraries
    command      the command line that made it
"""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .metrics import SegmentationMetric

SCHEMA = "surgenet_hf.results/1"
LIBRARIES = ("surgenet_hf", "torch", "transformers", "timm", "datasets", "numpy")


def predict_segmentation(model, processor, dataset, batch_size: int = 8) -> Iterator[tuple[dict, np.ndarray]]:
    """Predict every row of a split, in its order.

    Args:
        model: a semantic segmentation model of transformers; its mode (train or eval) is restored afterwards.
        processor: its image processor.
        dataset: rows {"image", "mask", ...} as `surgenet_hf.data` gives them.

    Yields:
        the row, and its class map: uint8 (H, W) at the size of the row's mask.
    """
    training = model.training
    model.eval()
    try:
        with tqdm(total=len(dataset), desc="Predicting", unit="frame", leave=False) as progress:
            for start in range(0, len(dataset), batch_size):
                rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
                inputs = processor([row["image"] for row in rows], return_tensors="pt").to(model.device, model.dtype)
                with torch.inference_mode():  # not around the yield: it would reach into the caller
                    outputs = model(**inputs)
                    sizes = [row["mask"].shape for row in rows]
                    class_maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
                for row, class_map in zip(rows, class_maps, strict=True):
                    yield row, class_map.to("cpu", torch.uint8).numpy()
                progress.update(len(rows))
    finally:
        model.train(training)


def evaluate_segmentation(model, processor, data, split: str = "validation", batch_size: int = 8) -> dict:
    """Evaluate a segmentation model on a split of `surgenet_hf.data.SegmentationData`: the results, in the schema.

    Raises:
        ValueError: the split does not exist, or the model has another number of classes than the data.
    """
    if model.config.num_labels != len(data.labels):
        raise ValueError(
            f"The model has {model.config.num_labels} classes, the data set {data.name!r} has {len(data.labels)}."
        )
    metric = SegmentationMetric(len(data.labels), data.ignore_index)
    for row, class_map in predict_segmentation(model, processor, _split(data, split), batch_size):
        metric.add(class_map, row["mask"], row["video"])
    return {
        "schema": SCHEMA,
        "task": "semantic-segmentation",
        "model": {
            "name": model.name_or_path or "unknown",
            "type": model.config.model_type,
            "parameters": model.num_parameters(),
            "pretraining": getattr(model.config, "pretraining", None) or "unknown",
        },
        "data": {
            "name": data.name,
            "split": split,
            "frames": len(metric.records),
            "videos": sorted({record.video for record in metric.records}),
            "labels": list(data.labels),
            "notes": list(data.notes),
        },
        "metrics": _named(metric.compute(), data.labels),
        "comparisons": {},
        "versions": _versions(),
        "command": shlex.join(["python", *sys.argv]),
    }


def majority_class_baseline(data, split: str = "validation") -> dict:
    """Metrics on a split of always predicting the commonest class of the train split's pixels."""
    pixels = np.zeros(256, np.int64)
    for row in _split(data, "train"):
        pixels += np.bincount(row["mask"].ravel(), minlength=256)
    majority = int(pixels[: len(data.labels)].argmax())
    metric = SegmentationMetric(len(data.labels), data.ignore_index)
    for row in _split(data, split):
        metric.add(np.full_like(row["mask"], majority), row["mask"], row["video"])
    return _named(metric.compute(), data.labels)


def check_saved_model(path: str | os.PathLike, rows: list[dict], class_maps: list[np.ndarray], device="cpu") -> float:
    """Load a saved segmentation model back, by the Auto classes and as a pipeline, and compare its predictions.

    Args:
        path: folder with model and image processor.
        rows, class_maps: what `predict_segmentation` yielded for the model that was saved.

    Returns:
        the smallest share of pixels that agree, over the frames and both ways of loading.

    Raises:
        RuntimeError: less than 99.9 % agree (not all: another batch size can round differently at a tie).
    """
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

    model = AutoModelForSemanticSegmentation.from_pretrained(path).to(device)
    reloaded = [found for _, found in predict_segmentation(model, AutoImageProcessor.from_pretrained(path), rows)]
    segment = pipeline("image-segmentation", model=str(path), device=device)
    agreement = 1.0
    for row, expected, found in zip(rows, class_maps, reloaded, strict=True):
        piped = np.full_like(expected, 255)
        for part in segment(row["image"]):
            piped[np.asarray(part["mask"]) > 0] = model.config.label2id[part["label"]]
        agreement = min(agreement, (found == expected).mean(), (piped == expected).mean())
    if agreement < 0.999:
        raise RuntimeError(
            f"The model saved in {path} and loaded back agrees with the trained one on only {agreement:.2%} "
            "of a frame's pixels: the files are not what was trained."
        )
    return float(agreement)


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


def write_results(results: dict, path: str | os.PathLike) -> None:
    """Write results as JSON (NaN becomes null): the file is there whole or not at all."""
    text = json.dumps(_without_nan(results), indent=2, ensure_ascii=False, allow_nan=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _split(data, split: str):
    if split not in data.splits:
        raise ValueError(f"The data set {data.name!r} has no split {split!r}; it has {', '.join(data.splits)}.")
    return data.splits[split]


def _named(computed: dict, labels: tuple[str, ...]) -> dict:
    """What `SegmentationMetric.compute` gives, with names in place of class ids."""
    return {
        **{key: computed[key] for key in ("mean_dice", "mean_iou", "pixel_accuracy", "mean_video_dice")},
        "per_class": {
            label: {"dice": dice, "iou": iou}
            for label, dice, iou in zip(labels, computed["dice"], computed["iou"], strict=True)
        },
        "per_video": {video: {"mean_dice": dice} for video, dice in computed["video_dice"].items()},
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was not installed
            versions[name] = "not installed"
    return versions


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
