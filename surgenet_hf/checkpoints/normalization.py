"""Choice of the normalization that the weights in a file expect."""

import logging

import numpy as np
from transformers import PreTrainedConfig

from ..errors import UserError
from .catalog import NORMALIZATIONS, UNKNOWN_STATISTICS, find_by_sha256
from .reading import CheckpointFile, plain

logger = logging.getLogger(__name__)


def choose_normalization(
    checkpoint: CheckpointFile, config: PreTrainedConfig, choice: str = "auto"
) -> tuple[str, str]:
    """Return the normalization that the weights expect, a key of `NORMALIZATIONS`, and the reason.

    With "auto", it comes from the `args` of a full DINO checkpoint, or else from the checksum of a published file.
    Without either, StarReLU and vision transformers imply ImageNet's normalization. In all other cases it is
    SurgeNet's own, with a warning.

    Raises:
        UserError: `choice` is unknown, the file records another normalization, or the file is a masked autoencoder,
            which records none.
    """
    if choice != "auto":
        if choice not in NORMALIZATIONS:
            raise UserError(f"normalization must be 'auto' or one of {sorted(NORMALIZATIONS)}, got {choice!r}")
        return choice, "requested"
    if "data_mean" in checkpoint.args and "data_std" in checkpoint.args:
        found = [plain(checkpoint.args["data_mean"]), plain(checkpoint.args["data_std"])]
        for name, known in NORMALIZATIONS.items():
            if _is_close(found, known):
                return name, "data_mean and data_std in the checkpoint's args"
        raise UserError(
            f"{checkpoint.path} was trained with mean {found[0]} and std {found[1]}, expected SurgeNet's or "
            "ImageNet's. Convert with normalization 'surgenet', and then set image_mean and image_std of the saved "
            "image processor"
        )
    if "decoder" in checkpoint.heads:
        raise UserError(
            f"{checkpoint.path} contains a masked autoencoder, which does not record its normalization. Give "
            "normalization (--normalization) endovit for EndoViT, or imagenet for weights that were pretrained on "
            "ImageNet"
        )
    if entry := find_by_sha256(checkpoint.sha256):
        return entry.normalization, entry.normalization_reason or f"checksum of the published {entry.name}"
    if config.model_type != "surgenet":
        return "imagenet", UNKNOWN_STATISTICS
    if config.activation == "star_relu":
        return "imagenet", "StarReLU, as in the ImageNet CAFormer"
    logger.warning(
        f"{checkpoint.path.name} does not record the normalization that it was trained with. Using SurgeNet's. "
        "If it was trained with ImageNet's, convert it again with normalization (--normalization) imagenet."
    )
    return "surgenet", "assumed: the file does not record it"


def _is_close(found: list, known: tuple) -> bool:
    try:
        return np.shape(found) == np.shape(known) and np.allclose(np.asarray(found, dtype=float), known, atol=1e-4)
    except (TypeError, ValueError):  # not numbers, or different numbers of means and standard deviations
        return False
