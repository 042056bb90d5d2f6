"""Registry of the tasks, with all their differences outside of training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
)

from .checkpoints.reading import check_finite
from .data import SurgicalData
from .distributed import gather, process_state
from .errors import UserError
from .image_processing import load_image_processor
from .inference.embeddings import load_backbone, model_label
from .inference.prediction import check_classes, predict_phases, predict_scores, predict_segmentation, video_ranges
from .inference.predictors import EMBEDDINGS, Predictor
from .metrics import CHOLEC80_TRANSITIONS, MultiLabelMetric, PhaseMetric, SegmentationMetric
from .models import load_config, load_model, resolve_model


@dataclass
class Scores:
    """Metrics of a split.

    Attributes:
        metric: accumulator with the records of all frames.
        truths: {video: phase labels (T,)}; empty for other tasks.
        predictions: {video: predicted phase ids (T,)}; empty for other tasks.
    """

    metric: SegmentationMetric | MultiLabelMetric | PhaseMetric
    truths: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)


def segmentation_metric(data: SurgicalData) -> SegmentationMetric:
    """Return an empty metric with the classes, ignore index, and background of a dataset."""
    return SegmentationMetric(len(data.labels), data.ignore_index, background_id=data.background_id)


def phase_metric(data: SurgicalData) -> PhaseMetric:
    """Return an empty metric with the classes and the frame rate of a dataset with one label per frame."""
    transitions = CHOLEC80_TRANSITIONS if data.name == "cholec80-phase" else None
    return PhaseMetric(len(data.labels), frames_per_second=data.frames_per_second or 1.0, transitions=transitions)


def score_segmentation(model, processor, data: SurgicalData, rows, batch_size: int) -> Scores:
    """Predict the masks of a split and accumulate the metrics. All processes share the frames."""
    metric = segmentation_metric(data)
    for row, class_map in predict_segmentation(model, processor, rows, batch_size, _share(len(rows))):
        metric.add(class_map, row["mask"], row["video"])
    metric.records = gather(metric.records)
    return Scores(metric)


def multi_label_metric(data: SurgicalData) -> MultiLabelMetric:
    """Return an empty metric with the conventions of a dataset: video-wise average precision for CholecT50."""
    return MultiLabelMetric(len(data.labels), video_wise=data.name.startswith("cholect50"))


def selection_metric(data: SurgicalData) -> str:
    """Return the metric that selects a checkpoint or a regularization in the classification of frames."""
    if data.is_single_label:
        return "macro_f1"
    return "mean_video_average_precision" if multi_label_metric(data).video_wise else "mean_average_precision"


def score_frames(model, processor, data: SurgicalData, rows, batch_size: int) -> Scores:
    """Predict the labels of the frames of a split and accumulate the metrics. All processes share the frames."""
    if data.is_single_label:
        return score_phases(model, processor, data, rows, batch_size)
    metric = multi_label_metric(data)
    for row, scores in predict_scores(model, processor, rows, batch_size, _share(len(rows))):
        metric.add(scores[None], row["labels"][None], row["video"])
    metric.records = gather(metric.records)
    return Scores(metric)


def score_phases(model, processor, data: SurgicalData, rows, batch_size: int) -> Scores:
    """Predict the phases of each video of a split and accumulate the metrics. All processes share the videos."""
    found = Scores(phase_metric(data))
    videos = list(video_ranges(rows).items())
    for video, indices in (videos[i] for i in _share(len(videos))):
        found.truths[video], found.predictions[video] = predict_phases(model, processor, rows, indices)
        found.metric.add(found.predictions[video], found.truths[video], video)
    found.metric.records = gather(found.metric.records)
    found.truths, found.predictions = (dict(gather(list(x.items()))) for x in (found.truths, found.predictions))
    return found


def _share(total: int) -> range:
    """Return the indices of the items that this process handles."""
    state = process_state()
    return range(state.process_index, total, state.num_processes)


@dataclass(frozen=True)
class Task:
    """Description of a task.

    Attributes:
        auto_classes: Auto classes that load models with a head for the task, in the order in which they are tried.
        architecture: name of the SurgeNet model class with that head.
        pipeline_tag: name of the task on the Hub.
        headlines: names of the main metrics, most important first. For image classification, those of the problem type
            apply.
        command: `surgenet` command that trains a model for the task.
        score: function (model, processor, data, rows of a split, batch size) -> `Scores`.
    """

    auto_classes: tuple[type, ...]
    architecture: str
    pipeline_tag: str
    headlines: tuple[str, ...]
    command: str
    score: Callable[..., Scores]


TASKS = {
    "semantic-segmentation": Task(
        auto_classes=(AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation),
        architecture="SurgeNetForSemanticSegmentation",
        pipeline_tag="image-segmentation",
        headlines=("video_dice", "video_assd"),
        command="finetune-segmentation",
        score=score_segmentation,
    ),
    "image-classification": Task(
        auto_classes=(AutoModelForImageClassification,),
        architecture="SurgeNetForImageClassification",
        pipeline_tag="image-classification",
        headlines=(
            "mean_video_average_precision",
            "mean_average_precision",
            "mean_balanced_accuracy",
            "accuracy",
            "macro_f1",
        ),
        command="finetune-classification",
        score=score_frames,
    ),
    "phase-recognition": Task(
        auto_classes=(AutoModel,),
        architecture="SurgeNetForPhaseRecognition",
        pipeline_tag="video-classification",
        headlines=("accuracy", "macro_f1"),
        command="finetune-phase",
        score=score_phases,
    ),
}


def find_task(config: PreTrainedConfig) -> tuple[str, type] | None:
    """Return the task of a saved model and the Auto class that loads it, or None for a model without a trained head.

    Args:
        config: configuration of the saved model. The first of its `architectures` determines the task.
    """
    architecture = config.architectures[0] if config.architectures else None
    for name, task in TASKS.items():
        auto_class: Any
        for auto_class in task.auto_classes:
            if auto_class is AutoModel:  # also loads models without a head
                if architecture == task.architecture:
                    return name, auto_class
            elif type(config) in auto_class._model_mapping:
                found = auto_class._model_mapping[type(config)]
                if architecture in {cls.__name__ for cls in (found if isinstance(found, tuple) else (found,))}:
                    return name, auto_class
    return None


def load_predictor(model_name_or_path: str, task: str | None = None, dense: bool = False) -> Predictor:
    """Load a model in float32 for predictions on the device of this process.

    Args:
        model_name_or_path: folder, output folder of a training, Hub repository, or name of a published checkpoint.
        task: "embeddings", or None for the task of the model. A model without a trained head gives embeddings.
        dense: whether embeddings include the feature map.

    Raises:
        UserError: the model does not exist or is not complete, its weights are not finite, or the task is unknown.
    """
    if task not in (None, EMBEDDINGS):
        raise UserError(f"task is {task!r}; expected {EMBEDDINGS!r}, or nothing for the task of the model")
    source = resolve_model(model_name_or_path)
    found = None if task == EMBEDDINGS else find_task(load_config(source))
    if found is None:
        name, (model, _) = EMBEDDINGS, load_backbone(source)
    else:
        name, auto_class = found
        model = load_model(auto_class, source, lambda model: model.state_dict(), dtype=torch.float32)
        if name == "semantic-segmentation":
            check_classes(model.config)
    check_finite(model.state_dict(), "The model")
    model.to(process_state().device)
    return Predictor(name, model, load_image_processor(source), model_label(model_name_or_path), dense)
