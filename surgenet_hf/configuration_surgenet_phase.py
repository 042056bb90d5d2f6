"""Configuration of the model for surgical phase recognition."""

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_surgenet import SurgeNetConfig


@strict
class SurgeNetPhaseConfig(PreTrainedConfig):
    """Configuration of a frame backbone with a causal multi-stage TCN over its frame embeddings.

    The default architecture is the second stage of the SurgeNet authors: 2 TCN stages of 9 layers with 64 channels.
    The defaults of the loss are those of the first version of this package, so that its saved models keep their loss.
    For new models, `SurgeNetForPhaseRecognition.from_backbone` uses the loss of the authors' code.

    Args:
        backbone_config: config of the frame backbone, or its dict. A dict without `model_type` is that of a
            `SurgeNetConfig`. Default: `SurgeNetConfig()`.
        num_stages: number of TCN stages. Each stage after the first refines the predictions of the previous stage.
        num_layers: number of dilated layers per stage. Layer i has dilation 2**i.
        num_feature_maps: number of channels of these layers.
        dropout: dropout probability in each dilated layer, in [0, 1).
        smoothing_weight: weight of the truncated mean squared error between adjacent frames in the loss. 0 disables
            it.
        stage_reduction: reduction of the losses over the stages, `"sum"` or `"mean"`.
        smoothing_threshold: truncation threshold of this error, as a difference of log-probabilities (tau of MS-TCN).
        ignore_index: label of frames that the loss ignores, for padding and unlabeled frames.
        frames_per_second: frame rate, in 1/s, at which the TCN is trained. Inputs must have the same rate.
        num_labels: number of phases.
        id2label: {phase id: name}.
        label2id: {name: phase id}.

    Raises:
        ValueError: transformers does not know the model type of the backbone's config.
        huggingface_hub.errors.StrictDataclassError: a type is wrong, or the settings do not form a valid model. The
            message states the reason.
    """

    model_type = "surgenet_phase"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012
    # Trainer concatenates the remaining outputs for its metrics along the first axis, which is the video
    keys_to_ignore_at_inference = ["stage_logits", "features"]  # noqa: RUF012

    backbone_config: PreTrainedConfig | dict | None = None
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
                f"backbone {kwargs['backbone']!r} is a setting of SurgeNetConfig: give backbone_config. To build a "
                "phase model from a saved SurgeNet model, use SurgeNetForPhaseRecognition.from_backbone."
            )
        backbone_config = {} if self.backbone_config is None else self.backbone_config
        if isinstance(backbone_config, dict):
            model_type = backbone_config.get("model_type", SurgeNetConfig.model_type)
            if model_type == SurgeNetConfig.model_type:
                self.backbone_config = SurgeNetConfig(**backbone_config)
            elif model_type in CONFIG_MAPPING:
                self.backbone_config = CONFIG_MAPPING[model_type].from_dict(backbone_config)
            else:
                raise ValueError(f"transformers does not know the model type {model_type!r} of backbone_config")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check that the settings form a model that can be built and trained.

        `@strict` calls this method after construction.

        Raises:
            ValueError: a setting is invalid.
        """
        for name in ("num_stages", "num_layers", "num_feature_maps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.smoothing_weight < 0:
            raise ValueError(
                f"smoothing_weight must not be negative (0 disables smoothing), got {self.smoothing_weight}"
            )
        if self.stage_reduction not in ("sum", "mean"):
            raise ValueError(f"stage_reduction must be 'sum' or 'mean', got {self.stage_reduction!r}")
        for name in ("smoothing_threshold", "frames_per_second"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.num_labels < 2:
            raise ValueError(f"num_labels must be at least 2 (more than one phase), got {self.num_labels}")

    @property
    def receptive_field(self) -> int:
        """Return the number of frames that one output depends on, including its own frame."""
        return 1 + self.num_stages * 2 * (2**self.num_layers - 1)

    # Code for all SurgeNet models reads these settings, which the backbone's config contains. Those of other families
    # have none of the first two.

    @property
    def backbone(self) -> str | None:
        return getattr(self.backbone_config, "backbone", None)

    @property
    def activation(self) -> str | None:
        return getattr(self.backbone_config, "activation", None)

    @property
    def pretraining(self) -> dict | None:
        return getattr(self.backbone_config, "pretraining", None)

    @property
    def finetuning(self) -> list[dict] | None:
        return getattr(self.backbone_config, "finetuning", None)


__all__ = ["SurgeNetPhaseConfig"]
