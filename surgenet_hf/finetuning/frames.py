"""Training inputs from the rows of a dataset. Every random draw is a function of (seed, epoch, index)."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from transformers import TrainerCallback, TrainingArguments

from ..data import SurgicalData
from ..errors import UserError
from ..fast_gradients import faster_on_cpu
from ..rng import rng_for
from .trainer import SetEpoch, SurgeNetTrainer

# Smallest side of the crop and largest change of brightness and contrast, as fractions; largest rotation in degrees.
STRENGTHS = {"light": (0.7, 0.2, 0), "strong": (0.5, 0.4, 15)}


class Frames(torch.utils.data.Dataset):
    """Rows of a split as {"pixel_values": (3, height, width), "labels"}.

    Labels are class ids (height, width) of masks, a class id, or soft targets (num_labels,), depending on the rows.

    Args:
        split: rows {"image": PIL, "mask": uint8 (H, W) or "labels", ...}.
        processor: the model's image processor.
        augmentation: "none", "light", or "strong". It transforms frame and mask together and differs in every epoch.
        seed: seed of the augmentation.
        flip: whether the augmentation flips frames horizontally with probability 0.5.
    """

    def __init__(self, split, processor, augmentation: str = "none", seed: int = 0, flip: bool = True):
        if augmentation != "none" and augmentation not in STRENGTHS:
            raise UserError(f"augmentation must be none or one of {', '.join(STRENGTHS)}, got {augmentation!r}")
        self.split = split
        self.processor = processor
        self.augmentation = augmentation
        self.seed = seed
        self.flip = flip
        # Shared memory lets persistent data loader workers see changes.
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.split[index]
        image, mask = row["image"], row.get("mask")
        if self.augmentation != "none":
            rng = rng_for(self.seed, int(self.epoch), index)
            image, mask = augment_frame(image, mask, rng, self.augmentation, self.flip)
        inputs = self.processor(image, segmentation_maps=mask, return_tensors="pt")
        labels = torch.as_tensor(row["labels"]) if mask is None else inputs["labels"][0]
        return {"pixel_values": inputs["pixel_values"][0], "labels": labels}


def augment_frame(
    image: Image.Image,
    mask: np.ndarray | None,
    rng: np.random.Generator,
    strength: str = "light",
    flip: bool = True,
) -> tuple[Image.Image, np.ndarray | None]:
    """Crop, flip, and rotate an image and its mask, and change brightness and contrast of the image. See `STRENGTHS`.

    Only "strong" rotates.

    Args:
        image: RGB of size (W, H).
        mask: uint8 (H, W) or None.
        rng: the only source of randomness.
        strength: "light" or "strong".
        flip: whether to flip horizontally with probability 0.5.

    Returns:
        Image and mask at the size of the crop. The image processor resizes both. Corners that a rotation leaves empty
        are black in the image and 255 (ignored) in the mask.
    """
    smallest, jitter, degrees = STRENGTHS[strength]
    width, height = image.size
    scale = rng.uniform(smallest, 1.0)
    size = [round(scale * height), round(scale * width)]
    crop = [int(rng.integers(0, height - size[0] + 1)), int(rng.integers(0, width - size[1] + 1)), *size]
    flip = rng.random() < 0.5 and flip
    brightness, contrast = rng.uniform(1 - jitter, 1 + jitter, size=2)
    angle = rng.uniform(-degrees, degrees)

    def move(picture, fill):
        picture = F.crop(picture, *crop)
        picture = F.horizontal_flip(picture) if flip else picture
        return F.rotate(picture, angle, fill=fill) if degrees else picture

    image = F.adjust_contrast(F.adjust_brightness(move(image, 0), brightness), contrast)
    return image, None if mask is None else np.array(move(Image.fromarray(mask), 255))


def train_on_frames(
    model,
    processor,
    data: SurgicalData,
    training_args: TrainingArguments,
    augmentation: str,
    flip: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    fast_gradients: bool = False,
    **options,
) -> SurgeNetTrainer:
    """Train on the frames of the train split. Trainer's own evaluation runs on those of the validation split.

    Args:
        model, processor: model and its image processor.
        data: dataset to train on.
        training_args: the seed determines order and augmentation.
        augmentation, flip: see `Frames`.
        callbacks: additional callbacks of Trainer.
        fast_gradients: whether to use `surgenet_hf.fast_gradients` on a CPU.
        options: arguments of `SurgeNetTrainer`.

    Returns:
        The Trainer after training.
    """
    frames = Frames(data.splits["train"], processor, augmentation, training_args.seed, flip)
    trainer = SurgeNetTrainer(
        model=model,
        args=training_args,
        data=data,
        train_dataset=frames,
        eval_dataset=Frames(data.splits["validation"], processor) if "validation" in data.splits else None,
        processing_class=processor,
        callbacks=[SetEpoch(frames), *callbacks],
        **options,
    )
    with faster_on_cpu(model, training_args.bf16) if fast_gradients else nullcontext():
        trainer.train()
    return trainer
