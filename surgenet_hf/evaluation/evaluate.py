"""Evaluation of a model on a split of a dataset, and the content of a results file.

`surgenet_hf.evaluation.results` checks a results file when it is read. A results file contains

    schema       "surgenet_hf.results/2"
    task         "semantic-segmentation", "image-classification" or "phase-recognition"
    model        name, type, number of parameters, and pretraining: the source of the weights, or "unknown"
    seed         seed of the training, or null
    training     how the labeled data trained the model, or null if this is not recorded:
                 mode: "fine-tuning", "frozen backbone" if only the head was trained, or the method of a probe on
                 frozen features, "k-NN" or "linear probe"
                 train_fraction, train_videos, train_frames: fraction, and numbers of the training videos and frames
                     that were used
                 train_video_names: their names if they are those of a public dataset, otherwise null
                 settings of a probe: pooling; k, temperature; regularization, selected_on, selection_metric
    data         the evaluated data:
                 name, split, split_protocol: dataset, split, and its assignment of videos
                 image_size: [height, width] of the model's input
                 frames, videos, labels: number of frames, names of the videos, names of the classes
                 background: name of the background class, or null
                 videos_are_public: whether the videos' names are those of a public dataset
                 notes: notes of the integrity check
                 leakage: note on videos that trained or selected the model or its backbone; it says "unknown" for
                 what is not recorded, and is null if there are no such videos
                 selected: videos that selected the checkpoint, on which the result is optimistic
                 video_hashes: in published files, ids of the user's own videos, whose names are replaced by neutral
                 ones (see `surgenet_hf.privacy`)
    definitions  convention of each metric, in words
    metrics      scalar metrics by name (see `surgenet_hf.metrics`), and per_class: {label: metrics}; null: undefined
    intervals    {metric: {low, high, videos, method}}: 95 % intervals over videos, only for 5 or more videos (see
                 `evaluation.statistics`)
    bootstrap    {metric: its value on each resample of the videos}, for main metrics that are not means over videos;
                 the draws of other metrics can be computed from per_video
    per_video    {video: metrics}, with per_class: {label: counts and metrics}; all conventions in `definitions` can be
                 computed again from these counts
    comparisons  {name: metrics} of other predictions on the same data, e.g. the majority-class baseline
    inference    runtime, precision, and compile of the network, and calibration_frames for int8; missing for float32
                 in PyTorch
    versions     versions of Python and the libraries
    command      command line without access tokens; missing in results of the Python API
"""

import json
import math
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from ..atomic import atomic_write
from ..checkpoints.reading import check_finite
from ..data import SurgicalData
from ..data.fraction import training_videos
from ..errors import UserError
from ..leakage import Leakage, leakage_report
from ..metrics import SegmentationMetric
from ..privacy import mask_tokens
from ..tasks import TASKS, Scores, segmentation_metric
from .results import SCHEMA
from .statistics import INTERVALS, RESAMPLES, metric_intervals

SEQUENCE_METRICS = ("edit", "f1@", "video_f1@", "relaxed", "segments@")  # these need frames in temporal order
LIBRARIES = ("surgenet_hf", "torch", "transformers", "timm", "datasets", "numpy")


@dataclass
class Evaluation:
    """Results of an evaluation, and the data for its figures.

    Attributes:
        results: content of results.json.
        scores: metric with the records of all frames, and phases by video.
    """

    results: dict
    scores: Scores


def evaluate(
    model,
    processor,
    data: SurgicalData,
    split: str = "validation",
    batch_size: int = 8,
    seed: int | None = None,
    resamples: int = RESAMPLES,
    command: str | None = None,
    training: dict | None = None,
) -> Evaluation:
    """Evaluate a model on a split. The data determines the task, and all processes share the frames.

    Args:
        model: model for segmentation, frame classification, or phase recognition, with the classes of the data.
        processor: image processor of the model.
        data: dataset.
        split: split to evaluate on.
        batch_size: number of frames per forward pass.
        seed: seed of the training, which is recorded.
        resamples: number of bootstrap resamples. 0 disables intervals.
        command: command line, which is recorded.
        training: `training_record` of the model. None: not recorded.

    Returns:
        The results and the scores.

    Raises:
        UserError: the split does not exist, the model has other classes or another problem type than the data, or its
            weights are not finite.
    """
    rows = data.split(split)
    if model.config.num_labels != len(data.labels):
        raise UserError(
            f"the model has {model.config.num_labels} classes, the dataset {data.name!r} has {len(data.labels)}: "
            "evaluate the model on a dataset with the same classes"
        )
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if names != list(data.labels) and not all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        raise UserError(
            f"the model's classes are {names}, but those of {data.name!r} are {list(data.labels)}: evaluate the model "
            "on a dataset with the same classes"
        )
    trained_for = model.config.problem_type
    if trained_for and data.problem_type and trained_for != data.problem_type:
        raise UserError(
            f"the model was trained for {trained_for}, but the dataset {data.name!r} is for {data.problem_type}: "
            "choose a dataset with the same problem type"
        )
    check_finite(model.state_dict(), "The model")
    scores = TASKS[data.task].score(model, processor, data, rows, batch_size)
    described = {
        "name": model.name_or_path or "unknown",
        "type": model.config.model_type,
        "parameters": model.num_parameters(),
        "pretraining": getattr(model.config, "pretraining", None) or "unknown",
    }
    leakage, size = leakage_report(model.config, data, split), processor.size
    return build_results(scores, described, data, split, size, leakage, seed, training, resamples, command)


