"""SurgeNet models: timm's CAFormer, ConvNeXtV2, and PVTv2 with the transformers API and the original heads.

The backbones use timm's blocks without changes. The pooled embedding, the classification heads, and the FPN follow
github.com/TimJaspers0801/SurgeNet (Jaspers et al., Medical Image Analysis 108:103873, 2026).
"""

from typing import Any

import timm  # noqa: F401  (transformers reads the requirements of remote code from its imports)
import torch
from timm.layers import LayerNorm
from timm.layers.grn import GlobalResponseNorm
from timm.models import convnext, metaformer, pvt_v2
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    SemanticSegmenterOutput,
)
from transformers.utils import can_return_tuple

from .configuration_surgenet import GROUP_NORM_GROUPS, PVT_NUM_HEADS, SurgeNetConfig


# timm's blocks as layers that transformers' gradient checkpointing recognizes
class MetaFormerBlock(GradientCheckpointingLayer, metaformer.MetaFormerBlock): ...


class ConvNeXtBlock(GradientCheckpointingLayer, convnext.ConvNeXtBlock): ...


class PvtV2Block(GradientCheckpointingLayer, pvt_v2.Block): ...


class _NoClampOnMeta(TorchFunctionMode):
    """Context in which `clamp_` skips tensors of the meta device, which have no values.

    timm initializes each weight with it, and on this device it takes most of the time of `from_pretrained`.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.clamp_ and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _build_timm_backbone(config: SurgeNetConfig) -> nn.Module:
    """Build timm's network with the depths and widths of `config`, without a classification head."""
    common: dict[str, Any] = {
        "in_chans": config.num_channels,
        "num_classes": 0,
        "depths": tuple(config.depths),
        "drop_path_rate": config.drop_path_rate,
    }
    widths = tuple(config.hidden_sizes)
    if config.backbone == "convnextv2_tiny":
        return convnext.ConvNeXt(dims=widths, use_grn=True, ls_init_value=None, **common)
    if config.backbone == "pvt_v2_b2":
        return pvt_v2.PyramidVisionTransformerV2(embed_dims=widths, num_heads=PVT_NUM_HEADS, **common)
    activation = {"relu": nn.ReLU, "star_relu": metaformer.StarReLU}[config.activation]
    return metaformer.MetaFormer(
        dims=widths,
        token_mixers=[metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
        norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
        mlp_act=activation,
        act1_layer=activation,
        **common,
    )


class SurgeNetEncoder(nn.Module):
    """Stem and four stages of a timm backbone.

    The output is a tuple of five feature maps (B, C_i, h_i, w_i), one of the stem and one of each stage. Their strides
    are 4, 4, 8, 16, and 32.
    """

    def __init__(self, config: SurgeNetConfig):
        super().__init__()
        with _NoClampOnMeta():
            backbone = _build_timm_backbone(config)
        self.channels_last_stem = config.backbone == "pvt_v2_b2"
        self.stem = backbone.patch_embed if self.channels_last_stem else backbone.stem
        self.stages = backbone.stages
        checkpointed = {cls.__bases__[1]: cls for cls in (MetaFormerBlock, ConvNeXtBlock, PvtV2Block)}
        for stage in self.stages:
            for block in stage.blocks:
                block.__class__ = checkpointed[type(block)]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if getattr(pixel_values, "ndim", None) != 4:
            found = tuple(pixel_values.shape) if hasattr(pixel_values, "shape") else type(pixel_values).__name__
            raise ValueError(
                f"pixel_values must be a float tensor (B, num_channels, H, W), got {found}: create it from an RGB "
                'image with the image processor: processor(image, return_tensors="pt").pixel_values'
            )
        x = self.stem(pixel_values)
        if self.channels_last_stem:
            x = x.permute(0, 3, 1, 2)
        feature_maps = [x]  # store the tensor that the output depends on, so that every map has a gradient
        if self.channels_last_stem:
            x = x.permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
            feature_maps.append(x)
        return tuple(feature_maps)


def _check_labels(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Check that class ids are valid.

    On a GPU, PyTorch would abort the process with an error that does not name the invalid ids.

    Raises:
        ValueError: a label is neither a class id nor `ignore_index`.
    """
    if torch.compiler.is_compiling() or labels.numel() == 0:
        return
    wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)]
    if len(wrong):
        raise ValueError(
            f"labels contain the class id {wrong[0].item()}, but the model has {num_labels} classes, ids 0 to "
            f"{num_labels - 1} ({ignore_index} is ignored): correct the labels, or set num_labels when you load "
            "the model"
        )


class SurgeNetPreTrainedModel(PreTrainedModel):
    """Base class for weight initialization and for loading pretrained models."""

    config: SurgeNetConfig
    base_model_prefix = "surgenet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _backbone_prefixes = (".encoder.", ".surgenet.encoder.")  # parameters that a file must contain
    _no_split_modules = ["MetaFormerBlock", "ConvNeXtBlock", "PvtV2Block"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d) and self.config.backbone == "pvt_v2_b2":
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, GlobalResponseNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, metaformer.Scale):
            init.ones_(module.scale)
        elif isinstance(module, metaformer.StarReLU):
            init.ones_(module.scale)
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem.

        With reentrant checkpointing, gradients for adapters on a frozen backbone start at its output.
        """
        return self.base_model.encoder.stem

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a pretrained model as in transformers, but require complete backbone weights.

        A new head only causes the usual warning.

        Raises:
            ValueError: the file lacks parameters of the backbone, or has unexpected or mismatched ones. Causes are an
                interrupted save, weights of another backbone, and StarReLU weights for a ReLU model.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        found = {"missing": info["missing_keys"], "unexpected": info["unexpected_keys"]}
        found["of another shape"] = [key for key, *_ in info["mismatched_keys"]]
        wrong = {
            kind: sorted(key for key in keys if f".{key}".startswith(cls._backbone_prefixes))
            for kind, keys in found.items()
        }
        # without a name, transformers initializes all weights on purpose
        if pretrained_model_name_or_path is not None and any(wrong.values()):
            parameters = ", ".join(f"{len(keys)} parameters {kind} {keys[:3]}" for kind, keys in wrong.items() if keys)
            raise ValueError(
                f"the weights in {pretrained_model_name_or_path} do not match this backbone "
                f"({model.config.backbone}, activation {model.config.activation}): {parameters}. Load them with the "
                "config they were saved with, or convert the original file again with scripts/convert_checkpoint.py."
            )
        return (model, info) if output_loading_info else model


class SurgeNetModel(SurgeNetPreTrainedModel):
    """SurgeNet backbone without a head.

    Example:
        >>> model = SurgeNetModel.from_pretrained("surgenet/surgenetxl")
        >>> model(pixel_values).pooler_output  # (B, C): the embedding that DINO trained
    """

    # rejects segmentation models, which lack the norm of the embedding; SurgeNetBackbone loads their feature maps
    _backbone_prefixes = (".encoder.", ".layernorm.")

    def __init__(self, config: SurgeNetConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.encoder = SurgeNetEncoder(config)
        self.add_pooling_layer = add_pooling_layer
        # PVTv2 normalizes the tokens at the end of each stage instead
        has_norm = add_pooling_layer and config.backbone != "pvt_v2_b2"
        self.layernorm = LayerNorm(config.hidden_sizes[-1]) if has_norm else None
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor | None = None, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Compute feature maps and the pooled embedding.

        Args:
            pixel_values: images (B, num_channels, H, W), normalized by the image processor. H and W are at least 32.
            output_hidden_states: whether to return `hidden_states`. Default: `config.output_hidden_states`.

        Returns:
            `last_hidden_state` (B, C, h, w) of stage 4, with stride 32. `pooler_output` (B, C), the layer-normalized
            spatial mean of the last feature map (PVTv2: the mean of the normalized tokens). `hidden_states`, the
            feature maps of the stem and stages 1 to 4.

        Raises:
            ValueError: `pixel_values` is missing or has a wrong shape.
        """
        if pixel_values is None:
            raise ValueError("pixel_values is missing: give a float tensor (B, num_channels, H, W)")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        feature_maps = self.encoder(pixel_values)
        pooled = feature_maps[-1].mean(dim=(-2, -1)) if self.add_pooling_layer else None
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=feature_maps[-1],
            pooler_output=pooled if self.layernorm is None else self.layernorm(pooled),
            hidden_states=feature_maps if output_hidden_states else None,
        )


class SurgeNetBackbone(BackboneMixin, SurgeNetPreTrainedModel):
    """SurgeNet backbone for dense prediction frameworks (`AutoBackbone`), with feature maps of selected stages.

    Example:
        >>> backbone = SurgeNetBackbone.from_pretrained("surgenet/surgenetxl", out_features=["stage1", "stage4"])
        >>> [m.shape[1] for m in backbone(pixel_values).feature_maps] == backbone.channels
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^layernorm\."]  # noqa: RUF012  (only the pooled embedding uses it)

    def __init__(self, config: SurgeNetConfig):
        super().__init__(config)
        self.encoder = SurgeNetEncoder(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BackboneOutput:
        """Compute the feature maps of the selected stages.

        Args:
            pixel_values: images (B, num_channels, H, W), as for `SurgeNetModel`.
            output_hidden_states: whether to return `hidden_states`. Default: `config.output_hidden_states`.

        Returns:
            `feature_maps`, a tuple of (B, C_i, h_i, w_i) in the order of `config.out_features`. `hidden_states`, the
            feature maps of the stem and all stages.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = self.encoder(pixel_values)
        return BackboneOutput(
            feature_maps=tuple(maps[self.stage_names.index(name)] for name in self.out_features),
            hidden_states=maps if output_hidden_states else None,
        )


class SurgeNetForImageClassification(SurgeNetPreTrainedModel):
    """SurgeNet backbone with the original classification head on the pooled embedding.

    The head is an MLP with squared ReLU for CAFormer, and one linear layer for other backbones.
    """

    accepts_loss_kwargs = False  # makes Trainer average the loss over accumulated batches

    def __init__(self, config: SurgeNetConfig):
        super().__init__(config)
        self.surgenet = SurgeNetModel(config)
        head = metaformer.MlpHead if config.backbone == "caformer_s18" else nn.Linear
        self.classifier = head(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor | None = None, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        """Compute logits, and the loss if labels are given.

        Args:
            pixel_values: images (B, num_channels, H, W), as for `SurgeNetModel`.
            labels: targets, depending on `config.problem_type`. `single_label_classification`: class ids (B,).
                `multi_label_classification`: floats from 0 to 1 (B, num_labels), which can be soft targets.
                `regression`: floats (B,) or (B, num_labels).

        Returns:
            `logits` (B, num_labels), `loss` if labels are given, and `hidden_states` as for `SurgeNetModel`.
        """
        outputs = self.surgenet(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            if not labels.is_floating_point() and self.config.num_labels > 1:
                _check_labels(labels, self.config.num_labels, -100)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class SurgeNetFPNLevel(nn.Sequential):
    """One FPN level, upsampled to the resolution of stage 1.

    Each block has a 3x3 convolution, group normalization, and ReLU. After a block, the maps are resized to the next
    entry of `sizes`, if there is one.
    """

    def __init__(self, config: SurgeNetConfig, num_blocks: int):
        blocks = []
        for i in range(num_blocks):
            in_channels = config.segmentation_channels if i else config.pyramid_channels
            convolution = nn.Conv2d(in_channels, config.segmentation_channels, 3, padding=1, bias=False)
            norm = nn.GroupNorm(GROUP_NORM_GROUPS, config.segmentation_channels)
            blocks.append(nn.Sequential(convolution, norm, nn.ReLU(inplace=True)))
        super().__init__(*blocks)

    def forward(self, x: torch.Tensor, sizes: list[torch.Size]) -> torch.Tensor:
        for i, block in enumerate(self):
            x = block(x)
            if i < len(sizes):
                x = F.interpolate(x, size=sizes[i], mode="bilinear", align_corners=True)
        return x


class SurgeNetFPN(nn.Module):
    """Original segmentation decoder (from segmentation_models.pytorch), for feature maps of any size.

    The original doubles the size of a map. This decoder interpolates to the size of the next finer map. The results
    are identical if the input height and width are multiples of 32. Other sizes raise no error.
    """

    def __init__(self, config: SurgeNetConfig):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.pyramid_channels, 1) for width in config.hidden_sizes)
        # one block for each doubling of the resolution, and at least one
        self.levels = nn.ModuleList(SurgeNetFPNLevel(config, max(1, i)) for i in range(4))
        self.dropout = nn.Dropout2d(config.segmentation_dropout)
        self.classifier = nn.Conv2d(4 * config.segmentation_channels, config.num_labels, 3, padding=1)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Compute logits (B, num_labels, h_1, w_1) from the feature maps (B, C_i, h_i, w_i) of stages 1 to 4."""
        sizes = [feature_map.shape[-2:] for feature_map in feature_maps]
        pyramid = [lateral(feature_map) for lateral, feature_map in zip(self.lateral, feature_maps, strict=True)]
        for i in (2, 1, 0):
            pyramid[i] = pyramid[i] + F.interpolate(pyramid[i + 1], size=sizes[i], mode="nearest")
        levels = [self.levels[i](pyramid[i], sizes[:i][::-1]) for i in (3, 2, 1, 0)]
        return self.classifier(self.dropout(torch.cat(levels, dim=1)))


class SurgeNetForSemanticSegmentation(SurgeNetPreTrainedModel):
    """SurgeNet backbone with the original FPN decoder. Logits have the resolution of the input."""

    accepts_loss_kwargs = False  # makes Trainer average the loss over accumulated batches

    def __init__(self, config: SurgeNetConfig):
        super().__init__(config)
        # no pooling layer: its norm would get no gradient, which is an error in distributed training
        self.surgenet = SurgeNetModel(config, add_pooling_layer=False)
        self.decode_head = SurgeNetFPN(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput:
        """Compute logits, and the loss if labels are given.

        Args:
            pixel_values: images (B, num_channels, H, W), as for `SurgeNetModel`.
            labels: class ids (B, H, W). The loss ignores pixels with the label `config.semantic_loss_ignore_index`.
            output_hidden_states: whether to return `hidden_states`. Default: `config.output_hidden_states`.

        Returns:
            `logits` (B, num_labels, H, W), `loss` if labels are given, and `hidden_states` as for `SurgeNetModel`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.surgenet(pixel_values, output_hidden_states=True).hidden_states
        logits = self.decode_head(hidden_states[1:])
        logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=True)
        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            _check_labels(labels, self.config.num_labels, ignored)
            loss = F.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")
            loss = loss / (labels != ignored).sum().clamp(min=1)  # the mean, but 0 instead of NaN if all are ignored
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=hidden_states if output_hidden_states else None
        )


__all__ = [
    "SurgeNetBackbone",
    "SurgeNetForImageClassification",
    "SurgeNetForSemanticSegmentation",
    "SurgeNetModel",
    "SurgeNetPreTrainedModel",
]
