"""Semantic segmentation on transformers' Trainer."""

import copy

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    PreTrainedConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..checkpoints.conversion import build_image_processor
from ..data import SegmentationData
from ..data.sampling import generator
from ..metrics import SegmentationMetric


class SegmentationFrames(torch.utils.data.Dataset):
    """Rows of a split as {"pixel_values": (3, height, width), "labels": (height, width)}.

    Args:
        split: rows {"image": PIL, "mask": uint8 (H, W), ...}.
        processor: the model's image processor.
        augment_seed: with a seed, frames and masks are augmented, anew in every epoch; None leaves them as they are.
    """

    def __init__(self, split, processor, augment_seed: int | None = None):
        self.split = split
        self.processor = processor
        self.augment_seed = augment_seed
        # in shared memory, so that data loader workers that live through all epochs see it change
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.split[index]
        image, mask = row["image"], row["mask"]
        if self.augment_seed is not None:
            image, mask = augment_frame(image, mask, generator(self.augment_seed, int(self.epoch), index))
        inputs = self.processor(image, segmentation_maps=mask, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"][0]}


def augment_frame(image: Image.Image, mask: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Crop (70 to 100 % of each side), flip (every second time) and change brightness and contrast (up to 20 %).

    Args:
        image: RGB of size (W, H).
        mask: uint8 (H, W); it is cropped and flipped with the image.
        rng: the only source of random draws.

    Returns:
        image and mask at the crop's size; the image processor resizes both.
    """
    height, width = mask.shape
    scale = rng.uniform(0.7, 1.0)
    size = [round(scale * height), round(scale * width)]
    crop = [int(rng.integers(0, height - size[0] + 1)), int(rng.integers(0, width - size[1] + 1)), *size]
    flip = rng.random() < 0.5
    brightness, contrast = rng.uniform(0.8, 1.2, size=2)

    image, mask = F.crop(image, *crop), F.crop(Image.fromarray(mask), *crop)
    if flip:
        image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
    image = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
    return image, np.array(mask)


def build_model(source: str | PreTrainedConfig, data: SegmentationData, image_size: int):
    """A segmentation model for the classes of a data set, in float32, and its image processor.

    Args:
        source: a name on the Hub or a local folder; or a configuration, for a randomly initialised model.
        data: gives the classes and the ignore index.
        image_size: height and width in pixels that the processor resizes to.

    Returns:
        (model, processor)

    Raises:
        OSError: no model of that name, or it cannot be had.
    """
    classes = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: i for i, label in enumerate(data.labels)},
        "semantic_loss_ignore_index": data.ignore_index,
    }
    if isinstance(source, PreTrainedConfig):
        config = copy.deepcopy(source)
        config.update(classes)
        config.pretraining = {"name": "none (random initialisation)", "statistics": "surgenet"}
        model = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)
        processor = build_image_processor("surgenet", image_size)
    else:
        try:
            # a head for other classes has other sizes: it starts anew, and transformers says so
            model = AutoModelForSemanticSegmentation.from_pretrained(
                source, **classes, dtype=torch.float32, ignore_mismatched_sizes=True
            )
            size = {"height": image_size, "width": image_size}
            processor = AutoImageProcessor.from_pretrained(source, size=size)
        except OSError as error:  # not all of these name the model
            raise OSError(f"The model {source!r} cannot be loaded: {error}") from error
    return model, processor


def finetune(
    model,
    processor,
    data: SegmentationData,
    training_args: TrainingArguments,
    augment: bool = True,
    callbacks: list[TrainerCallback] | None = None,
) -> Trainer:
    """Train on the train split; Trainer's own evaluation, if asked for, runs on the validation split.

    That evaluation is at the processor's size and serves to choose checkpoints ("eval_mean_dice"); figures for others
    come from `surgenet_hf.evaluation`.

    Args:
        model, processor: as `build_model` gives them.
        training_args: its seed decides order and augmentation.
        augment: augment the training frames.

    Returns:
        the Trainer after training.

    Raises:
        ValueError: the model has another number of classes than the data.
    """
    if model.config.num_labels != len(data.labels):
        raise ValueError(
            f"The model has {model.config.num_labels} classes, the data set {data.name!r} has {len(data.labels)}: "
            "build the model with build_model(..., data)."
        )
    training_args.batch_eval_metrics = True  # the metric accumulates: no logits of a whole split in memory
    frames = SegmentationFrames(data.splits["train"], processor, training_args.seed if augment else None)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=frames,
        eval_dataset=SegmentationFrames(data.splits["validation"], processor),
        processing_class=processor,
        compute_metrics=_EvalMetrics(len(data.labels), data.ignore_index),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(1),
        callbacks=[_SetEpoch(frames), *(callbacks or [])],
    )
    trainer.train()
    return trainer


class _SetEpoch(TrainerCallback):
    """Tell the training frames the epoch: accelerate's data loader does so only in a run of one process."""

    def __init__(self, frames: SegmentationFrames):
        self.frames = frames

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.frames.set_epoch(int(state.epoch))


class _EvalMetrics:
    """`compute_metrics` for `batch_eval_metrics=True`: called with every batch, computes at the last."""

    def __init__(self, num_labels: int, ignore_index: int):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.metric = SegmentationMetric(num_labels, ignore_index)

    def __call__(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        for prediction, labels in zip(batch.predictions.cpu().numpy(), batch.label_ids.cpu().numpy(), strict=True):
            self.metric.add(prediction, labels)
        if not compute_result:
            return {}
        computed = self.metric.compute()
        self.metric = SegmentationMetric(self.num_labels, self.ignore_index)
        return {key: computed[key] for key in ("mean_dice", "mean_iou", "pixel_accuracy")}
