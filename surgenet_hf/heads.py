"""Models of the tasks on any backbone: from a source of weights and a head to a model.

A source is a folder, a repository on the Hub, or a configuration for random weights (`models.resolve_model`). SurgeNet
models, and models of transformers that already have a head for the task, are loaded as they are. For all others, a new
head is put on the backbone, whose weights are copied completely or refused.
"""

import copy
import logging
from typing import Any

import timm
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    MODEL_MAPPING,
)

from .configuration_surgical import SurgicalConfig
from .eomt import build_eomt, copy_transformer
from .errors import UserError
from .modeling_surgical import SurgicalForImageClassification, SurgicalForSemanticSegmentation
from .models import is_surgenet, load_config, load_model

logger = logging.getLogger(__name__)

STAGES = 4  # number of feature maps of a hierarchical backbone
# parameters that a backbone class adds to the base model, and that no file contains
_NEW_NORMS = "hidden_states_norms"


def build_classifier(source: str | PreTrainedConfig, pooling: str | None = None, **options) -> PreTrainedModel:
    """Build a float32 frame classifier.

    Args:
        source: folder, repository, or configuration for random weights.
        pooling: pooling of a new linear head, see `SurgicalConfig`. None: the head of transformers or timm for this
            model if it has one, otherwise a linear head.
        options: values of the configuration, e.g. `id2label`.

    Raises:
        UserError: a SurgeNet model is given with a pooling, or the weights do not fit the backbone.
    """
    config = source if isinstance(source, PreTrainedConfig) else load_config(source)
    has_head = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if pooling is not None and is_surgenet(config):
        raise UserError("--pooling is for other backbones: SurgeNet has its own pooling and head. Omit --pooling")
    if has_head and (pooling is None or config.model_type == "surgical"):
        if config.model_type == "surgical" and pooling is not None:
            options["pooling"] = pooling
        return _load_with_head(AutoModelForImageClassification, config, source, options)
    backbone = copy.deepcopy(config)
    if isinstance(backbone, TimmWrapperConfig):
        backbone.model_args = timm_options(backbone) or None
    surgical = SurgicalConfig(backbone_config=backbone, pooling=pooling, **options)
    model = SurgicalForImageClassification(surgical).float()
    if pooling == "cls":
        _require_class_token(model)
    if not isinstance(source, PreTrainedConfig):
        copy_weights(load_base(source, config), model.backbone, source)
    return model


def _require_class_token(model: SurgicalForImageClassification) -> None:
    """Check with one image of zeros that the backbone of a classifier has a class token.

    Raises:
        UserError: it has none.
    """
    model.eval()  # otherwise batch normalization would use the zeros
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, 224, 224))
    except ValueError as error:
        raise UserError(f"--pooling cls is not possible: {error}") from error
    model.train()


def build_segmenter(
    source: str | PreTrainedConfig, head: str | None = None, image_size: int | None = None, **options
) -> PreTrainedModel:
    """Build a float32 segmentation model.

    Args:
        source: folder, repository, or configuration for random weights.
        head: new head on the backbone: "fpn", "linear", "upernet", "mask2former", or "eomt". None: the head that the
            model type has, otherwise "fpn".
        image_size: height and width of the input in pixels. Only EoMT needs it. None: that of the backbone.
        options: values of the configuration, e.g. `id2label`.

    Raises:
        UserError: the head is not possible on this backbone, or the weights do not fit it.
    """
    config = source if isinstance(source, PreTrainedConfig) else load_config(source)
    if head is None:
        if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            try:
                return _load_with_head(AutoModelForSemanticSegmentation, config, source, options)
            except ValueError as error:  # e.g. BEiT, whose head needs four `out_indices`
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"the segmentation head of transformers for {config.model_type} is not possible with the "
                    f"configuration of this model: {error} Choose --head fpn or linear"
                ) from error
        if type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
            return _load_with_head(AutoModelForUniversalSegmentation, config, source, options)
        head = "fpn"
    elif config.model_type == "surgical":
        raise UserError(f"{source} already has a head: omit --head, or give the backbone that it was trained from")
    model: PreTrainedModel
    if head == "eomt":
        options.pop("semantic_loss_ignore_index", None)
        model = build_eomt(config, image_size, **options)
        if not isinstance(source, PreTrainedConfig):
            copy_transformer(load_base(source, config), model, source)
        return model
    backbone, extra = dense_config(config, all_scales=head in ("upernet", "mask2former"))
    if head in ("fpn", "linear"):
        surgical = SurgicalConfig(backbone_config=backbone, timm_options=extra, head=head, **options)
        segmenter = SurgicalForSemanticSegmentation(surgical)
        model, target = segmenter, segmenter.backbone.model
    else:
        if extra or not _has_maps(backbone):
            raise UserError(
                f"--head {head} is not possible on this {config.model_type}: transformers has no backbone class with "
                "its settings. Choose --head fpn or linear"
            )
        ignored = options.pop("semantic_loss_ignore_index", 255)
        if head == "upernet":
            settings = UperNetConfig(
                backbone_config=backbone, use_auxiliary_head=False, loss_ignore_index=ignored, **options
            )
            upernet = UperNetForSemanticSegmentation(settings)
            model, target = upernet, upernet.backbone
        else:
            if len(getattr(backbone, "out_indices", ())) < STAGES:
                raise UserError(
                    f"--head mask2former needs a backbone with at least {STAGES} layers or stages; choose another"
                )
            universal = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, **options))
            model, target = universal, universal.model.pixel_level_module.encoder
    model = model.float()
    if not isinstance(source, PreTrainedConfig):
        copy_weights(_load_dense(source, config, backbone), target, source)
    return model


