"""Surgical phase recognition: a SurgeNet backbone a frame, and a causal multi-stage TCN over the frames.

The temporal model is MS-TCN (Farha and Gall, CVPR 2019) made causal as in TeCNO (Czempiel et al., MICCAI 2020). It has
no normalisation, over time or otherwise: an output depends on its own frame and those before, in training too.
"""

import os
from dataclasses import dataclass

import timm  # noqa: F401  (a repository that carries this file as remote code tells from this line what to install)
import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_surgenet_phase import SurgeNetPhaseConfig
from .modeling_surgenet import SurgeNetModel, SurgeNetPreTrainedModel

# the last 2 * dilation inputs of each dilated layer, (B, num_feature_maps, 2 * dilation), from the first stage on
StreamState = tuple[torch.Tensor, ...]


@dataclass
class PhaseRecognitionOutput(ModelOutput):
    """
    Args:
        loss: of `phase_loss`, if labels are given.
        logits: (B, T, num_labels), of the last stage.
        stage_logits: (num_stages, B, T, num_labels), of all stages.
        features: (B, T, C), the embeddings of the frames.
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
    """The loss of MS-TCN: cross-entropy, and a truncated squared error between neighbouring frames, of every stage.

    With p the log-probabilities of a stage, valid frames those with a label, and pairs their neighbours in time:

        cross_entropy = mean over valid frames (b, t) of -p[b, t, labels[b, t]]
        smoothing = mean over valid pairs (b, t - 1), (b, t) and classes k of
                    min(abs(p[b, t, k] - detached(p[b, t - 1, k])), smoothing_threshold) ** 2
        loss = sum or mean over stages of cross_entropy + smoothing_weight * smoothing

    Args:
        stage_logits: (S, B, T, K).
        labels: (B, T), class ids; frames of `ignore_index` are left out of both terms.
        class_weights: (K,), of the cross-entropy, whose mean becomes a weighted one.
        stage_reduction: "sum" (MS-TCN) or "mean" (the SurgeNet authors' code) over the stages.

    Returns:
        a float32 scalar; 0 where no frame is valid.

    Raises:
        ValueError: when the labels have another shape than the frames.
    """
    if labels.shape != stage_logits.shape[1:3]:
        raise ValueError(
            f"labels must be one a frame, (B, T) = {tuple(stage_logits.shape[1:3])}, got {tuple(labels.shape)}"
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
    """A causal dilated convolution over three frames, ReLU, a 1x1 convolution and dropout, added to the input."""

    def __init__(self, channels: int, dilation: int, dropout: float):
        super().__init__()
        self.context = 2 * dilation
        self.dilated = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.pointwise = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, past: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: (B, channels, T), the inputs of T frames.
            past: (B, channels, 2 * dilation), the inputs before them; `None`: zeros, for the beginning of a video.

        Returns:
            the outputs (B, channels, T), and the past of the frame that follows.
        """
        window = F.pad(x, (self.context, 0)) if past is None else torch.cat([past, x], dim=-1)
        update = self.dropout(self.pointwise(F.relu(self.dilated(window))))
        return x + update, window[..., -self.context :]


class SurgeNetTCNStage(nn.Module):
    """One stage of the TCN: (B, in_channels, T) to the logits (B, num_labels, T)."""

    def __init__(self, config: SurgeNetPhaseConfig, in_channels: int):
        super().__init__()
        channels = config.num_feature_maps
        self.projection = nn.Conv1d(in_channels, channels, 1)
        self.layers = nn.ModuleList(
            SurgeNetDilatedLayer(channels, 2**i, config.dropout) for i in range(config.num_layers)
        )
        self.classifier = nn.Conv1d(channels, config.num_labels, 1)

    def forward(self, x: torch.Tensor, pasts: StreamState | None = None) -> tuple[torch.Tensor, StreamState]:
        """The logits, and the pasts of the layers for the frame that follows."""
        x = self.projection(x)
        following = []
        for i, layer in enumerate(self.layers):
            x, past = layer(x, None if pasts is None else pasts[i])
            following.append(past)
        return self.classifier(x), tuple(following)


class SurgeNetForPhaseRecognition(SurgeNetPreTrainedModel):
    """A SurgeNet backbone and a causal multi-stage TCN: the phase of every frame, from it and the frames before.

    Padding goes to the end of the shorter videos of a batch. It needs no mask: no earlier output depends on it, and
    frames labelled `config.ignore_index` are left out of the loss.

    To train the TCN alone, as the SurgeNet authors do: compute the features once with `extract_features`, under
    `model.eval()` and `torch.inference_mode()`, freeze the backbone with `model.surgenet.requires_grad_(False)`
    (otherwise distributed training waits for gradients that never come), and train on `features` and `labels`.

    Example:
        >>> model = SurgeNetForPhaseRecognition.from_backbone("surgenet/surgenetxl", num_labels=7).eval()
        >>> model(pixel_values).logits  # (B, T, 7) of a whole video (B, T, 3, H, W)
        >>> state = None
        >>> for frame in camera:  # (B, 3, H, W), config.frames_per_second of them a second
        ...     logits, state = model.stream(frame, state)  # (B, 7)
    """

    config: SurgeNetPhaseConfig
    _backbone_prefixes = (".surgenet.",)
    accepts_loss_kwargs = False  # Trainer then averages the loss over accumulated batches itself

    def __init__(self, config: SurgeNetPhaseConfig):
        super().__init__(config)
        self.surgenet = SurgeNetModel(config.backbone_config)
        widths = [config.backbone_config.hidden_sizes[-1]] + [config.num_labels] * (config.num_stages - 1)
        self.stages = nn.ModuleList(SurgeNetTCNStage(config, width) for width in widths)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv1d):  # PyTorch's own, as in MS-TCN
            bound = (module.in_channels * module.kernel_size[0]) ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @classmethod
    def from_backbone(cls, backbone, **config) -> "SurgeNetForPhaseRecognition":
        """A phase model with a trained backbone and a new TCN, in float32.

        Args:
            backbone: a SurgeNet model with its pooled embedding (`SurgeNetModel`, or the frame classifier that stage 1
                trained: `SurgeNetForImageClassification`), whose weights are copied; or the folder or Hub name of one.
            config: fields of `SurgeNetPhaseConfig`. The labels default to those of the backbone's config. The loss
                defaults to that of the authors' SurgPhaseBench: smoothing 0.15 and the mean over the stages.

        Raises:
            OSError: no such folder or repository.
            ValueError: its weights are not those of a SurgeNet backbone.
            RuntimeError: a model without the norm of the pooled embedding (of segmentation).
        """
        if isinstance(backbone, (str, os.PathLike)):
            backbone = SurgeNetModel.from_pretrained(backbone)
        if not {"num_labels", "id2label"} & config.keys():
            config |= {"id2label": backbone.config.id2label, "label2id": backbone.config.label2id}
        base = backbone.base_model
        backbone_config = base.config.to_dict() | {"_name_or_path": ""}  # a path of this machine
        config = {"smoothing_weight": 0.15, "stage_reduction": "mean"} | config
        model = cls(SurgeNetPhaseConfig(backbone_config=backbone_config, **config))
        model.surgenet.load_state_dict(base.state_dict())
        return model

    def extract_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The pooled embeddings (N, C) of single frames (N, num_channels, H, W), as `SurgeNetModel` gives them."""
        return self.surgenet(pixel_values).pooler_output

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> PhaseRecognitionOutput:
        """
        Args:
            pixel_values: (B, T, num_channels, H, W), T frames of each video, normalised by the image processor.
            features: (B, T, C) instead, embeddings from `extract_features`; the backbone is then not run.
            labels: (B, T), phase ids; `config.ignore_index` for padding and frames without annotation.

        Raises:
            ValueError: for both or neither of pixel_values and features, or a wrong shape.
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
        """The phase of the next frame of a video: what `forward` gives for it in the whole video.

        The state has a fixed size, 2 * (2**num_layers - 1) inputs a stage, and is never changed in place: a frame may
        be tried again from the state before it.

        Args:
            frame: (B, num_channels, H, W), the next frame of each of B videos, or their features (B, C).
            state: what the call for the frame before returned; `None` begins new videos.

        Returns:
            logits (B, num_labels), and the state for the next frame.

        Raises:
            RuntimeError: in training mode, where dropout would make the outputs random.
            ValueError: for a wrong shape, or the state of another batch size or model.
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
                raise ValueError(f"the state is not one of {len(features)} videos and this model: begin with None")
        stage_logits, state = self._run_stages(features[:, None], state)
        return stage_logits[-1, :, 0], state

    def _run_stages(
        self, features: torch.Tensor, state: StreamState | None = None
    ) -> tuple[torch.Tensor, StreamState]:
        """Features (B, T, C) to the logits of all stages (S, B, T, num_labels) and the state after the last frame."""
        width = self.config.backbone_config.hidden_sizes[-1]
        if features.ndim != 3 or features.shape[1] == 0 or features.shape[2] != width:
            raise ValueError(
                f"features must be (B, T, {width}), T > 0, as extract_features gives, got {tuple(features.shape)}"
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
