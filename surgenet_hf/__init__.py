"""SurgeNet surgical foundation models for the Hugging Face ecosystem.

Importing this package makes the models known to AutoConfig, AutoModel, AutoBackbone, AutoModelForImageClassification
and AutoModelForSemanticSegmentation; it costs torch, transformers and timm, and nothing else.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from ._version import __version__
from .checkpoints.conversion import convert_checkpoint
from .configuration_surgenet import SurgeNetConfig
from .configuration_surgenet_phase import SurgeNetPhaseConfig
from .image_processing import image_processor_for
from .modeling_surgenet import (
    SurgeNetBackbone,
    SurgeNetForImageClassification,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)
from .modeling_surgenet_phase import SurgeNetForPhaseRecognition
from .models import fetch_checkpoint, load_checkpoint

AutoConfig.register("surgenet", SurgeNetConfig, exist_ok=True)
AutoConfig.register("surgenet_phase", SurgeNetPhaseConfig, exist_ok=True)
AutoModel.register(SurgeNetConfig, SurgeNetModel, exist_ok=True)
AutoModel.register(SurgeNetPhaseConfig, SurgeNetForPhaseRecognition, exist_ok=True)
AutoBackbone.register(SurgeNetConfig, SurgeNetBackbone, exist_ok=True)
AutoModelForImageClassification.register(SurgeNetConfig, SurgeNetForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(SurgeNetConfig, SurgeNetForSemanticSegmentation, exist_ok=True)
# the image-segmentation pipeline looks classes up here by name before it says "not supported"
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["surgenet"] = "SurgeNetForSemanticSegmentation"

__all__ = [
    "SurgeNetBackbone",
    "SurgeNetConfig",
    "SurgeNetForImageClassification",
    "SurgeNetForPhaseRecognition",
    "SurgeNetForSemanticSegmentation",
    "SurgeNetModel",
    "SurgeNetPhaseConfig",
    "__version__",
    "convert_checkpoint",
    "fetch_checkpoint",
    "image_processor_for",
    "load_checkpoint",
]
