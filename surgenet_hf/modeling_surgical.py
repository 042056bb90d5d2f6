"""Heads for classification and segmentation on any backbone of transformers or timm.

The backbone computes its features without changes. The FPN head is that of panoptic feature pyramid networks (Kirillov
et al., CVPR 2019). The simple feature pyramid for a single feature map follows ViTDet (Li et al., ECCV 2022).
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from transformers import AutoBackbone, AutoModel, PreTrainedModel, TimmBackbone
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    SemanticSegmenterOutput,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
from transformers.utils import can_return_tuple

from .configuration_surgical import GROUP_NORM_GROUPS, SurgicalConfig


def hidden_width(model: PreTrainedModel) -> int:
    """Return the number of channels of a model's last hidden state."""
    timm_model: Any = getattr(model, "timm_model", None)
    if timm_model is not None:
        return timm_model.num_features
    sizes = getattr(model.config, "hidden_sizes", None) or [model.config.hidden_size]
    return sizes[-1]


def last_hidden_state(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Compute the last hidden state of images of any size, also with a model that must be asked for other sizes."""
    accepted = inspect.signature(model.forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
    return model(pixel_values, **options).last_hidden_state


def split_tokens(model: PreTrainedModel, hidden: torch.Tensor, image_size) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the last hidden state of a model into prefix tokens and a feature map.

    Args:
        model: model that computed `hidden`.
        hidden: tokens (B, N, C) or feature map (B, C, h, w), for timm models also (B, h, w, C).
        image_size: height and width of its input in pixels.

    Returns:
        Prefix tokens (B, P, C), e.g. class token and register tokens; and the feature map (B, C, h, w).

    Raises:
        ValueError: the tokens do not form a grid.
    """
    timm_model = getattr(model, "timm_model", None)
    if hidden.ndim == 4:
        if getattr(timm_model, "output_fmt", "NCHW") == "NHWC":
            hidden = hidden.permute(0, 3, 1, 2)
        return hidden.new_zeros(len(hidden), 0, hidden.shape[1]), hidden
    height, width = image_size
    if timm_model is not None:
        count = getattr(timm_model, "num_prefix_tokens", 0)
        patch = getattr(getattr(timm_model, "patch_embed", None), "patch_size", (1, 1))
        grid = [-(-height // patch[0]), -(-width // patch[1])]
    else:
        patch = getattr(model.config, "patch_size", 1)
        patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        grid = [height // patch[0], width // patch[1]]
        count = max(hidden.shape[1] - grid[0] * grid[1], 0)
    tokens = hidden[:, count:]
    while grid[0] * grid[1] > tokens.shape[1]:  # hierarchical transformers merge patches
        grid = [-(-side // 2) for side in grid]
    if grid[0] * grid[1] != tokens.shape[1]:
        raise ValueError(
            f"the {tokens.shape[1]} tokens of {type(model).__name__} do not form a grid for an input of {height} x "
            f"{width} pixels; choose an image size that its patches divide"
        )
    return hidden[:, :count], tokens.transpose(1, 2).unflatten(2, grid)


def pool_patches(feature_map: torch.Tensor, pooling: str, k: int) -> torch.Tensor:
    """Pool a feature map (B, C, h, w) to (B, C).

    Args:
        feature_map: the patches.
        pooling: "mean": the mean over the patches. "topk": for each channel, the mean of its k largest activations.
        k: number of activations for "topk", or all if there are fewer patches.
    """
    patches = feature_map.flatten(2)
    if pooling == "topk":
        patches = patches.topk(min(k, patches.shape[-1]), dim=-1).values
    return patches.mean(-1)


class PooledBackbone(nn.Module):
    """Backbone of any family whose outputs have the form of `SurgeNetModel`.

    `last_hidden_state` is a feature map (B, C, h, w). `pooler_output` (B, C) is the class token if there is one,
    otherwise the mean over the feature map.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.config = model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPoolingAndNoAttention:
        hidden = last_hidden_state(self.model, pixel_values)
        prefix, feature_map = split_tokens(self.model, hidden, pixel_values.shape[-2:])
        pooled = prefix[:, 0] if prefix.shape[1] else feature_map.mean((-2, -1))
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=feature_map, pooler_output=pooled)


class TokenBackbone(nn.Module):
    """Feature map of the last layer, of a model for which transformers has no backbone class."""

    def __init__(self, config):
        super().__init__()
        self.model = AutoModel.from_config(config)
        self.channels = [hidden_width(self.model)]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = last_hidden_state(self.model, pixel_values)
        return (split_tokens(self.model, hidden, pixel_values.shape[-2:])[1],)


class MapBackbone(nn.Module):
    """Feature maps of a backbone class of transformers, or of timm."""

    def __init__(self, config, timm_options: dict | None):
        super().__init__()
        if config.model_type == "timm_backbone":
            self.model = TimmBackbone(config, **(timm_options or {}))
        else:
            self.model = AutoBackbone.from_config(config)
        self.channels = list(self.model.channels)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.model(pixel_values).feature_maps
        return tuple(
            found.permute(0, 3, 1, 2) if found.shape[1] != channels and found.shape[-1] == channels else found
            for found, channels in zip(maps, self.channels, strict=True)
        )


class SimpleFeaturePyramid(nn.ModuleList):
    """Four maps, at 4, 2, 1, and 1/2 times the resolution of a single feature map."""

    def __init__(self, channels: int):
        def double(out_channels):
            return nn.ConvTranspose2d(channels, out_channels, 2, stride=2)

        super().__init__(
            [
                nn.Sequential(double(channels), nn.GroupNorm(1, channels), nn.GELU(), double(channels)),
                double(channels),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, feature_map: torch.Tensor) -> list[torch.Tensor]:
        return [level(feature_map) for level in self]


class FPNHead(nn.Module):
    """Feature pyramid network whose levels are summed at the resolution of the first one."""

    def __init__(self, channels: list[int], config: SurgicalConfig):
        super().__init__()
        self.pyramid = SimpleFeaturePyramid(channels[0]) if len(channels) == 1 else None
        channels = channels * 4 if len(channels) == 1 else channels
        width = config.head_channels
        self.fpn = FeaturePyramidNetwork(channels, width)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUP_NORM_GROUPS, width), nn.ReLU()
            )
            for _ in channels
        )
        self.classifier = nn.Conv2d(width, config.num_labels or 0, 1)

    def forward(self, maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        maps = maps if self.pyramid is None else self.pyramid(maps[0])
        levels = self.fpn({str(i): feature_map for i, feature_map in enumerate(maps)}).values()
        size = maps[0].shape[-2:]
        refined = [
            F.interpolate(block(level), size, mode="bilinear", align_corners=False)
            for block, level in zip(self.levels, levels, strict=True)
        ]
        return self.classifier(sum(refined))


class LinearHead(nn.Module):
    """Linear layer on the last feature map."""

    def __init__(self, channels: list[int], config: SurgicalConfig):
        super().__init__()
        self.classifier = nn.Conv2d(channels[-1], config.num_labels or 0, 1)

    def forward(self, maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.classifier(maps[-1])


class SurgicalPreTrainedModel(PreTrainedModel):
    """Base class for weight initialization and for loading pretrained models."""

    config: SurgicalConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = "image"
    accepts_loss_kwargs = False  # makes Trainer average the loss over accumulated batches

    def post_init(self):
        """Find out whether the backbone supports gradient checkpointing, and initialize the weights."""
        self.supports_gradient_checkpointing = any(hasattr(m, "gradient_checkpointing") for m in self.modules())
        super().post_init()

    def get_input_embeddings(self):
        """Return None: backbones take images and have no token embeddings."""
        return None


class SurgicalForImageClassification(SurgicalPreTrainedModel):
    """Linear classifier on the pooled last hidden state of any backbone."""

    def __init__(self, config: SurgicalConfig):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.classifier = nn.Linear(hidden_width(self.backbone), config.num_labels or 0)
        self.post_init()

    def pool(self, hidden: torch.Tensor, image_size) -> torch.Tensor:
        """Pool a hidden state to (B, C), see `SurgicalConfig.pooling`.

        Args:
            hidden: last hidden state of the backbone.
            image_size: height and width of the input in pixels.

        Raises:
            ValueError: the backbone has no class token, which `config.pooling` requires.
        """
        prefix, feature_map = split_tokens(self.backbone, hidden, image_size)
        pooling = self.config.pooling or ("cls" if prefix.shape[1] else "mean")
        if pooling == "cls":
            if not prefix.shape[1]:
                raise ValueError(
                    f"{type(self.backbone).__name__} has no class token for pooling 'cls': set it to 'mean' or 'topk'"
                )
            return prefix[:, 0]
        return pool_patches(feature_map, pooling, self.config.pooling_k)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        """Compute logits, and the loss if labels are given.

        Args:
            pixel_values: images (B, num_channels, H, W), normalized by the image processor.
            labels: targets, depending on `config.problem_type`. `single_label_classification`: class ids (B,).
                `multi_label_classification`: floats from 0 to 1 (B, num_labels), which can be soft targets.
                `regression`: floats (B,) or (B, num_labels).

        Returns:
            `logits` (B, num_labels), and `loss` if labels are given.
        """
        hidden = last_hidden_state(self.backbone, pixel_values)
        logits = self.classifier(self.pool(hidden, pixel_values.shape[-2:]))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class SurgicalForSemanticSegmentation(SurgicalPreTrainedModel):
    """FPN or linear segmentation head on the feature maps of any backbone."""

    def __init__(self, config: SurgicalConfig):
        super().__init__(config)
        backbone: Any = config.backbone_config
        has_maps = type(backbone) in MODEL_FOR_BACKBONE_MAPPING
        self.backbone = MapBackbone(backbone, config.timm_options) if has_maps else TokenBackbone(backbone)
        self.head = {"fpn": FPNHead, "linear": LinearHead}[config.head](self.backbone.channels, config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> SemanticSegmenterOutput:
        """Compute logits at the size of the input, and the loss if labels are given.

        Args:
            pixel_values: images (B, num_channels, H, W), normalized by the image processor.
            labels: class ids (B, H, W), `config.semantic_loss_ignore_index` for pixels without a class.

        Returns:
            `logits` (B, num_labels, H, W), and `loss`, the mean cross-entropy, if labels are given.
        """
        logits = self.head(self.backbone(pixel_values))
        logits = F.interpolate(logits, pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            loss = F.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")
            loss = loss / (labels != ignored).sum().clamp(min=1)  # the mean, but 0 instead of NaN if all are ignored
        return SemanticSegmenterOutput(loss=loss, logits=logits)


__all__ = ["SurgicalForImageClassification", "SurgicalForSemanticSegmentation"]
