"""Networks that run in ONNX Runtime or OpenVINO, or in another precision of PyTorch.

A `Network` replaces a model in the prediction loop: it has the same config and outputs. For phase recognition, it
replaces the backbone only, and the temporal model stays in float32 in PyTorch.
"""

import copy
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from transformers.utils import ModelOutput

from ..errors import UserError
from ..modeling_surgenet_phase import SurgeNetForPhaseRecognition
from .graphs import freeze, quantize_onnx, write_onnx
from .packages import import_onnxruntime, import_openvino
from .prediction import evaluating
from .settings import Setting, check_machine

logger = logging.getLogger(__name__)

INPUT = "pixel_values"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# outputs that the prediction loop uses; of a model, the first group that it has
OUTPUTS = (
    ("class_queries_logits", "masks_queries_logits"),
    ("logits",),
    ("pooler_output",),
    ("last_hidden_state",),
)
DENSE_OUTPUTS = (("pooler_output", "last_hidden_state"), ("last_hidden_state",))
OPENVINO_HINTS = {"float32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}

Run = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class ExportError(UserError):
    """A model that ONNX Runtime and OpenVINO cannot run in any precision."""


@dataclass
class NetworkOutput(ModelOutput):
    """Outputs of a network in float32, those of `OUTPUTS` that the model has."""

    logits: torch.Tensor | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


class Network(nn.Module):
    """Model whose forward pass runs in another runtime or precision. Inputs and outputs are float32.

    Args:
        model: the model, which has the config and the weights.
        run: function from pixel values (B, 3, H, W) to the outputs.
        outputs: names of the outputs.
    """

    dtype = torch.float32

    def __init__(self, model, run: Run, outputs: Sequence[str]):
        super().__init__()
        self.model, self.config = model, model.config
        self.run, self.outputs = run, tuple(outputs)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def name_or_path(self) -> str:
        return self.model.name_or_path

    def num_parameters(self) -> int:
        return self.model.num_parameters()

    def forward(self, pixel_values: torch.Tensor) -> NetworkOutput:
        return NetworkOutput(**dict(zip(self.outputs, self.run(pixel_values), strict=True)))


class _Tensors(nn.Module):
    """Model that returns a tuple of tensors, for the export."""

    def __init__(self, model, outputs: Sequence[str]):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(pixel_values)
        return tuple(getattr(found, name) for name in self.outputs)


class Builder:
    """Builder of networks of one model, which is exported at most once, also if the export fails.

    As a context manager, it deletes its files.

    Args:
        model: model in float32, which is not changed. For ONNX Runtime and OpenVINO, it must be on the CPU.
        image_size: height and width of the input in pixels.
        batch_size: number of frames per forward pass of OpenVINO, which pads smaller batches and divides larger ones.
        calibration: function that returns pixel values (1, 3, H, W) for int8. They are used one at a time.
        dense: whether the feature map is needed besides the embedding.
    """

    def __init__(
        self,
        model,
        image_size: tuple[int, int],
        batch_size: int,
        calibration: Callable[[], Iterable[np.ndarray]] = list,
        dense: bool = False,
    ):
        self.model, self.image_size, self.calibration = model, image_size, calibration
        self.shape = [batch_size, 3, *image_size]
        self.groups = (*DENSE_OUTPUTS, *OUTPUTS) if dense else OUTPUTS
        self.is_phase_model = isinstance(model, SurgeNetForPhaseRecognition)
        self.network = model.surgenet if self.is_phase_model else model
        self.failure: ExportError | None = None

    def __enter__(self):
        self.folder = TemporaryDirectory(prefix="surgenet-runtime-")
        return self

    def __exit__(self, *error):
        self.folder.cleanup()

    def build(self, setting: Setting):
        """Return the model with a setting.

        Returns:
            The model itself for the default setting. Otherwise, a `Network`, or a phase model whose backbone is one.

        Raises:
            ExportError: the model cannot be exported.
            UserError: the machine does not support the setting, or there are no calibration frames.
        """
        if setting == Setting():
            return self.model
        check_machine(setting)
        if setting.runtime == "torch":
            found = _torch_network(freeze(copy.deepcopy(self.network)), setting, self.outputs)
        else:
            run = {"onnxruntime": _onnxruntime, "openvino": _openvino}[setting.runtime]
            graph = self.quantized if setting.precision == "int8" else self.graph
            found = Network(self.network, run(graph, setting, self.shape), self.outputs)
        if not self.is_phase_model:
            return found
        changed = copy.copy(self.model)
        changed._modules = dict(self.model._modules)  # the copy has its own backbone, and shares the rest
        changed.surgenet = found
        return changed

    @cached_property
    def example(self) -> torch.Tensor:
        """Input with a batch of 2, because a dynamic batch cannot be exported with a batch of 1."""
        return torch.zeros(2, 3, *self.image_size)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs that the prediction loop uses."""
        with torch.inference_mode(), evaluating(self.network):
            found = self.network(self.example.to(self.network.device))
        return next(names for names in self.groups if all(getattr(found, name, None) is not None for name in names))

    @cached_property
    def graph(self) -> Path:
        """ONNX file of the model in float32."""
        if self.failure is not None:
            raise self.failure
        logger.info("Writing the network for other runtimes, which can take a minute.")
        path = Path(self.folder.name, "model.onnx")
        network = _Tensors(freeze(copy.deepcopy(self.network), self.image_size), self.outputs).eval()
        try:
            write_onnx(network, path, [INPUT], self.outputs, (self.example,), ({0: Dim.DYNAMIC},))
        except (torch.onnx.OnnxExporterError, UserError) as error:
            reason = str(error).strip().split("\n")[0]
            self.failure = ExportError(f"the model cannot be written as an ONNX file ({reason}); use --runtime torch")
            raise self.failure from error
        return path

    @cached_property
    def quantized(self) -> Path:
        """ONNX file of the model in int8."""
        path = Path(self.folder.name, "int8.onnx")
        shutil.copyfile(self.graph, path)
        logger.info("Quantizing the network to int8, which can take minutes.")
        quantize_onnx(path, ({INPUT: pixels} for pixels in self.calibration()))
        return path


def _torch_network(model, setting: Setting, outputs: Sequence[str]) -> Network:
    dtype = DTYPES[setting.precision]
    model = model.to(dtype)
    forward = torch.compile(model) if setting.compile else model

    def run(pixel_values: torch.Tensor) -> list[torch.Tensor]:
        found = forward(pixel_values.to(dtype))
        return [getattr(found, name).float() for name in outputs]

    return Network(model, run, outputs)


def _onnxruntime(path: Path, setting: Setting, shape: list[int]) -> Run:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # 1 under torchrun, otherwise all cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {INPUT: pixel_values.numpy()})]

    return run


def _openvino(path: Path, setting: Setting, shape: list[int]) -> Run:
    openvino = import_openvino()
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        "INFERENCE_PRECISION_HINT": OPENVINO_HINTS[setting.precision],  # the default is bf16 on some processors
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # several processes would be bound to the same cores
    }
    core = openvino.Core()
    network = core.read_model(path)
    network.reshape(shape)  # OpenVINO 2026.4 computes some int8 networks wrongly with a dynamic batch
    request = core.compile_model(network, "CPU", options).create_infer_request()

    def run(pixel_values: torch.Tensor) -> list[torch.Tensor]:
        parts = []
        for part in pixel_values.split(shape[0]):
            padded = torch.zeros(shape)
            padded[: len(part)] = part
            request.infer([padded.numpy()])
            parts.append([torch.from_numpy(tensor.data[: len(part)].copy()) for tensor in request.output_tensors])
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    return run
