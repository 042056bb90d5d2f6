"""Training of models that predict queries with a mask each: Mask2Former, EoMT, and others of transformers."""

from collections.abc import Callable

import torch
from transformers import TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING

from ..eomt import mask_probabilities, set_mask_probabilities
from ..inference.prediction import query_logits, resize_logits


def is_universal(model) -> bool:
    """Return whether a model predicts queries with a mask each, and computes its own loss."""
    return type(model.config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING


def mask_targets(ignore_index: int) -> Callable:
    """Return a data collator that adds the targets of a universal segmentation model to a batch.

    Args:
        ignore_index: label of pixels without a class.

    Returns:
        A function of a list of items of `Frames`. Its batch has "pixel_values" (B, 3, H, W), "labels" (B, H, W),
        "class_labels", a list of (n,) ids of the classes in each frame, and "mask_labels", a list of their masks
        (n, H, W) float32.
    """

    def collate(items: list[dict]) -> dict:
        batch: dict = {name: torch.stack([item[name] for item in items]) for name in ("pixel_values", "labels")}
        present = [labels.unique() for labels in batch["labels"]]
        batch["class_labels"] = [classes[classes != ignore_index].long() for classes in present]
        batch["mask_labels"] = [
            (labels == classes[:, None, None]).float()
            for labels, classes in zip(batch["labels"], batch["class_labels"], strict=True)
        ]
        return batch

    return collate


def universal_options(model, ignore_index: int) -> dict:
    """Return the options of `SurgeNetTrainer` for a universal segmentation model.

    Args:
        model: the model.
        ignore_index: label of pixels without a class.
    """
    callbacks = [AnnealMasks()] if model.config.model_type.startswith("eomt") else []
    return {"data_collator": mask_targets(ignore_index), "loss_on": "loss", "callbacks": callbacks}


class AnnealMasks(TrainerCallback):
    """Callback that reduces the probability of masked attention of an EoMT, see `eomt.mask_probabilities`.

    At the end, which may be a checkpoint from the middle of the annealing, probabilities are rounded to 0 or 1.
    Otherwise, predictions would be random.
    """

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        probabilities = mask_probabilities(state.global_step, state.max_steps, model.config.num_blocks)
        set_mask_probabilities(model, probabilities)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        model.attn_mask_probs.round_()


def own_loss(loss: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss that the model has computed."""
    return loss


def class_maps(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Return the predicted class maps (B, H, W) at the size of the labels."""
    if isinstance(logits, tuple):
        logits = query_logits(logits[0], resize_logits(logits[1], labels.shape[-2:]))
    return resize_logits(logits, labels.shape[-2:]).argmax(1)
