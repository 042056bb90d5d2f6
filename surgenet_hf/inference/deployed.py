"""Models with the preprocessing and postprocessing of an exported graph, and the metadata of the files.

A resize is written as two products with constant matrices, because runtimes disagree about antialiasing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from .._version import __version__
from ..checkpoints.catalog import recorded_normalization
from ..checkpoints.licenses import DINOV3_LICENSE_URL, license_names
from ..models import is_surgenet
from .graphs import has_positions
from .prediction import is_single_label, resize_logits, semantic_logits

LAYOUTS = ("nchw", "nhwc")
RESIZE_WEIGHTS = ("rows", "columns")  # buffers of the matrices that resize frames


@dataclass(frozen=True)
class ExportSettings:
    """What the graph contains.

    Attributes:
        image_size: height and width in pixels of the model's input.
        source_size: height and width of frames that the graph preprocesses itself. None: the input is the output
            of the image processor.
        layout: layout of these frames, "nchw" or "nhwc".
        dtype: "uint8", or "float32" for frames with the same values from 0 to 255.
        postprocess: whether the graph ends with class ids (segmentation) or probabilities instead of logits.
        dynamic: whether batch and size of the input can change. Not with `source_size`, and not for phases.
        precision: "float32", "fp16", or "int8", of weights and computation. It does not change inputs and outputs.
    """

    image_size: tuple[int, int]
    source_size: tuple[int, int] | None = None
    layout: str = "nchw"
    dtype: str = "uint8"
    postprocess: bool = False
    dynamic: bool = False
    precision: str = "float32"


def resize_matrix(source: int, target: int) -> torch.Tensor:
    """Return the matrix (target, source) of torch's antialiased bilinear resize of a line of pixels."""
    identity = torch.eye(source)[None, None]
    return F.interpolate(identity, (target, source), mode="bilinear", antialias=True, align_corners=False)[0, 0]


