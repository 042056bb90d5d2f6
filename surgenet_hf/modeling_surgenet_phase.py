"""Surgical phase recognition with a backbone per frame and a causal multi-stage TCN over the frames.

The temporal model is MS-TCN (Farha and Gall, CVPR 2019), made causal as in TeCNO (Czempiel et al., MICCAI 2020). It
has no normalization layers, so an output depends only on its own and earlier frames. This also holds in training.
"""

import os
from dataclasses import dataclass

import timm  # noqa: F401  (transformers reads the requirements of remote code from its imports)
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_surgenet_phase import SurgeNetPhaseConfig
from .modeling_surgenet import SurgeNetModel, SurgeNetPreTrainedModel
from .modeling_surgical import PooledBackbone, hidden_width

# last 2 * dilation inputs (B, num_feature_maps, 2 * dilation) of each dilated layer, in the order of stages and layers
StreamState = tuple[torch.Tensor, ...]


@dataclass
class PhaseRecognitionOutput(ModelOutput):
    """Output of `SurgeNetForPhaseRecognition`.

    Args:
        loss: scalar loss of `phase_loss`, if labels are given.
        logits: logits (B, T, num_labels) of the last stage.
        stage_logits: logits (num_stages, B, T, num_labels) of all stages.
        features: frame embeddings (B, T, C).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    stage_logits: torch.Tensor | None = None
    features: torch.Tensor | None = None


def phase_loss(
    stage_logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing_weight: float = 0.25,
    smoothing_threshold: float = 4.0,
    ignore_index: int = -100,
    class_weights: torch.Tensor | None = None,
    stage_reduction: str = "sum",
) -> torch.Tensor:
    """Compute the loss of MS-TCN, cross-entropy plus a truncated squared error between adjacent frames.

    Let p be the log-probabilities of a stage. A frame is valid if it has a label. A pair of adjacent frames is valid
    if both frames are:

        cross_entropy = mean over valid frames (b, t) of -p[b, t, labels[b, t]]
        smoothing = mean over valid pairs (b, t - 1), (b, t) and classes k of
                    min(abs(p[b, t, k] - detached(p[b, t - 1, k])), smoothing_threshold) ** 2
        loss = sum or mean over stages of cross_entropy + smoothing_weight * smoothing

    Args:
        stage_logits: logits (S, B, T, K) of S stages.
        labels: class ids (B, T). Frames with `ignore_index` are excluded from both terms.
        smoothing_weight: weight of the smoothing term.
        smoothing_threshold: truncation threshold, as a difference of log-probabilities.
        ignore_index: label of frames to exclude.
        class_weights: weights (K,) of the cross-entropy, which becomes a weighted mean.
        stage_reduction: "sum" over stages (MS-TCN), or "mean" (code of the SurgeNet authors).

    Returns:
        The loss as a float32 scalar, 0 if no frame is valid.

    Raises:
        ValueError: the shape of the labels differs from (B, T).
    """
    if labels.shape != stage_logits.shape[1:3]:
        raise ValueError(
            f"labels must have one class id per frame, shape (B, T) = {tuple(stage_logits.shape[1:3])}, "
            f"got {tuple(labels.shape)}"
        )
    num_stages, *_, num_labels = stage_logits.shape
    log_probs = F.log_softmax(stage_logits.float(), dim=-1)
    valid = labels != ignore_index
    if class_weights is None:
        class_weights = log_probs.new_ones(num_labels)
    targets = labels.masked_fill(~valid, 0)
    frame_weights = class_weights.to(log_probs)[targets] * valid
    picked = log_probs.gather(-1, targets.expand(num_stages, *labels.shape)[..., None])[..., 0]
    cross_entropy = -(picked * frame_weights).sum() / torch.where(valid.any(), frame_weights.sum(), 1)

    steps = (log_probs[:, :, 1:] - log_probs[:, :, :-1].detach()).abs().clamp(max=smoothing_threshold)
    pairs = valid[:, 1:] & valid[:, :-1]
    smoothing = (steps.square().mean(dim=-1) * pairs).sum() / pairs.sum().clamp(min=1)
    loss = cross_entropy + smoothing_weight * smoothing
    return loss / num_stages if stage_reduction == "mean" else loss


class SurgeNetDilatedLayer(nn.Module):
    """Residual layer of a causal dilated convolution over three frames, ReLU, a 1x1 convolution, and dropout."""

    def __init__(self, channels: int, dilation: int, dropout: float):
        super().__init__()
        self.context = 2 * dilation
        self.dilated = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.pointwise = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, past: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Process T frames.

        Args:
            x: inputs (B, channels, T).
            past: inputs (B, channels, 2 * dilation) of the preceding frames. `None` means zeros, for the start of a
                video.

        Returns:
            The outputs (B, channels, T), and the past for the next frame.
        """
        window = F.pad(x, (self.context, 0)) if past is None else torch.cat([past, x], dim=-1)
        update = self.dropout(self.pointwise(F.relu(self.dilated(window))))
        return x + update, window[..., -self.context :]