def build_results(
    scores: Scores,
    model: dict,
    data: SurgicalData,
    split: str,
    image_size,
    leakage: Leakage,
    seed: int | None,
    training: dict | None,
    resamples: int = RESAMPLES,
    command: str | None = None,
) -> Evaluation:
    """Compute the metrics, and build the content of results.json.

    Args:
        scores: metrics with the records of all frames of the split.
        model: content of `model` in the results.
        data: dataset, which names the classes.
        split: split that was evaluated.
        image_size: {"height", "width"} of the model's input.
        leakage: overlap of the split with the training data.
        seed, training, resamples, command: as in `evaluate`.
    """
    metric = scores.metric
    results = {
        "schema": SCHEMA,
        "task": data.task,
        "model": model,
        "seed": seed,
        "training": training,
        "data": {
            "name": data.name,
            "split": split,
            "split_protocol": data.split_protocol,
            "image_size": [image_size["height"], image_size["width"]],
            "frames": len(data.split(split)),
            "videos": metric.videos,
            "videos_are_public": data.videos_are_public,
            "labels": list(data.labels),
            "background": None if data.background_id is None else data.labels[data.background_id],
            "notes": [*data.notes, *_background_notes(metric)],
            "leakage": leakage.note,
            "selected": sorted(leakage.selected),
        },
        **measure(metric, data.labels, data.task, resamples),
        "comparisons": {},
        "versions": library_versions(),
    }
    if command is not None:
        results["command"] = mask_tokens(command)
    return Evaluation(results, scores)


def training_record(data: SurgicalData, mode: str, **settings) -> dict:
    """Build the content of `training` in the results.

    Args:
        data: dataset that trained the model, with the fraction of the training videos that was used.
        mode: `results.FINE_TUNING`, `results.FROZEN`, or the method of a probe.
        settings: settings of a probe.
    """
    videos = training_videos(data)
    return {
        "mode": mode,
        "train_fraction": data.train_fraction,
        "train_videos": len(videos),
        "train_frames": len(data.splits["train"]),
        "train_video_names": videos if data.videos_are_public else None,
        **settings,
    }


def majority_class_baseline(data: SurgicalData, split: str = "validation") -> dict:
    """Compute the metrics of a constant prediction, the most frequent class of the train split's pixels."""
    pixels = np.zeros(256, np.int64)
    for row in data.split("train"):
        pixels += np.bincount(row["mask"].ravel(), minlength=256)
    majority = int(pixels[: len(data.labels)].argmax())
    metric = segmentation_metric(data)
    for row in data.split(split):
        metric.add(np.full_like(row["mask"], majority), row["mask"], row["video"])
    return measure(metric, data.labels, "semantic-segmentation", resamples=0)["metrics"]


def write_results(results: dict, path: str | os.PathLike) -> None:
    """Write results as JSON atomically. NaN becomes null."""
    text = json.dumps(_without_nan(results), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, durable=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def measure(metric, labels: tuple[str, ...], task: str, resamples: int) -> dict:
    """Compute definitions, metrics, intervals, bootstrap, and per_video of a results file.

    Args:
        metric: metric with the records of all frames.
        labels: names of the classes, which replace class ids.
        task: task as in a results file.
        resamples: number of bootstrap resamples. 0 disables intervals.
    """
    computed = metric.compute()
    intervals, draws = metric_intervals(metric, resamples) if resamples else ({}, {})

    def kept(values: dict) -> dict:
        """Remove metrics that require temporal order for tasks without it."""
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
            name: [round(value, 6) for value in draws[name].tolist()]
            for name in TASKS[task].headlines
            if name in draws
        },
        "per_video": {
            video: kept(values) | {"per_class": by_label(values["per_class"])}
            for video, values in computed["per_video"].items()
        },
    }


def _background_notes(metric) -> list[str]:
    """Return notes on frames and videos whose labels have no foreground."""
    if not isinstance(metric, SegmentationMetric) or metric.background_id is None:
        return []
    computed = metric.compute()
    if not computed["background_frames"]:
        return []
    frames, without = computed["frames"], computed["videos_without_foreground"]
    note = f"{computed['background_frames']} of {frames} frames show only background."
    if not without:
        return [note]
    return [note, f"Videos without foreground, which are excluded from means over videos: {', '.join(without)}."]


def library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a source tree that is not installed
            versions[name] = "not installed"
    return versions


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
