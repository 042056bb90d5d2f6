"""Configuration of the SurgeNet model for surgical phase recognition."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_surgenet import SurgeNetConfig


@strict
class SurgeNetPhaseConfig(PreTrainedConfig):
    """Configuration of a SurgeNet backbone with a causal multi-stage TCN over its frame embeddings.

    The architecture is that of the SurgeNet authors' second stage: 2 stages of 9 layers with 64 maps.
    The defaults of the loss are those of the first version of this package, so that its saved models keep their loss.
    `SurgeNetForPhaseRecognition.from_backbone` takes the loss of the authors' code for new models.

    Args:
        backbone_config: of the frame backbone, a `SurgeNetConfig` or its dict; default: `SurgeNetConfig()`.
        num_stages: TCN stages; each after the first refines the phases that the one before predicts.
        num_layers: dilated layers of a stage; layer i has dilation 2**i.
        num_feature_maps: channels of these layers.
        dropout: probability within each dilated layer, in [0, 1).
        smoothing_weight: of the truncated mean squared error between neighbouring frames in the loss; 0 for none.
        stage_reduction: of the losses of the stages to one, `"sum"` or `"mean"`.
        smoothing_threshold: where that error is truncated, as a difference of log-probabilities (MS-TCN's tau).
        ignore_index: label of frames that the loss leaves out: padding, or without annotation.
        frames_per_second: rate of the frames that the TCN is trained on, in 1/s; whoever feeds the model keeps to it.
        num_labels, id2label, label2id: the phases.

    Raises:
        ValueError: when the backbone's config is of another model type.
        huggingface_hub.errors.StrictDataclassError: for a wrong type, or a value that makes no model, with the reason.
    """

    model_type = "surgenet_phase"
    sub_configs = {"backbone_config": SurgeNetConfig}  # noqa: RUF012
    # Trainer gathers the other outputs for its metrics, along their first axis: the videos
    keys_to_ignore_at_inference = ["stage_logits", "features"]  # noqa: RUF012

    backbone_config: SurgeNetConfig | dict | None = None
    num_stages: int = 2
    num_layers: int = 9
    num_feature_maps: int = 64
    dropout: float | int = 0.5
    smoothing_weight: float | int = 0.25
    smoothing_threshold: float | int = 4
    stage_reduction: str = "sum"
    ignore_index: int = -100
    frames_per_second: float | int = 1.0

    def __post_init__(self, **kwargs):
        if "backbone" in kwargs:
            raise ValueError(
                f"backbone {kwargs['backbone']!r} is a setting of SurgeNetConfig: give backbone_config. To make a "
                "phase model of a saved SurgeNet model, use SurgeNetForPhaseRecognition.from_backbone."
            )
        backbone_config = {} if self.backbone_config is None else self.backbone_config
        if isinstance(backbone_config, dict):
            model_type = backbone_config.get("model_type", SurgeNetConfig.model_type)
            if model_type != SurgeNetConfig.model_type:
                raise ValueError(f"backbone_config must be of model type 'surgenet', got {model_type!r}")
            self.backbone_config = SurgeNetConfig(**backbone_config)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Refuse what cannot be built or trained; called by `@strict` after every construction."""
        for name in ("num_stages", "num_layers", "num_feature_maps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.smoothing_weight < 0:
            raise ValueError(f"smoothing_weight must not be negative (0 is none), got {self.smoothing_weight}")
        if self.stage_reduction not in ("sum", "mean"):
            raise ValueError(f"stage_reduction must be 'sum' or 'mean', got {self.stage_reduction!r}")
        for name in ("smoothing_threshold", "frames_per_second"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.num_labels < 2:
            raise ValueError(f"num_labels must be at least 2: one phase leaves nothing to tell; got {self.num_labels}")

    @property
    def receptive_field(self) -> int:
        """Frames that an output depends on, its own included."""
        return 1 + self.num_stages * 2 * (2**self.num_layers - 1)

    # what is said of any SurgeNet model is here said of the backbone

    @property
    def backbone(self) -> str:
        return self.backbone_config.backbone

    @property
    def activation(self) -> str | None:
        return self.backbone_config.activation

    @property
    def pretraining(self) -> dict | None:
        return self.backbone_config.pretraining

    @property
    def finetuning(self) -> list[dict] | None:
        return self.backbone_config.finetuning


__all__ = ["SurgeNetPhaseConfig"]
