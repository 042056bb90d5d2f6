"""Evaluate a model on a split of a dataset. `surgenet_hf.evaluation.results` checks a results file when it is read.

A results file holds

    schema       "surgenet_hf.results/2"
    task         "semantic-segmentation", "image-classification" or "phase-recognition"
    model        name, type, parameters, and pretraining: the provenance of its weights, or "unknown"
    seed         of the training, or null
    data         name; split, and split_protocol: which videos it has; image_size: [height, width] that the model gets;
                 frames, videos, labels; background: the class that is, or null; videos_are_public: whether the names
                 of the videos are those of a public data set; notes of the integrity check; leakage: what is known, or
                 "unknown", of videos that trained or selected the model or its backbone, null if none did; selected:
                 the videos that selected the checkpoint, on which the result is optimistic. In published files neutral
                 names replace those of the user's own videos, and video_hashes identifies them (`surgenet_hf.privacy`)
    definitions  the convention of each metric, in words
    metrics      scalar metrics by name (see `surgenet_hf.metrics`), and per_class: {label: metrics}; null: undefined
    intervals    {metric: {low, high, videos, method}}: 95 % over videos, none below 5 (see `evaluation.statistics`)
    bootstrap    {metric: its value on each resample of the videos}, of the task's main metrics that are not means over
                 videos; those of the others follow from per_video
    per_video    {video: metrics}, with per_class: {label: counts and metrics}, from which every convention in
                 `definitions` can be recomputed
    comparisons  {name: metrics} of others on the same data, e.g. the majority-class baseline
    versions     of Python and the libraries
    command      the command line that made it, without access tokens
"""

import json
import math
import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from ..atomic import atomic_write
from ..checkpoints.reading import check_finite
from ..data import SegmentationData
from ..inference.prediction import predict_phases, predict_scores, predict_segmentation, video_ranges
from ..leakage import leakage_report
from ..metrics import CHOLEC80_TRANSITIONS, MultiLabelMetric, PhaseMetric, SegmentationMetric
from ..privacy import mask_tokens
from .results import HEADLINES, SCHEMA, read_results_file
from .statistics import INTERVALS, RESAMPLES, metric_intervals

SEQUENCE_METRICS = ("edit", "f1@", "video_f1@", "relaxed", "segments@")  # of phases in time
LIBRARIES = ("surgenet_hf", "torch", "transformers", "timm", "datasets", "numpy")


