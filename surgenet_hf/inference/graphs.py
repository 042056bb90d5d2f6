"""ONNX files of networks, which ONNX Runtime and OpenVINO run.

Graphs contain no loops and no conditions, and no paths of the machine that wrote them.
"""

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from .packages import import_nncf

OPSET = 18
FORBIDDEN = {"Loop", "If", "Scan", "GridSample"}  # runtimes on devices cannot run them


def freeze(model: nn.Module, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Set a model to evaluation mode without gradients, and remove what ONNX cannot express.

    Args:
        model: model, which is changed.
        image_size: height and width of its input, to which position embeddings are resized. None: any size.

    Returns:
        The model.
    """
    model = model.eval().requires_grad_(False)
    if image_size is not None:
        _resize_positions(model, image_size)
    for module in model.modules():  # ONNX cannot compare a tensor with 0 to skip the masks of EoMT
        probabilities: Any = getattr(module, "attn_mask_probs", None)
        if isinstance(probabilities, torch.Tensor):
            del module.attn_mask_probs
            module.__dict__["attn_mask_probs"] = probabilities.tolist()
    return model


def has_positions(model: nn.Module) -> bool:
    """Return whether a model has position embeddings for one size, which it resizes for others."""
    return any(_is_resizable(module) for module in model.modules())


def _is_resizable(module: nn.Module) -> bool:
    return hasattr(module, "interpolate_pos_encoding") and isinstance(
        getattr(module, "position_embeddings", None), torch.Tensor
    )


def _resize_positions(model: nn.Module, image_size: tuple[int, int]) -> None:
    """Replace the resize of position embeddings by its result, because runtimes disagree about antialiasing."""
    for module in model.modules():
        if _is_resizable(module):
            positions: Any = module.position_embeddings
            patch: Any = module.patch_embeddings.patch_size  # type: ignore[union-attr]
            patches = [side // size for side, size in zip(image_size, np.broadcast_to(patch, 2).tolist(), strict=True)]
            tokens = positions.new_zeros(1, 1 + patches[0] * patches[1], positions.shape[-1])
            with torch.no_grad():
                resized = module.interpolate_pos_encoding(tokens, *image_size)  # type: ignore[operator]
            module.__dict__["interpolate_pos_encoding"] = _Constant(resized)


class _Constant:
    """Function that returns a tensor in the data type and on the device of its first argument."""

    def __init__(self, value: torch.Tensor):
        self.value = value

    def __call__(self, like: torch.Tensor, *arguments) -> torch.Tensor:
        return self.value.to(like)


def write_onnx(
    network: nn.Module | torch.export.ExportedProgram,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    example: tuple[torch.Tensor, ...] = (),
    dynamic_shapes: Any = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a network to an ONNX file.

    Args:
        network: network whose `forward` takes and returns tensors, or its exported program.
        path: file to write.
        inputs: names of the inputs.
        outputs: names of the outputs.
        example: inputs of a network. With a dynamic batch, they need a batch of at least 2.
        dynamic_shapes: dimensions that can change, as in `torch.export.export`.
        metadata: entries of the file's metadata. Other values than strings are written as JSON.

    Raises:
        UserError: the graph contains operations that runtimes on devices cannot run.
    """
    import onnx

    exported = torch.onnx.export(
        network,
        example,
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=OPSET,
        dynamic_shapes=dynamic_shapes,
        verbose=False,
        dynamo=True,
    )
    assert exported is not None
    proto = exported.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.functions, *(n for f in proto.functions for n in f.node)):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
    if found := {node.op_type for node in proto.graph.node} & FORBIDDEN:
        raise UserError(
            f"the graph contains {', '.join(sorted(found))}, which runtimes on devices cannot run. Use another head"
        )
    if any(a.name == "antialias" and a.i for node in proto.graph.node for a in node.attribute):
        raise UserError("the graph contains a resize with antialiasing, which runtimes compute differently")
    for name, value in (metadata or {}).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    onnx.save(proto, path)


def quantize_onnx(path: Path, samples: Iterable[dict[str, np.ndarray]], exclude: Collection[str] = ()) -> int:
    """Replace an ONNX file in float32 by its static int8 version.

    Weights have 8 bits per channel, and activations 8 bits per tensor, with ranges from the samples. The file contains
    pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime, OpenVINO, and TensorRT compute in int8. Inputs,
    outputs, and metadata are unchanged.

    Args:
        path: file of `write_onnx`. It is replaced.
        samples: calibration samples, arrays by name of the input. All of them are used. They are kept in files,
            because nncf iterates over them several times.
        exclude: names of weights whose operations stay in float32.

    Returns:
        The number of samples.

    Raises:
        UserError: nncf is not installed, or there are no samples.
    """
    import onnx

    nncf = import_nncf()
    from nncf.quantization.advanced_parameters import QuantizationParameters

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would also change handlers of others
    source = onnx.load(path)
    kept = [node.name for node in source.graph.node if set(node.input) & set(exclude)]
    ranges = QuantizationParameters(per_channel=False)  # ONNX Runtime rejects ranges per channel
    with TemporaryDirectory(dir=path.parent, prefix=".calibration-", suffix=".partial") as folder:
        stored = _StoredSamples(Path(folder), samples)
        if not len(stored):
            raise UserError("int8 needs calibration frames, got none")
        quantized = nncf.quantize(
            source,
            nncf.Dataset(stored),
            preset=nncf.QuantizationPreset.MIXED,  # ranges of activations need not be symmetric
            subset_size=len(stored),
            ignored_scope=nncf.IgnoredScope(names=kept),
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_quantization_params=ranges),
        )
    onnx.save(quantized, path)
    return len(stored)


class _StoredSamples:
    """Samples in files, of which one is in memory at a time. It can be iterated several times."""

    def __init__(self, folder: Path, samples: Iterable[dict[str, np.ndarray]]):
        self.paths: list[Path] = []
        for i, sample in enumerate(samples):
            self.paths.append(folder / f"{i}.npz")
            np.savez(self.paths[-1], **sample)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for path in self.paths:
            with np.load(path) as sample:
                yield dict(sample)
