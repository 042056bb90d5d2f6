"""Image processors of SurgeNet models."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel, SegformerImageProcessor

from .checkpoints.catalog import NORMALIZATIONS, recorded_normalization
from .errors import UserError

logger = logging.getLogger(__name__)

IMAGE_SIZE = 224  # pixels, the default height and width
WHOLE_PATCHES = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # model types
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def image_processor_for(
    model: PreTrainedModel | PreTrainedConfig, image_size: int | None = None
) -> SegformerImageProcessor:
    """Build the image processor of a model, with the normalization recorded in its config.

    Args:
        model: converted model or its config. `config.pretraining["normalization"]` names the normalization.
        image_size: height and width, in pixels, of resized frames. Default: that of a vision transformer's config,
            otherwise 224.

    Raises:
        UserError: the config does not name a known normalization.
    """
    config = getattr(model, "config", model)
    found = recorded_normalization(getattr(config, "pretraining", None))
    if found not in NORMALIZATIONS:
        raise UserError(
            f"the config of {config.name_or_path or 'the model'} does not record the normalization of its weights: "
            f'pretraining["normalization"] is {found!r}, expected one of {", ".join(NORMALIZATIONS)}. If you know it, '
            'build the image processor with build_image_processor("surgenet") or ("imagenet") of '
            "surgenet_hf.image_processing, and save it in the folder of the model"
        )
    return build_image_processor(found, image_size or getattr(config, "image_size", None) or IMAGE_SIZE)


def check_image_size(config: PreTrainedConfig, image_size: int) -> None:
    """Check that the patches of a DINO vision transformer divide its input, of which it would ignore a part otherwise.

    Args:
        config: config of any model, possibly with a `backbone_config`.
        image_size: height and width of its input in pixels.

    Raises:
        UserError: the image size is not a multiple of the patch size.
    """
    backbone: Any = getattr(config, "backbone_config", None) or config
    if backbone.model_type not in WHOLE_PATCHES:
        return
    patch = backbone.patch_size
    if image_size % patch:
        lower = image_size // patch * patch
        near = f"{lower} or {lower + patch}" if lower else f"{patch}"
        raise UserError(
            f"the image size (--image_size) must be a multiple of the patch size {patch} of this "
            f"{backbone.model_type} model, got {image_size}; use {near}"
        )


def build_image_processor(normalization: str = "surgenet", image_size: int = IMAGE_SIZE) -> SegformerImageProcessor:
    """Build an image processor that converts to RGB, resizes to a square, and normalizes.

    Args:
        normalization: "surgenet" or "imagenet".
        image_size: height and width, in pixels, of resized frames.
    """
    return _square_processor(*NORMALIZATIONS[normalization], image_size)


def _square_processor(mean: Sequence[float], std: Sequence[float], image_size: int) -> SegformerImageProcessor:
    return SegformerImageProcessor(
        do_convert_rgb=True,
        size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )


def common_image_processor(processor, image_size: int | None = None) -> SegformerImageProcessor:
    """Convert the image processor of any model to the kind that this package uses for all models.

    Only mean, standard deviation, and size are kept. Frames are resized to a square without a crop, and masks in the
    same way.

    Args:
        processor: image processor of transformers or timm.
        image_size: height and width, in pixels, of resized frames. Default: the size of `processor`.

    Raises:
        UserError: the image processor has no size.
    """
    settings = getattr(processor, "data_config", {})  # of timm
    mean = settings.get("mean") or getattr(processor, "image_mean", None) or (0.0, 0.0, 0.0)
    std = settings.get("std") or getattr(processor, "image_std", None) or (1.0, 1.0, 1.0)
    if image_size is None:
        crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
        size = dict(crop or getattr(processor, "size", None) or {})
        image_size = settings.get("input_size", [None])[-1] or size.get("height") or size.get("shortest_edge")
        if image_size is None:
            raise UserError("the image processor of the model has no size; give --image_size")
    return _square_processor(mean, std, image_size)


def load_image_processor(source: str | Path, image_size: int | None = None):
    """Load the image processor of a model.

    If a folder has no image processor, it is rebuilt from the config with a warning.

    Args:
        source: folder, or repository on the Hub.
        image_size: height and width, in pixels, of resized frames. Default: the saved size, or that of
            `image_processor_for` for a rebuilt image processor.

    Raises:
        UserError: the folder has no image processor, and its config does not record the normalization; or the size is
            not possible, see `check_image_size`.
        OSError: the Hub has no such model or cannot be reached.
    """
    processor = _load_image_processor(source, image_size)
    if not Path(source).is_dir() or (Path(source) / "config.json").is_file():
        check_image_size(AutoConfig.from_pretrained(source), processor.size["height"])
    return processor


def _load_image_processor(source: str | Path, image_size: int | None):
    size = {} if image_size is None else {"size": {"height": image_size, "width": image_size}}
    folder = Path(source)
    if not folder.is_dir() or any((folder / name).is_file() for name in PROCESSOR_FILES):
        processor = AutoImageProcessor.from_pretrained(source)
        if isinstance(processor, SegformerImageProcessor):
            return AutoImageProcessor.from_pretrained(source, **size)
        return common_image_processor(processor, image_size)
    config = AutoConfig.from_pretrained(source)
    if config.model_type == "timm_wrapper":  # timm records the preprocessing in config.json
        return common_image_processor(AutoImageProcessor.from_pretrained(source), image_size)
    processor = image_processor_for(config, image_size)
    logger.warning(
        f"{folder} has no image processor. Rebuilt it from config.json: mean {processor.image_mean}, standard "
        f"deviation {processor.image_std}, frames resized to {processor.size['height']} pixels"
        + ("" if image_size else f". If the model was trained at another size, save its image processor in {folder}")
    )
    return processor