@dataclass
class Evaluation:
    """Results, and what figures need beside them.

    Attributes:
        results: in the schema.
        metric: with the records of all frames.
        truths, predictions: of phases, {video: phase ids (T,)}.
    """

    results: dict
    metric: SegmentationMetric | MultiLabelMetric | PhaseMetric
    truths: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate(
    model,
    processor,
    data,
    split: str = "validation",
    batch_size: int = 8,
    seed: int | None = None,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Evaluate a model on a split; the task follows from the data. In a run of several processes, each takes a part.

    Args:
        model: for segmentation, classification of frames, or phase recognition, with the data's classes.
        processor: its image processor.
        data: `SegmentationData` or `ClassificationData`.
        seed: of the training, for the record.
        resamples: of the bootstrap; 0: no intervals.

    Raises:
        ValueError: the split does not exist, the model has other classes, or another kind of labels, than the data, or
            its weights are not finite.
    """
    rows = split_rows(data, split)
    if model.config.num_labels != len(data.labels):
        raise ValueError(
            f"The model has {model.config.num_labels} classes, the data set {data.name!r} has {len(data.labels)}."
        )
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if names != list(data.labels) and not all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        raise ValueError(f"The model's classes are {names}, those of {data.name!r} are {list(data.labels)}.")
    trained_for, needed = model.config.problem_type, getattr(data, "problem_type", None)
    if trained_for and needed and trained_for != needed:
        raise ValueError(f"The model was trained for {trained_for}, the data set {data.name!r} is for {needed}.")
    check_finite(model.state_dict(), "The model")
    truths, predictions = {}, {}
    state = PartialState()
    share = range(state.process_index, len(rows), state.num_processes)
    if isinstance(data, SegmentationData):
        task = "semantic-segmentation"
        metric = SegmentationMetric(len(data.labels), data.ignore_index, background_id=data.background_id)
        for row, class_map in predict_segmentation(model, processor, rows, batch_size, share):
            metric.add(class_map, row["mask"], row["video"])
    elif data.problem_type == "multi_label_classification":
        task, metric = "image-classification", MultiLabelMetric(len(data.labels))
        for row, scores in predict_scores(model, processor, rows, batch_size, share):
            metric.add(scores[None], row["labels"][None], row["video"])
    else:
        # without a frame rate the rows are frames, not a sequence
        task = "phase-recognition" if data.frames_per_second else "image-classification"
        transitions = CHOLEC80_TRANSITIONS if data.name == "cholec80-phase" else None
        rate = data.frames_per_second or 1.0
        metric = PhaseMetric(len(data.labels), frames_per_second=rate, transitions=transitions)
        for number, (video, indices) in enumerate(video_ranges(rows).items()):
            if number % state.num_processes == state.process_index:
                truths[video], predictions[video] = predict_phases(model, processor, rows, indices)
                metric.add(predictions[video], truths[video], video)
    if state.num_processes > 1:
        metric.records = gather_object(metric.records)
        truths, predictions = (dict(gather_object(list(each.items()))) for each in (truths, predictions))
    leakage = leakage_report(model.config, data, split)
    results = {
        "schema": SCHEMA,
        "task": task,
        "model": {
            "name": model.name_or_path or "unknown",
            "type": model.config.model_type,
            "parameters": model.num_parameters(),
            "pretraining": getattr(model.config, "pretraining", None) or "unknown",
        },
        "seed": seed,
        "data": {
            "name": data.name,
            "split": split,
            "split_protocol": data.split_protocol,
            "image_size": [processor.size["height"], processor.size["width"]],
            "frames": len(rows),
            "videos": metric.videos,
            "videos_are_public": data.videos_are_public,
            "labels": list(data.labels),
            "background": _background(data),
            "notes": [*data.notes, *_background_notes(metric)],
            "leakage": leakage.note,
            "selected": sorted(leakage.selected),
        },
        **measure(metric, data.labels, task, resamples),
        "comparisons": {},
        "versions": _versions(),
        "command": mask_tokens(shlex.join(["python", *sys.argv])),
    }
    return Evaluation(results, metric, truths, predictions)


def majority_class_baseline(data: SegmentationData, split: str = "validation") -> dict:
    """Compute the metrics of always predicting the most common class of the train split's pixels."""
    pixels = np.zeros(256, np.int64)
    for row in split_rows(data, "train"):
        pixels += np.bincount(row["mask"].ravel(), minlength=256)
    majority = int(pixels[: len(data.labels)].argmax())
    metric = SegmentationMetric(len(data.labels), data.ignore_index, background_id=data.background_id)
    for row in split_rows(data, split):
        metric.add(np.full_like(row["mask"], majority), row["mask"], row["video"])
    return measure(metric, data.labels, "semantic-segmentation", resamples=0)["metrics"]


def split_rows(data, split: str):
    """The rows of a split of a data set.

    Raises:
        ValueError: it has no such split.
    """
    if split not in data.splits:
        raise ValueError(f"The data set {data.name!r} has no split {split!r}; it has {', '.join(data.splits)}.")
    return data.splits[split]


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


def recorded_seed(model_dir: str | os.PathLike) -> int | None:
    """The seed of a model's training, from the results.json that training left beside its folder."""
    path = Path(model_dir).parent / "results.json"
    return read_results_file(path).get("seed") if path.is_file() else None


def write_results(results: dict, path: str | os.PathLike) -> None:
    """Write results as JSON (NaN becomes null): the file is there whole or not at all."""
    text = json.dumps(_without_nan(results), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, durable=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def measure(metric, labels: tuple[str, ...], task: str, resamples: int) -> dict:
    """Measure what a results file holds: definitions, metrics, intervals, bootstrap, and per_video.

    Args:
        metric: with the records of all frames.
        labels: names of the classes, which replace their ids.
        task: as in a results file.
        resamples: of the bootstrap; 0: no intervals.
    """
    computed = metric.compute()
    intervals, draws = metric_intervals(metric, resamples) if resamples else ({}, {})

    def kept(values: dict) -> dict:
        """Without what needs frames in the order of time, where they are not."""
        if task == "image-classification":
            return {name: value for name, value in values.items() if not name.startswith(SEQUENCE_METRICS)}
        return values

    def by_label(values: dict) -> dict:
        return {label: kept(values[i]) for i, label in enumerate(labels)}

    return {
        "definitions": {
            **kept(metric.definitions()),
            "videos": len(metric.videos),
            "intervals": INTERVALS,
        },
        "metrics": {
            **kept({name: value for name, value in computed.items() if isinstance(value, float)}),
            "per_class": by_label(computed["per_class"]),
        },
        "intervals": {name: vars(interval) for name, interval in kept(intervals).items()},
        "bootstrap": {
            name: [round(value, 6) for value in draws[name].tolist()] for name in HEADLINES[task] if name in draws
        },
        "per_video": {
            video: kept(values) | {"per_class": by_label(values["per_class"])}
            for video, values in computed["per_video"].items()
        },
    }


def _background(data) -> str | None:
    background_id = getattr(data, "background_id", None)  # labels of whole frames have none
    return None if background_id is None else data.labels[background_id]


def _background_notes(metric) -> list[str]:
    """Notes on frames and videos whose reference has no foreground."""
    if not isinstance(metric, SegmentationMetric) or metric.background_id is None:
        return []
    computed = metric.compute()
    if not computed["background_frames"]:
        return []
    frames, without = computed["frames"], computed["videos_without_foreground"]
    note = f"{computed['background_frames']} of {frames} frames show only background."
    if not without:
        return [note]
    return [note, f"Without foreground, and excluded from means over videos: {', '.join(without)}."]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was not installed
            versions[name] = "not installed"
    return versions


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