class SurgeNetTCNStage(nn.Module):
    """One stage of the TCN, from inputs (B, in_channels, T) to logits (B, num_labels, T)."""

    def __init__(self, config: SurgeNetPhaseConfig, in_channels: int):
        super().__init__()
        channels = config.num_feature_maps
        self.projection = nn.Conv1d(in_channels, channels, 1)
        self.layers = nn.ModuleList(
            SurgeNetDilatedLayer(channels, 2**i, config.dropout) for i in range(config.num_layers)
        )
        self.classifier = nn.Conv1d(channels, config.num_labels, 1)

    def forward(self, x: torch.Tensor, pasts: StreamState | None = None) -> tuple[torch.Tensor, StreamState]:
        """Return the logits, and the pasts of the layers for the next frame."""
        x = self.projection(x)
        following = []
        for i, layer in enumerate(self.layers):
            x, past = layer(x, None if pasts is None else pasts[i])
            following.append(past)
        return self.classifier(x), tuple(following)


class SurgeNetForPhaseRecognition(SurgeNetPreTrainedModel):
    """SurgeNet backbone with a causal multi-stage TCN that predicts the phase of each frame.

    A prediction uses the frame itself and earlier frames. In a batch, pad shorter videos at the end. No mask is
    necessary, because earlier outputs do not depend on the padding and the loss ignores frames with the label
    `config.ignore_index`.

    To train only the TCN, as the SurgeNet authors do:

    1. Compute the features once with `extract_features`, under `model.eval()` and `torch.inference_mode()`.
    2. Freeze the backbone with `model.surgenet.requires_grad_(False)`. Otherwise, distributed training waits for
    gradients
       that do not exist.
    3. Train on `features` and `labels`.

    Example:
        >>> model = SurgeNetForPhaseRecognition.from_backbone("surgenet/surgenetxl", num_labels=7).eval()
        >>> model(pixel_values).logits  # (B, T, 7) for a whole video (B, T, 3, H, W)
        >>> state = None
        >>> for frame in camera:  # (B, 3, H, W), at config.frames_per_second
        ...     logits, state = model.stream(frame, state)  # (B, 7)
    """

    config: SurgeNetPhaseConfig
    _backbone_prefixes = (".surgenet.",)
    accepts_loss_kwargs = False  # makes Trainer average the loss over accumulated batches

    def __init__(self, config: SurgeNetPhaseConfig):
        super().__init__(config)
        if config.backbone_config.model_type == "surgenet":
            self.surgenet = SurgeNetModel(config.backbone_config)
            self.feature_width = config.backbone_config.hidden_sizes[-1]
        else:
            self.surgenet = PooledBackbone(AutoModel.from_config(config.backbone_config))
            self.feature_width = hidden_width(self.surgenet.model)
        widths = [self.feature_width] + [config.num_labels] * (config.num_stages - 1)
        self.stages = nn.ModuleList(SurgeNetTCNStage(config, width) for width in widths)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv1d):  # PyTorch's default initialization, as in MS-TCN
            bound = (module.in_channels * module.kernel_size[0]) ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self):
        """Return the stem of a SurgeNet backbone, see `SurgeNetPreTrainedModel`. None for other families."""
        return super().get_input_embeddings() if self.config.backbone_config.model_type == "surgenet" else None

    @classmethod
    def from_backbone(cls, backbone, **config) -> "SurgeNetForPhaseRecognition":
        """Build a phase model with a trained backbone and a new TCN, in float32.

        Args:
            backbone: SurgeNet model with a pooled embedding, or the folder or Hub name of one. This is a
                `SurgeNetModel` or a frame classifier of stage 1 (`SurgeNetForImageClassification`). Also a base model
                of another family, without a head. The weights of a model are copied.
            config: settings of `SurgeNetPhaseConfig`. The labels default to those of the backbone's config. The loss
                defaults to that of the authors' SurgPhaseBench, with a smoothing weight of 0.15 and the mean over
                stages.

        Returns:
            The phase model.

        Raises:
            OSError: the folder or repository does not exist.
            ValueError: the weights are not those of a SurgeNet backbone.
            RuntimeError: the model lacks the norm of the pooled embedding, as segmentation models do.
        """
        if isinstance(backbone, (str, os.PathLike)):
            backbone = SurgeNetModel.from_pretrained(backbone)
        if not {"num_labels", "id2label"} & config.keys():
            config |= {"id2label": backbone.config.id2label, "label2id": backbone.config.label2id}
        is_surgenet = backbone.config.model_type.startswith("surgenet")
        base = backbone.base_model if is_surgenet else backbone
        backbone_config = base.config.to_dict() | {"_name_or_path": ""}  # never save a local path
        config = {"smoothing_weight": 0.15, "stage_reduction": "mean"} | config
        model = cls(SurgeNetPhaseConfig(backbone_config=backbone_config, **config))
        (model.surgenet if is_surgenet else model.surgenet.model).load_state_dict(base.state_dict())
        return model

    def extract_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the pooled embeddings (N, C) of frames (N, num_channels, H, W), as in `SurgeNetModel`."""
        return self.surgenet(pixel_values).pooler_output

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> PhaseRecognitionOutput:
        """Compute the logits of all frames, and the loss if labels are given.

        Args:
            pixel_values: frames (B, T, num_channels, H, W) of B videos, normalized by the image processor.
            features: embeddings (B, T, C) from `extract_features`, instead of `pixel_values`. The backbone is not run.
            labels: phase ids (B, T), with `config.ignore_index` for padding and unlabeled frames.

        Returns:
            A `PhaseRecognitionOutput`.

        Raises:
            ValueError: both or neither of `pixel_values` and `features` are given, or a shape is wrong.
        """
        if (pixel_values is None) == (features is None):
            raise ValueError("give either pixel_values (B, T, num_channels, H, W) or features (B, T, C)")
        if features is None:
            if pixel_values.ndim != 5:
                raise ValueError(f"pixel_values must be (B, T, num_channels, H, W), got {tuple(pixel_values.shape)}")
            features = self.extract_features(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])
        stage_logits, _ = self._run_stages(features)
        loss = None
        if labels is not None:
            config = self.config
            loss = phase_loss(
                stage_logits,
                labels,
                config.smoothing_weight,
                config.smoothing_threshold,
                config.ignore_index,
                stage_reduction=config.stage_reduction,
            )
        return PhaseRecognitionOutput(loss=loss, logits=stage_logits[-1], stage_logits=stage_logits, features=features)

    @torch.no_grad()
    def stream(self, frame: torch.Tensor, state: StreamState | None = None) -> tuple[torch.Tensor, StreamState]:
        """Predict the phase of the next frame of a video. The logits equal those of `forward` on the whole video.

        The state has a fixed size of 2 * (2**num_layers - 1) inputs per stage. It is never modified in place, so a
        frame can be repeated from the previous state.

        Args:
            frame: next frame (B, num_channels, H, W) of each of B videos, or its features (B, C).
            state: state returned for the previous frame. `None` starts new videos.

        Returns:
            Logits (B, num_labels), and the state for the next frame.

        Raises:
            RuntimeError: the model is in training mode, where dropout makes the outputs random.
            ValueError: a shape is wrong, or the state belongs to another batch size or model.
        """
        if self.training:
            raise RuntimeError("stream is for inference: call model.eval() first")
        if frame.ndim not in (2, 4):
            raise ValueError(f"a frame must be (B, num_channels, H, W) or (B, C), got {tuple(frame.shape)}")
        features = self.extract_features(frame) if frame.ndim == 4 else frame
        if state is not None:
            maps = self.config.num_feature_maps
            expected = [(len(features), maps, layer.context) for stage in self.stages for layer in stage.layers]
            if [tuple(past.shape) for past in state] != expected:
                raise ValueError(
                    f"the state does not match this model and {len(features)} videos: start with state=None"
                )
        stage_logits, state = self._run_stages(features[:, None], state)
        return stage_logits[-1, :, 0], state

    def _run_stages(
        self, features: torch.Tensor, state: StreamState | None = None
    ) -> tuple[torch.Tensor, StreamState]:
        """Run all stages on features (B, T, C).

        Returns:
            The logits (S, B, T, num_labels) of all stages, and the state after the last frame.
        """
        width = self.feature_width
        if features.ndim != 3 or features.shape[1] == 0 or features.shape[2] != width:
            raise ValueError(
                f"features must be (B, T, {width}) with T > 0, as returned by extract_features, got "
                f"{tuple(features.shape)}"
            )
        x = features.transpose(1, 2)
        stage_logits, following = [], ()
        for stage in self.stages:
            done = len(following)
            logits, pasts = stage(x, None if state is None else state[done : done + len(stage.layers)])
            following += pasts
            stage_logits.append(logits.transpose(1, 2))
            x = logits.softmax(dim=1)
        return torch.stack(stage_logits), following


__all__ = ["PhaseRecognitionOutput", "SurgeNetForPhaseRecognition", "phase_loss"]