def dense_config(config: PreTrainedConfig, all_scales: bool = False) -> tuple[PreTrainedConfig, dict | None]:
    """Return the configuration of a backbone's feature maps, and the options of timm.

    Hierarchical backbones return the maps of their last four stages. Plain vision transformers return that of the last
    layer.

    Args:
        config: configuration of the base model, or of a model with another head.
        all_scales: whether the head needs four maps. Plain vision transformers then return those of four evenly spaced
            layers.
    """
    if isinstance(config, TimmWrapperConfig):
        options = timm_options(config)
        reductions = _timm_reductions(config)
        is_plain = len(set(reductions)) == 1
        indices = [len(reductions) - 1] if is_plain else list(range(len(reductions)))[-STAGES:]
        wrapped = TimmBackboneConfig(backbone=config.architecture)
        wrapped.out_indices = indices
        wrapped.use_pretrained_backbone = False
        return wrapped, options or None
    backbone = copy.deepcopy(config)
    if _has_maps(backbone):
        names = backbone.stage_names
        if isinstance(getattr(backbone, "depths", None), list | tuple):
            backbone.out_features = names[-STAGES:]
        elif all_scales:
            layers = len(names) - 1  # the first name is that of the patch embedding
            chosen = (names[-(-layers * i // STAGES)] for i in range(1, STAGES + 1))
            backbone.out_features = list(dict.fromkeys(chosen))  # a network of fewer layers has fewer maps
        else:
            backbone.out_features = names[-1:]
    return backbone, None


def timm_options(config: TimmWrapperConfig) -> dict:
    """Return the arguments of `timm.create_model` with which a model accepts inputs of any size."""
    options = _recorded_options(config)
    if len(set(_timm_reductions(config))) == 1:  # a plain vision transformer
        options |= {"dynamic_img_size": True, "dynamic_img_pad": True}
    return options


def _recorded_options(config: TimmWrapperConfig) -> dict:
    """Return the recorded arguments of `timm.create_model`, without those that depend on the head."""
    options = config.model_args or {}
    return {name: value for name, value in options.items() if name not in ("num_classes", "global_pool")}


def _timm_reductions(config: TimmWrapperConfig) -> list[int]:
    """Return the strides of the feature maps of a timm model, in pixels."""
    with torch.device("meta"):
        model = timm.create_model(config.architecture, pretrained=False, num_classes=0, **_recorded_options(config))
    stages: Any = model.feature_info
    return [stage["reduction"] for stage in stages]


def _has_maps(config: PreTrainedConfig) -> bool:
    return type(config) in MODEL_FOR_BACKBONE_MAPPING


def _load_with_head(auto_class, config: PreTrainedConfig, source, options: dict) -> PreTrainedModel:
    """Load a model with the head that its type has, or build it with random weights."""
    if not hasattr(config, "semantic_loss_ignore_index"):  # Trainer computes the loss, so the model needs no value
        options = {name: value for name, value in options.items() if name != "semantic_loss_ignore_index"}
    if isinstance(config, TimmWrapperConfig):
        options = {**options, "model_args": timm_options(config) or None, "num_labels": len(options["id2label"])}
    if isinstance(source, PreTrainedConfig):
        config = copy.deepcopy(source)
        config.update(options)
        return auto_class.from_config(config, dtype=torch.float32)
    # A head with another number of classes does not match in size and is replaced by a new one.
    options |= {"dtype": torch.float32, "ignore_mismatched_sizes": True}
    return load_model(auto_class, source, required=backbone_parameters, **options)


def backbone_parameters(model) -> dict[str, nn.Parameter]:
    """Return the parameters of a model's backbone by their names in the model.

    The norm of SurgeNet's pooled embedding is part of the backbone. Of an EoMT, these are all transformer layers.
    """
    head: Any = ()
    if model.config.model_type.startswith("eomt"):
        backbone = [model.embeddings, model.layers, model.layernorm]
    elif hasattr(model, "timm_model"):  # transformers counts its head as part of the backbone
        backbone, head = [model.timm_model], model.timm_model.get_classifier().parameters()
    elif hasattr(model.base_model, "pixel_level_module"):  # of MaskFormer and Mask2Former
        backbone = [model.base_model.pixel_level_module.encoder]
    else:  # base_model of UPerNet is the whole model
        backbone = [getattr(model, "backbone", model.base_model)]
    found = {id(parameter) for part in backbone for parameter in part.parameters()} - set(map(id, head))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in found}


def _load(auto_class, source: str, **options) -> PreTrainedModel:
    """Load a model, and refuse a file that lacks a part of it.

    Raises:
        UserError: parameters are missing or have other shapes.
    """

    def required(model):
        return [name for name in model.state_dict() if _NEW_NORMS not in name and not name.startswith("pooler.")]

    return load_model(auto_class, source, required, dtype=torch.float32, **options)


def load_base(source: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Load the base model of a folder or repository, without a head, in float32.

    Args:
        source: folder, or repository on the Hub.
        config: its configuration.

    Raises:
        UserError: the model has a head of this package on a backbone without a base model, as for segmentation; or its
            weights are not complete.
    """
    if config.model_type == "surgical":
        if (config.architectures or [""])[0] != SurgicalForImageClassification.__name__:
            raise UserError(f"{source} is a segmentation model; give the backbone that it was trained from")
        return SurgicalForImageClassification.from_pretrained(source, dtype=torch.float32).backbone
    if type(config) not in MODEL_MAPPING:
        raise UserError(f"{source} is of type {config.model_type}, which has no base model; give its backbone")
    if isinstance(config, TimmWrapperConfig):
        return _load(TimmWrapperModel, source, model_args=timm_options(config) or None)
    return _load(AutoModel, source)


def _load_dense(source: str, config: PreTrainedConfig, backbone: PreTrainedConfig) -> PreTrainedModel:
    if _has_maps(config):
        # AutoBackbone asks the Hub for local folders
        return _load(MODEL_FOR_BACKBONE_MAPPING[type(backbone)], source, config=backbone)
    return load_base(source, config)


def copy_weights(loaded: PreTrainedModel, target: nn.Module, source: str) -> None:
    """Copy the weights of a loaded backbone to that of a new model.

    Args:
        loaded: backbone, or a `TimmWrapperModel` for a `TimmBackbone`.
        target: backbone of the new model.
        source: name of the weights, for messages.

    Raises:
        UserError: a parameter of the target has no counterpart of the same shape.
    """
    tensors, expected = loaded.state_dict(), target.state_dict()
    if isinstance(target, TimmBackbone):
        # timm renames "stages.0." to "stages_0." for feature maps, and may nest the network in "model."
        network: Any = loaded.timm_model
        tensors = {_timm_key(name): tensor for name, tensor in network.state_dict().items()}
        tensors = {name: tensors[_timm_key(name)] for name in expected if _timm_key(name) in tensors}
    wrong = [name for name in expected if name not in tensors or tensors[name].shape != expected[name].shape]
    if wrong:
        raise UserError(
            f"the weights of {source} do not fit {type(target).__name__}: {len(wrong)} of {len(expected)} tensors are "
            f"missing or have another shape ({', '.join(wrong[:3])}, ...). Choose another --head, or report this"
        )
    target.load_state_dict({name: tensors[name] for name in expected}, strict=True)
    logger.info(f"Loaded {len(expected)} tensors of the backbone from {source}.")


def _timm_key(name: str) -> str:
    return name.removeprefix("_backbone.").removeprefix("model.").replace(".", "_")
