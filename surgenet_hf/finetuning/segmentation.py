"""Semantic segmentation on the Trainer of transformers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import EvalPrediction, PreTrainedConfig, TrainingArguments, set_seed

from ..checkpoints.catalog import RANDOM_WEIGHTS
from ..data import SurgicalData
from ..errors import UserError
from ..heads import build_segmenter
from ..image_processing import IMAGE_SIZE, build_image_processor, check_image_size, load_image_processor
from ..inference.prediction import resize_logits
from ..leakage import start_record
from ..metrics import SegmentationMetric
from ..models import is_surgenet, load_config
from .arguments import LOSSES, ModelArguments, SegmentationArguments, SurgeNetTrainingArguments, TrainDataArguments
from .frames import train_on_frames
from .run import evaluate_and_save, finished_results, load_training_data, output_folder, prepare, run_record
from .trainer import SurgeNetTrainer, balanced_weights
from .universal import class_maps, is_universal, own_loss, universal_options

DEFAULT_IMAGE_SIZE = 256  # pixels, for SurgeNet


def run(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    loss_args: SegmentationArguments,
    training_args: SurgeNetTrainingArguments,
    data: SurgicalData | None = None,
    command: str | None = None,
    on_start: Callable[[], None] | None = None,
) -> dict | None:
    """Fine-tune and evaluate a segmentation model, and write model/, results.json, and figures to the output folder.

    Args:
        model_args, data_args, loss_args, training_args: options, see `surgenet_hf.finetuning.arguments`.
        data: dataset instead of the one that `data_args` names.
        command: command line, recorded in results.json.
        on_start: function that the main process calls once the run owns its output folder.

    Returns:
        The results, as in results.json. If a finished run is resumed, its results. None if the data has no split to
        evaluate on.

    Raises:
        UserError: options, data, or output folder do not allow the run.
        TrainingStopped: training has diverged.
    """
    set_seed(training_args.seed)
    data = load_training_data(model_args, data_args, training_args, ("semantic-segmentation",), data)
    model, processor = prepare(partial(build_model, head=loss_args.head), model_args, data)
    weights = pixel_weights(data) if model_args.class_weights == "balanced" else None
    if is_universal(model) and (weights is not None or loss_args.loss != "cross_entropy"):
        raise UserError(
            f"{type(model).__name__} has its own loss: omit --class_weights and --loss, or choose another --head"
        )
    record = run_record(model, data, training_args, model_args, data_args, loss_args)
    if (results := finished_results(training_args, record)) is not None:
        return results
    with output_folder(training_args, on_start):
        trainer = finetune(
            model,
            processor,
            data,
            training_args,
            loss=segmentation_loss(loss_args.loss, data.ignore_index, weights),
            record=record,
            **model_args.options(),
        )
        is_frozen = model_args.freeze_backbone
        return evaluate_and_save(trainer, processor, data, model_args.eval_split, None, command, is_frozen)


def build_model(source: str | PreTrainedConfig, data, image_size: int | None = None, head: str | None = None):
    """Build a float32 segmentation model for the classes of a dataset, and its image processor.

    Args:
        source: a name on the Hub, a local folder, or a configuration for a randomly initialized model.
        data: dataset that determines the classes and the ignore index.
        image_size: height and width in pixels that the processor resizes to. None: see `build_with_processor`.
        head: new head on the backbone, see `surgenet_hf.heads.build_segmenter`.

    Returns:
        (model, processor).

    Raises:
        UserError: the model does not exist; its head is not possible; or its folder has no image processor, and its
            config does not record the normalization.
    """
    build = partial(build_segmenter, head=head, image_size=image_size, semantic_loss_ignore_index=data.ignore_index)
    return build_with_processor(build, source, data, image_size)


def build_with_processor(build: Callable, source: str | PreTrainedConfig, data, image_size: int | None):
    """Build a model for the classes of a dataset, record the source of its weights, and load its image processor.

    Args:
        build: function (source, **values of the configuration) -> model.
        source: a name on the Hub, a local folder, or a configuration for a randomly initialized model.
        data: dataset that determines the classes.
        image_size: height and width in pixels that the processor resizes to. None: 256 for SurgeNet, otherwise the
            size of the model's image processor.

    Returns:
        (model, processor).

    Raises:
        UserError: the model does not exist; or its folder has no image processor, and its config does not record the
            normalization; or its patches do not divide the image size.
    """
    labels = {"id2label": dict(enumerate(data.labels)), "label2id": {label: i for i, label in enumerate(data.labels)}}
    try:
        config = source if isinstance(source, PreTrainedConfig) else load_config(source)
        if image_size is None and is_surgenet(config):
            image_size = DEFAULT_IMAGE_SIZE
        model = build(source, **labels)
        if model.config.model_type.startswith("eomt"):  # its grid of patches is fixed
            image_size = model.config.image_size
        if isinstance(source, PreTrainedConfig):
            normalization = "surgenet" if is_surgenet(config) else "imagenet"
            model.config.pretraining = {"name": RANDOM_WEIGHTS, "normalization": normalization}
            model.config.finetuning = []
            own_size = getattr(config, "image_size", None)
            processor = build_image_processor(normalization, image_size or (own_size if own_size else IMAGE_SIZE))
        else:
            start_record(config)
            model.config.pretraining = getattr(config, "pretraining", None)
            if model.config.pretraining is None and not Path(source).is_dir():
                model.config.pretraining = {"name": source}
            model.config.finetuning = getattr(config, "finetuning", None)
            processor = load_image_processor(source, image_size)
        check_image_size(config, processor.size["height"])
    except UserError:
        raise
    except OSError as error:  # its message does not always name the model
        raise UserError(f"no model with an image processor at {source}: {error}") from error
    return model, processor


def finetune(
    model,
    processor,
    data: SurgicalData,
    training_args: TrainingArguments,
    augmentation: str = "light",
    loss=None,
    **options,
) -> SurgeNetTrainer:
    """Train on the train split. Trainer's own evaluation, if enabled, runs on the validation split.

    That evaluation has the processor's image size. It only selects checkpoints, by "eval_pooled_dice". Reported
    metrics come from `surgenet_hf.evaluation.evaluate`.

    Args:
        model, processor: model and image processor from `build_model`.
        data: dataset to train on.
        training_args: the seed determines order and augmentation.
        augmentation: augmentation of the training frames, see `Frames`.
        loss: `loss(logits, labels)` from `segmentation_loss`. None: the model's own cross-entropy.
        options: arguments of `train_on_frames`.

    Returns:
        The Trainer after training.

    Raises:
        ValueError: the model and the data have different numbers of classes.
    """
    if model.config.num_labels != len(data.labels):
        raise ValueError(
            f"The model has {model.config.num_labels} classes, the dataset {data.name!r} has {len(data.labels)}: "
            "build the model with build_model(..., data)."
        )
    training_args.batch_eval_metrics = True  # avoids keeping the logits of a whole split in memory
    if is_universal(model):
        options |= universal_options(model, data.ignore_index)
        training_args.label_names = ["labels"]  # not the targets of the loss
        loss = own_loss
    elif loss is None:
        loss = segmentation_loss("cross_entropy", data.ignore_index)
    return train_on_frames(
        model,
        processor,
        data,
        training_args,
        augmentation,
        compute_metrics=_EvalMetrics(data),
        preprocess_logits_for_metrics=class_maps,
        task_metric="pooled_dice",
        loss=loss,
        **options,
    )


def segmentation_loss(name: str, ignore_index: int = 255, weights: torch.Tensor | None = None):
    """Return a function `loss(logits (B, k, h, w), labels (B, H, W)) -> scalar`.

    It resizes the logits to the size of the labels.

    Args:
        name: "cross_entropy", the mean over the pixels that are not ignored; or "cross_entropy+dice", which adds 1
            minus the soft Dice (Milletari et al. 2016). Dice is pooled over the batch and averaged over the classes in
            its labels.
        ignore_index: label of ignored pixels.
        weights: (k,) weights of the classes in the cross-entropy.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {LOSSES}, got {name!r}")

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kept = labels != ignore_index
        logits = resize_logits(logits, labels.shape[-2:])
        # Weight explicitly. With `weight=`, a batch of only ignored pixels would have a loss of NaN.
        each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
        pixel_weights = kept.float() if weights is None else weights.to(logits)[labels.where(kept, 0)] * kept
        value = (each * pixel_weights).sum() / pixel_weights.sum().clamp(min=1e-6)
        if name == "cross_entropy+dice":
            probabilities = logits.softmax(1) * kept[:, None]
            targets = F.one_hot(labels.where(kept, 0), logits.shape[1]).movedim(-1, 1) * kept[:, None]
            common = (probabilities * targets).sum((0, 2, 3))
            total = probabilities.sum((0, 2, 3)) + targets.sum((0, 2, 3))
            present = targets.sum((0, 2, 3)) > 0
            dice = 2 * common / total.clamp(min=1e-6)
            value = value + ((1 - dice) * present).sum() / present.sum().clamp(min=1)
        return value

    return loss


def pixel_weights(data: SurgicalData) -> torch.Tensor:
    """Compute balanced weights (k,) of the classes, from the pixels of the train split."""
    counts = torch.zeros(256, dtype=torch.int64)
    for row in data.splits["train"].select_columns(["mask"]):
        counts += torch.bincount(torch.from_numpy(row["mask"]).flatten().long(), minlength=256)
    return balanced_weights(counts[: len(data.labels)])


class _EvalMetrics:
    """`compute_metrics` function for `batch_eval_metrics=True`.

    It is called with every batch and computes the metrics at the last one.
    """

    def __init__(self, data: SurgicalData):
        self.settings = (len(data.labels), data.ignore_index, False, data.background_id)
        self.metric = self.fresh()

    def fresh(self) -> SegmentationMetric:
        return SegmentationMetric(*self.settings)

    def __call__(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        for prediction, labels in zip(batch.predictions.cpu().numpy(), batch.label_ids.cpu().numpy(), strict=True):
            self.metric.add(prediction, labels)
        if not compute_result:
            return {}
        computed = self.metric.compute()
        self.metric = self.fresh()
        return {key: computed[key] for key in ("pooled_dice", "pooled_iou", "pixel_accuracy")}
