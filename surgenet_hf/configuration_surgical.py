"""Configuration of a head on any backbone of transformers or timm."""

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

HEADS = ("fpn", "linear")
POOLINGS = ("cls", "mean", "topk")
GROUP_NORM_GROUPS = 32  # groups of the FPN head's group normalization


@strict
class SurgicalConfig(PreTrainedConfig):
    """Configuration of `SurgicalForImageClassification` and `SurgicalForSemanticSegmentation`.

    Args:
        backbone_config: configuration of the backbone, or its dict with `model_type`. Segmentation takes the feature
            maps that its `out_indices` name.
        timm_options: arguments of `timm.create_model` for a `timm_backbone`, e.g. `{"dynamic_img_size": True}`.
        pooling: how classification pools the last hidden state. `"cls"`: the class token. `"mean"`: the mean over the
            patches. `"topk"`: for each channel, the mean of its `pooling_k` largest activations. Default: the class
            token if the backbone has one, otherwise the mean.
        pooling_k: number of activations per channel for `"topk"`.
        head: head of segmentation. `"fpn"`: a feature pyramid network on the feature maps; with a single feature map,
            a simple feature pyramid first makes four of it. `"linear"`: a linear layer on the last feature map.
        head_channels: number of channels of the FPN head, a multiple of 32.
        initializer_range: standard deviation of newly initialized linear and convolution weights of the head.
        semantic_loss_ignore_index: label of the pixels that the segmentation loss ignores.
        pretraining: source of the backbone's weights. `None` means unknown.
        finetuning: one dict for each dataset that fine-tuned the weights. `None` means unknown, and an empty list
            means none.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a type is wrong, or the settings do not form a valid model. The
            message states the reason.
    """

    model_type = "surgical"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012

    backbone_config: dict | PreTrainedConfig | None = None
    timm_options: dict | None = None
    pooling: str | None = None
    pooling_k: int = 10
    head: str = "fpn"
    head_channels: int = 128
    initializer_range: float | int = 0.02
    semantic_loss_ignore_index: int = 255
    pretraining: dict | None = None
    finetuning: list[dict] | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            self.backbone_config = CONFIG_MAPPING[self.backbone_config["model_type"]].from_dict(self.backbone_config)
        elif self.backbone_config is None:  # transformers builds a default config to compare others with
            self.backbone_config = CONFIG_MAPPING["resnet"]()
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the settings of the head.

        Raises:
            ValueError: a setting is invalid.
        """
        if self.pooling not in (None, *POOLINGS):
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {self.head!r}")
        if self.pooling_k < 1:
            raise ValueError(f"pooling_k must be positive, got {self.pooling_k}")
        if self.head_channels < 1 or self.head_channels % GROUP_NORM_GROUPS:
            raise ValueError(
                f"head_channels must be a positive multiple of {GROUP_NORM_GROUPS}, got {self.head_channels}"
            )


__all__ = ["SurgicalConfig"]
