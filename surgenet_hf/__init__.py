"""SurgeNet surgical foundation models for the Hugging Face ecosystem.

Importing this package registers the models with `AutoConfig`, `AutoModel`, `AutoBackbone`,
`AutoModelForImageClassification`, and `AutoModelForSemanticSegmentation`. It imports torch, transformers, and timm.
The functions for training, evaluation, and weight files are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from ._version import __version__
from .configuration_surgenet import SurgeNetConfig
from .configuration_surgenet_phase import SurgeNetPhaseConfig
from .configuration_surgical import SurgicalConfig
from .modeling_surgenet import (
    SurgeNetBackbone,
    SurgeNetForImageClassification,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)
from .modeling_surgenet_phase import SurgeNetForPhaseRecognition
from .modeling_surgical import SurgicalForImageClassification, SurgicalForSemanticSegmentation

if TYPE_CHECKING:
    from .api import evaluate, finetune_classification, finetune_phase, finetune_segmentation, predict, pretrain, probe
    from .checkpoints.conversion import convert_checkpoint
    from .data import load_data
    from .errors import UserError
    from .image_processing import image_processor_for
    from .models import fetch_checkpoint, load_checkpoint

AutoConfig.register("surgenet", SurgeNetConfig, exist_ok=True)
AutoConfig.register("surgenet_phase", SurgeNetPhaseConfig, exist_ok=True)
AutoConfig.register("surgical", SurgicalConfig, exist_ok=True)
AutoModel.register(SurgeNetConfig, SurgeNetModel, exist_ok=True)
AutoModel.register(SurgeNetPhaseConfig, SurgeNetForPhaseRecognition, exist_ok=True)
AutoBackbone.register(SurgeNetConfig, SurgeNetBackbone, exist_ok=True)
AutoModelForImageClassification.register(SurgeNetConfig, SurgeNetForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(SurgeNetConfig, SurgeNetForSemanticSegmentation, exist_ok=True)
AutoModelForImageClassification.register(SurgicalConfig, SurgicalForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(SurgicalConfig, SurgicalForSemanticSegmentation, exist_ok=True)
# the image-segmentation pipeline rejects a model whose class name is not in this mapping
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["surgenet"] = "SurgeNetForSemanticSegmentation"
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["surgical"] = "SurgicalForSemanticSegmentation"

# lazily imported public names and their modules: importing the package stays fast
_LAZY = {
    "UserError": ".errors",
    "convert_checkpoint": ".checkpoints.conversion",
    "evaluate": ".api",
    "fetch_checkpoint": ".models",
    "finetune_classification": ".api",
    "finetune_phase": ".api",
    "finetune_segmentation": ".api",
    "image_processor_for": ".image_processing",
    "load_checkpoint": ".models",
    "load_data": ".data",
    "predict": ".api",
    "pretrain": ".api",
    "probe": ".api",
}

__all__ = [
    "SurgeNetBackbone",
    "SurgeNetConfig",
    "SurgeNetForImageClassification",
    "SurgeNetForPhaseRecognition",
    "SurgeNetForSemanticSegmentation",
    "SurgeNetModel",
    "SurgeNetPhaseConfig",
    "SurgicalConfig",
    "SurgicalForImageClassification",
    "SurgicalForSemanticSegmentation",
    "UserError",
    "__version__",
    "convert_checkpoint",
    "evaluate",
    "fetch_checkpoint",
    "finetune_classification",
    "finetune_phase",
    "finetune_segmentation",
    "image_processor_for",
    "load_checkpoint",
    "load_data",
    "predict",
    "pretrain",
    "probe",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