class Deployed(nn.Module):
    """Model with the preprocessing and postprocessing of its graph.

    Args:
        model: model in evaluation mode.
        processor: its image processor.
        task: "segmentation", "classification", "phases", or "embeddings".
        settings: what the graph contains.
    """

    mean: torch.Tensor
    std: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, model, processor, task: str, settings: ExportSettings):
        super().__init__()
        self.model, self.task, self.settings = model, task, settings
        self.dtype = next(model.parameters()).dtype
        self.statistics = {name: list(getattr(processor, name)) for name in ("image_mean", "image_std")}
        self.register_buffer("mean", torch.tensor(self.statistics["image_mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.statistics["image_std"]).view(1, 3, 1, 1))
        if settings.source_size:
            (height, width), (rows, columns) = settings.source_size, settings.image_size
            self.register_buffer("rows", resize_matrix(height, rows))
            self.register_buffer("columns", resize_matrix(width, columns).T.contiguous())

    def forward(self, frames: torch.Tensor, *state: torch.Tensor):
        """Compute the outputs of the graph: one tensor, or for phases the output and the next state."""
        pixels = self.preprocess(frames).to(self.dtype)
        if self.task == "phases":
            logits, following = self.model.stream(pixels, tuple(part.to(self.dtype) for part in state))
            output = logits.float().softmax(-1) if self.settings.postprocess else logits.float()
            return (output, *(part.float() for part in following))
        outputs = self.model(pixels)
        if self.task == "embeddings":
            pooled = outputs.pooler_output
            return (outputs.last_hidden_state.mean((-2, -1)) if pooled is None else pooled).float()
        if self.task == "classification":
            return self._scores(outputs.logits.float())
        logits = semantic_logits(outputs, pixels.shape[-2:]).float()
        logits = resize_logits(logits, self.settings.source_size or pixels.shape[-2:])
        return logits.argmax(1).to(torch.uint8) if self.settings.postprocess else logits

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        if self.settings.source_size is None:
            return frames
        frames = frames.permute(0, 3, 1, 2) if self.settings.layout == "nhwc" else frames
        # the image processor rounds to 8 bits after each direction
        narrow = (frames.float() @ self.columns).round()
        resized = (self.rows @ narrow).round()
        return (resized / 255 - self.mean) / self.std

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.settings.postprocess:
            return logits
        return logits.softmax(-1) if is_single_label(self.model.config) else logits.sigmoid()

    def example(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Return inputs: random frames, and for phases the state at the start of a video."""
        generator = torch.Generator().manual_seed(0)
        if self.settings.source_size:
            height, width = self.settings.source_size
            shape = (batch, height, width, 3) if self.settings.layout == "nhwc" else (batch, 3, height, width)
            frames = torch.randint(256, shape, generator=generator).to(getattr(torch, self.settings.dtype))
        else:
            frames = torch.rand(batch, 3, *self.settings.image_size, generator=generator)
        return (frames, *self.initial_state(batch))

    def initial_state(self, batch: int) -> list[torch.Tensor]:
        """Return the state at the start of a video, empty for other tasks."""
        if self.task != "phases":
            return []
        maps = self.model.config.num_feature_maps
        return [torch.zeros(batch, maps, layer.context) for stage in self.model.stages for layer in stage.layers]

    def names(self) -> tuple[list[str], list[str]]:
        """Return the names of inputs and outputs."""
        frames = "frames" if self.settings.source_size else "pixel_values"
        final = {"segmentation": "mask", "embeddings": "embedding"}.get(self.task, "probabilities")
        output = final if self.settings.postprocess or self.task == "embeddings" else "logits"
        count = len(self.initial_state(1))
        states = [f"state_{i}" for i in range(count)]
        return [frames, *states], [output, *(f"next_{name}" for name in states)]


def frame_input(frame: Image.Image, processor, settings: ExportSettings) -> torch.Tensor:
    """Return a frame as the graph expects it, a batch of one."""
    if settings.source_size is None:
        return processor(frame, return_tensors="pt").pixel_values
    height, width = settings.source_size
    pixels = torch.from_numpy(np.asarray(frame.convert("RGB").resize((width, height))).copy())[None]
    pixels = pixels.to(getattr(torch, settings.dtype))
    return pixels if settings.layout == "nhwc" else pixels.permute(0, 3, 1, 2).contiguous()


def describe(deployed: Deployed) -> dict:
    """Return the metadata of an exported file: provenance, classes, preprocessing, inputs, and outputs."""
    config, settings = deployed.model.config, deployed.settings
    pretraining = getattr(config, "pretraining", None) or {}
    inputs, outputs = deployed.names()
    return {
        "exported_by": f"surgenet_hf {__version__}",
        "task": deployed.task,
        "architecture": type(deployed.model).__name__,
        "pretraining": pretraining.get("name", "unknown"),
        "source_sha256": pretraining.get("source_sha256"),
        "notice": "For research only. Not a medical device.",
        **_license(config),
        "labels": list(config.id2label.values()) if deployed.task != "embeddings" else [],
        "problem_type": getattr(config, "problem_type", None),
        "inputs": inputs,
        "outputs": outputs,
        "image_size": list(settings.image_size),
        "source_size": list(settings.source_size) if settings.source_size else None,
        "layout": settings.layout,
        "dtype": settings.dtype if settings.source_size else "float32",
        "image_mean": deployed.statistics["image_mean"],
        "image_std": deployed.statistics["image_std"],
        "normalization": recorded_normalization(pretraining),
        "frames_per_second": getattr(config, "frames_per_second", None),
        "precision": settings.precision,
    }


def _license(config) -> dict[str, str]:
    """Return "license", and for models derived from DINOv3 "license_name" and "license_link", as in cards."""
    license, name = license_names(config, is_surgenet(getattr(config, "backbone_config", None) or config))
    if name:
        return {"license": license, "license_name": name, "license_link": DINOV3_LICENSE_URL}
    unknown = "The license of the weights from which the model was trained applies."
    return {"license": unknown if license == "other" else license}


def trace(deployed: Deployed) -> torch.export.ExportedProgram:
    """Return the program of an exported model."""
    example = deployed.example(2 if deployed.settings.dynamic else 1)
    shapes = None
    if deployed.settings.dynamic:
        only_batch = has_positions(deployed.model)
        shapes = {"frames": {0: Dim.DYNAMIC} if only_batch else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return torch.export.export(deployed, example, dynamic_shapes=shapes)
