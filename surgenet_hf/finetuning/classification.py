"""Frame classification on Trainer, with one label per frame (phases) or several with soft targets (CVS, tools)."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction, TrainingArguments, set_seed

from ..data import SurgicalData
from ..heads import build_classifier
from ..metrics import PhaseMetric
from ..models import is_surgenet
from ..tasks import multi_label_metric, selection_metric
from .arguments import ClassificationArguments, ModelArguments, SurgeNetTrainingArguments, TrainDataArguments
from .frames import train_on_frames
from .run import evaluate_and_save, finished_results, load_training_data, output_folder, prepare, run_record
from .segmentation import build_with_processor
from .trainer import SurgeNetTrainer, balanced_weights


def run(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    classification_args: ClassificationArguments,
    training_args: SurgeNetTrainingArguments,
    data: SurgicalData | None = None,
    command: str | None = None,
    on_start: Callable[[], None] | None = None,
) -> dict | None:
    """Fine-tune and evaluate a frame classifier. For arguments, results, and errors, see `segmentation.run`."""
    set_seed(training_args.seed)
    data = load_training_data(
        model_args, data_args, training_args, ("image-classification", "phase-recognition"), data
    )
    model, processor = prepare(partial(build_model, pooling=classification_args.pooling), model_args, data)
    record = run_record(model, data, training_args, model_args, data_args, classification_args)
    if (results := finished_results(training_args, record)) is not None:
        return results
    with output_folder(training_args, on_start):
        trainer = finetune(
            model,
            processor,
            data,
            training_args,
            loss=classification_loss(data, model_args.class_weights == "balanced"),
            record=record,
            **model_args.options(),
        )
        is_frozen = model_args.freeze_backbone
        return evaluate_and_save(trainer, processor, data, model_args.eval_split, None, command, is_frozen)


def build_model(source, data: SurgicalData, image_size: int | None = None, pooling: str | None = None):
    """Build a float32 frame classifier and its image processor, like `segmentation.build_model`.

    Args:
        source, data, image_size: as for `segmentation.build_model`.
        pooling: pooling of a new head, see `surgenet_hf.heads.build_classifier`.
    """
    build = partial(build_classifier, pooling=pooling, problem_type=data.problem_type)
    return build_with_processor(build, source, data, image_size)


def finetune(
    model,
    processor,
    data: SurgicalData,
    training_args: TrainingArguments,
    augmentation: str = "light",
    loss=None,
    **options,
) -> SurgeNetTrainer:
    """Train on the train split. Trainer's own evaluation runs on the validation split and selects checkpoints.

    Its metric is "eval_mean_average_precision" with several labels per frame ("eval_mean_video_average_precision" for
    CholecT50), and "eval_macro_f1" with one. With one label, it also returns "eval_accuracy".

    Args:
        model, processor: model and image processor from `build_model`.
        data: dataset to train on.
        training_args: the seed determines order and augmentation.
        augmentation: augmentation of the training frames, see `Frames`. Phases are trained without flips, as in the
            authors' code.
        loss: `loss(logits, labels)` from `classification_loss`. None: the loss of the model.
        options: arguments of `SurgeNetTrainer`.

    Returns:
        The Trainer after training.
    """
    if loss is None and not is_surgenet(model.config):
        loss = F.cross_entropy if data.is_single_label else F.binary_cross_entropy_with_logits
    is_phases = data.is_single_label and data.frames_per_second is not None
    return train_on_frames(
        model,
        processor,
        data,
        training_args,
        augmentation,
        flip=not is_phases,
        compute_metrics=single_label_metrics if data.is_single_label else partial(multi_label_metrics, data),
        task_metric=selection_metric(data),
        loss=loss,
        **options,
    )


def multi_label_metrics(data: SurgicalData, predictions: EvalPrediction) -> dict[str, float]:
    """Compute metrics of logits (n, k) and soft targets (n, k) of the frames of the validation split, in its order."""
    metric = multi_label_metric(data)
    videos = data.splits["validation"].select_columns(["video"])[:]["video"]
    metric.add(1 / (1 + np.exp(-predictions.predictions.astype(np.float64))), predictions.label_ids, videos)
    return {name: value for name, value in metric.compute().items() if isinstance(value, float)}


def single_label_metrics(predictions: EvalPrediction) -> dict[str, float]:
    """Compute metrics of logits (n, k) and class ids (n,)."""
    metric = PhaseMetric(predictions.predictions.shape[1])
    metric.add(predictions.predictions.argmax(1), predictions.label_ids, "all")
    computed = metric.compute()
    return {name: computed[name] for name in ("accuracy", "macro_f1")}


def classification_loss(data: SurgicalData, balanced: bool):
    """Return `loss(logits (B, k), labels) -> scalar` with balanced classes, or None for the loss of the model.

    With one label per frame, the weight of a class is 1 / frequency. With several, the weight of the positives of a
    class is negatives / positives.

    Args:
        data: dataset whose train split gives the frequencies.
        balanced: whether to balance the classes. False: return None.
    """
    if not balanced:
        return None
    labels = np.array(data.splits["train"].select_columns(["labels"])[:]["labels"], dtype=np.float32)
    if not data.is_single_label:
        positives = torch.from_numpy(labels).sum(0)
        weights = (len(labels) - positives) / positives.clamp(min=1)
        return lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights.to(logits))
    counts = torch.bincount(torch.from_numpy(labels).long(), minlength=len(data.labels))
    weights = balanced_weights(counts)
    return lambda logits, labels: F.cross_entropy(logits, labels, weight=weights.to(logits))
