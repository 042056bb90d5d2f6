"""Licenses of weights that were trained from other weights."""

from typing import Any

from transformers import PreTrainedConfig

from .catalog import base_entry, is_from_scratch

DINOV3_LICENSE_URL = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"


def has_dinov3_license(config: PreTrainedConfig) -> bool:
    """Return whether Meta's DINOv3 License can apply: to DINOv3 models, unless they were trained from random weights.

    The license covers Meta's weights and all weights that are derived from them, such as SurgeNet's DINOv3.

    Args:
        config: config of any model, possibly with a `backbone_config`.
    """
    name = (getattr(config, "pretraining", None) or {}).get("name")
    entry = base_entry(name)
    if entry is not None:
        return entry.license == "other"
    backbone: Any = getattr(config, "backbone_config", None) or config
    names = (backbone.model_type, getattr(backbone, "architecture", None), getattr(backbone, "backbone", None))
    return any("dinov3" in (name or "") for name in names) and not is_from_scratch(name)


def license_names(config: PreTrainedConfig, surgenet: bool) -> tuple[str, str | None]:
    """Return `license` and `license_name` of a model's weights, as in the metadata of a card.

    The license is that of the initial weights. Unknown initial weights of a SurgeNet model could be SurgeNet's, so
    SurgeNet's license applies. Weights that were trained from scratch, and those of other families, have the license
    "other".

    Args:
        config: config of the model, possibly with a `backbone_config`.
        surgenet: whether its backbone is of the model type surgenet.
    """
    name = (getattr(config, "pretraining", None) or {}).get("name", "unknown")
    entry = base_entry(name)
    inherited = "cc-by-nc-sa-4.0" if surgenet and not is_from_scratch(name) else "other"
    license = entry.license if entry else inherited
    if not has_dinov3_license(config):
        return license, None
    return license, "cc-by-nc-sa-4.0-and-" * (entry is not None) + "dinov3-license"
