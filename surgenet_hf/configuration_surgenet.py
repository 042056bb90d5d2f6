"""Configuration of the SurgeNet models (Jaspers et al., Medical Image Analysis 108:103873, 2026)."""

from itertools import pairwise

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

# depths and widths of the three published backbones
BACKBONES = {
    "caformer_s18": {"depths": [3, 3, 9, 3], "hidden_sizes": [64, 128, 320, 512]},
    "convnextv2_tiny": {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
    "pvt_v2_b2": {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512]},
}
CAFORMER_HEAD_DIM = 32
PVT_NUM_HEADS = (1, 2, 5, 8)
GROUP_NORM_GROUPS = 32  # groups of the FPN's group normalization


@strict
class SurgeNetConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a SurgeNet backbone and its classification and segmentation heads.

    Args:
        backbone: `"caformer_s18"`, `"convnextv2_tiny"`, or `"pvt_v2_b2"`.
        activation: activation of the CAFormer blocks, `"relu"` (default, all SurgeNet checkpoints) or `"star_relu"`
            (ImageNet CAFormer). The activation of other backbones is fixed, and this must be `None`.
        depths: number of blocks in each of the four stages. Default: the depths of `backbone`.
        hidden_sizes: number of channels in each of the four stages. Default: the widths of `backbone`.
        num_channels: number of channels of the input image.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1). The rate grows linearly from 0 at the first
            block.
        initializer_range: standard deviation of newly initialized linear and convolution weights.
        pyramid_channels: number of channels in the top-down path of the segmentation FPN.
        segmentation_channels: number of channels of each FPN level before concatenation, a multiple of 32.
        segmentation_dropout: probability of dropping an entire FPN channel before the last convolution, in [0, 1).
        semantic_loss_ignore_index: label of the pixels that the segmentation loss ignores.
        pretraining: source of the weights, e.g. `{"name": "SurgeNetXL", "source_sha256": ...}`. The converter writes
            it, and every later save keeps it. `None` means unknown.
        finetuning: one dict for each dataset that fine-tuned the weights, with its train videos and the videos that
            selected the checkpoint. Every later save keeps it. `None` means unknown, and an empty list means none.
        out_features: stages that `SurgeNetBackbone` returns, from `["stem", "stage1", ..., "stage4"]`.
        out_indices: indices of these stages, as an alternative to `out_features`. Default: the last stage.

    Raises:
        ValueError: the backbone or a stage name is unknown.
        huggingface_hub.errors.StrictDataclassError: a type is wrong, or the settings do not form a valid model. The
            message states the reason.
    """

    model_type = "surgenet"

    backbone: str = "caformer_s18"
    activation: str | None = None
    depths: list[int] | tuple[int, ...] | None = None
    hidden_sizes: list[int] | tuple[int, ...] | None = None
    num_channels: int = 3
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    pyramid_channels: int = 256
    segmentation_channels: int = 128
    segmentation_dropout: float | int = 0.0
    semantic_loss_ignore_index: int = 255
    pretraining: dict | None = None
    finetuning: list[dict] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {sorted(BACKBONES)}, got {self.backbone!r}")
        if self.activation is None and self.backbone == "caformer_s18":
            self.activation = "relu"
        published = BACKBONES[self.backbone]
        self.depths = list(published["depths"] if self.depths is None else self.depths)
        self.hidden_sizes = list(published["hidden_sizes"] if self.hidden_sizes is None else self.hidden_sizes)
        self.stage_names = ["stem", "stage1", "stage2", "stage3", "stage4"]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check that the settings form a valid architecture.

        `@strict` calls this method after construction. timm does not reject all of these settings.

        Raises:
            ValueError: a setting is invalid.
        """
        for name in ("depths", "hidden_sizes"):
            if len(getattr(self, name)) != 4 or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be four positive numbers, one per stage, got {getattr(self, name)}")
        widths = self.hidden_sizes
        if self.backbone == "caformer_s18":
            if self.activation not in ("relu", "star_relu"):
                raise ValueError(f"activation of caformer_s18 must be 'relu' or 'star_relu', got {self.activation!r}")
            if any(width % CAFORMER_HEAD_DIM for width in widths[2:]):
                raise ValueError(
                    f"hidden_sizes of CAFormer's attention stages 3 and 4 must be multiples of {CAFORMER_HEAD_DIM} "
                    f"(the size of a head), got {widths}"
                )
            if any(width == following for width, following in pairwise(widths)):
                raise ValueError(
                    "hidden_sizes of adjacent CAFormer stages must differ (timm omits the downsampling between stages "
                    f"of equal width), got {widths}"
                )
        elif self.activation is not None:
            raise ValueError(f"only caformer_s18 has a choice of activation; leave it None for {self.backbone}")
        if self.backbone == "pvt_v2_b2" and any(w % n for w, n in zip(widths, PVT_NUM_HEADS, strict=True)):
            raise ValueError(
                f"hidden_sizes of pvt_v2_b2 must be multiples of its {PVT_NUM_HEADS} attention heads, got {widths}"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {self.drop_path_rate}")
        if not 0 <= self.segmentation_dropout < 1:
            raise ValueError(f"segmentation_dropout must be in [0, 1), got {self.segmentation_dropout}")
        for name in ("num_channels", "pyramid_channels", "segmentation_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.segmentation_channels % GROUP_NORM_GROUPS:
            raise ValueError(
                f"segmentation_channels must be a multiple of {GROUP_NORM_GROUPS} (the FPN's group normalization), "
                f"got {self.segmentation_channels}"
            )


__all__ = ["SurgeNetConfig"]
