"""Export of models to ONNX and to torch.export programs, with optional preprocessing and postprocessing in the graph.

Every written file is run and compared with the model; a file that differs is not kept. Graphs contain no loops and no
conditions. A resize is written as two products with constant matrices, because runtimes disagree about antialiasing.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from .._version import __version__
from ..atomic import atomic_write
from ..checkpoints.catalog import recorded_normalization
from ..errors import UserError
from .graphs import freeze, write_onnx
from .prediction import check_classes, is_single_label, resize_logits, semantic_logits

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}
LAYOUTS = ("nchw", "nhwc")
# largest difference of the outputs from the model's, relative to its largest output, by data type of the weights
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2}
AGREEMENT = 0.995  # smallest share of equal classes


@dataclass(frozen=True)
class ExportSettings:
    """What the graph contains.

    Attributes:
        image_size: height and width in pixels of the model's input.
        source_size: height and width of uint8 frames that the graph preprocesses itself. None: the input is the output
            of the image processor.
        layout: layout of these frames, "nchw" or "nhwc".
        postprocess: whether the graph ends with class ids (segmentation) or probabilities instead of logits.
        dynamic: whether batch and size of the input can change. Not with `source_size`, and not for phases.
        half: whether weights and computation have 16 bits. Inputs and outputs keep 32 bits.
    """

    image_size: tuple[int, int]
    source_size: tuple[int, int] | None = None
    layout: str = "nchw"
    postprocess: bool = False
    dynamic: bool = False
    half: bool = False


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
            frames = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
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


def export_model(
    model, processor, task: str, output_dir: str | Path, format: str, settings: ExportSettings, frames: Sequence
) -> dict:
    """Write a model to a file of another runtime, run it, and compare its outputs with those of the model.

    Args:
        model: model in float32.
        processor: its image processor, whose mean and standard deviation the graph contains with `source_size`.
        task: see `Deployed`.
        output_dir: folder for the file and its `metadata.json`.
        format: "onnx", or "torch" for a program of `torch.export`.
        settings: what the graph contains.
        frames: RGB PIL images to compare on.

    Returns:
        "file", and the result of `compare`, which `metadata.json` also contains.

    Raises:
        UserError: the settings do not fit the task, or the outputs of the file differ from those of the model.
    """
    if settings.dynamic and (settings.source_size or task == "phases" or model.config.model_type.startswith("eomt")):
        raise UserError("--dynamic needs the output of the image processor as input, and is not for phases and EoMT")
    if task == "segmentation" and settings.postprocess:
        check_classes(model.config)
    if model.config.model_type.startswith("eomt") and settings.image_size != (model.config.image_size,) * 2:
        raise UserError(
            f"EoMT takes images of {model.config.image_size} pixels only, got {settings.image_size}; omit --image_size"
        )
    if settings.half and format == "torch":
        raise UserError("--fp16 is for --format onnx; load a torch program and convert it instead")
    model = freeze(model)
    reference = Deployed(model, processor, task, settings)
    inputs = [frame_input(frame, processor, settings) for frame in frames]
    with torch.inference_mode():
        expected = [reference(frame, *reference.initial_state(1)) for frame in inputs]
    deployed = Deployed(copy.deepcopy(model).half(), processor, task, settings) if settings.half else reference
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FORMATS[format]
    report: dict[str, Any] = {}
    with atomic_write(path) as temporary:
        run = (_write_onnx if format == "onnx" else _write_program)(deployed, Path(temporary))
        found = [run(frame, *reference.initial_state(1)) for frame in inputs]
        report = compare(found, expected, task, settings)
    metadata = describe(deployed) | {"file": path.name, **report}
    with atomic_write(folder / "metadata.json") as temporary:
        Path(temporary).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"file": str(path), **report}


def frame_input(frame: Image.Image, processor, settings: ExportSettings) -> torch.Tensor:
    """Return a frame as the graph expects it, a batch of one."""
    if settings.source_size is None:
        return processor(frame, return_tensors="pt").pixel_values
    height, width = settings.source_size
    pixels = torch.from_numpy(np.asarray(frame.convert("RGB").resize((width, height))).copy())[None]
    return pixels if settings.layout == "nhwc" else pixels.permute(0, 3, 1, 2).contiguous()


def compare(found: list, expected: list, task: str, settings: ExportSettings) -> dict:
    """Compare outputs of a file with those of the model.

    Returns:
        {"max_difference": relative to the largest output, None for class ids, "agreement": share of equal classes,
        None for embeddings}.

    Raises:
        UserError: they differ by more than `TOLERANCES`, or agree less than `AGREEMENT`.
    """
    firsts = [(_first(ours), _first(theirs)) for ours, theirs in zip(found, expected, strict=True)]
    is_ids = task == "segmentation" and settings.postprocess
    agreement = None
    if task != "embeddings":
        classes = [(a, b) if is_ids else (a.argmax(1), b.argmax(1)) for a, b in firsts]
        agreement = float(np.mean([(a == b).float().mean().item() for a, b in classes]))
    difference = None
    if not is_ids:
        largest = max(theirs.abs().max().item() for _, theirs in firsts)
        difference = max((ours - theirs).abs().max().item() for ours, theirs in firsts) / max(largest, 1e-12)
    limit = TOLERANCES[torch.float16 if settings.half else torch.float32]
    report = {"max_difference": difference, "agreement": agreement}
    if (difference is not None and not difference <= limit) or (agreement is not None and agreement < AGREEMENT):
        raise UserError(
            f"the exported model differs from the original: {describe_comparison(report)}, expected at most "
            f"{limit:.0e} and at least {AGREEMENT:.1%}. Nothing was written. Try without --fp16, or report a bug"
        )
    return report


def describe_comparison(report: dict) -> str:
    """Describe the result of `compare` in words."""
    difference, agreement = report["max_difference"], report["agreement"]
    parts = [] if difference is None else [f"largest difference {difference:.1e} of the largest output"]
    return ", ".join(parts + ([] if agreement is None else [f"{agreement:.2%} equal classes"]))


def _first(outputs) -> torch.Tensor:
    """Return the output, without the state of phases."""
    return torch.as_tensor(outputs[0] if isinstance(outputs, tuple | list) else outputs)


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
        "license": "The license of the weights from which the model was trained applies.",
        "labels": list(config.id2label.values()) if deployed.task != "embeddings" else [],
        "problem_type": getattr(config, "problem_type", None),
        "inputs": inputs,
        "outputs": outputs,
        "image_size": list(settings.image_size),
        "source_size": list(settings.source_size) if settings.source_size else None,
        "layout": settings.layout,
        "image_mean": deployed.statistics["image_mean"],
        "image_std": deployed.statistics["image_std"],
        "normalization": recorded_normalization(pretraining),
        "frames_per_second": getattr(config, "frames_per_second", None),
        "precision": "float16" if settings.half else "float32",
    }


def _write_onnx(deployed: Deployed, path: Path):
    """Write an ONNX file, and return a function that runs it."""
    import onnxruntime

    inputs, outputs = deployed.names()
    write_onnx(_program(deployed), path, inputs, outputs, metadata=describe(deployed))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda *given: session.run(None, dict(zip(inputs, (x.numpy() for x in given), strict=True)))


def _write_program(deployed: Deployed, path: Path):
    """Write a program of torch.export, and return a function that runs it."""
    with open(path, "wb") as file:
        program = _program(deployed)
        for node in program.graph.nodes:  # the paths of this machine
            node.meta.pop("stack_trace", None)
        torch.export.save(program, file)
    with open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda *given: module(*given)


def _program(deployed: Deployed) -> torch.export.ExportedProgram:
    example = deployed.example(2 if deployed.settings.dynamic else 1)
    shapes = None
    if deployed.settings.dynamic:
        shapes = {"frames": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return torch.export.export(deployed, example, dynamic_shapes=shapes)
