"""Export of models to ONNX, OpenVINO, and torch.export programs.

Every written file is run and compared with the model; a file that differs is not kept. Graphs contain no loops and no
conditions.
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..errors import UserError
from .deployed import RESIZE_WEIGHTS, Deployed, ExportSettings, describe, frame_input, trace
from .graphs import freeze, quantize_onnx, write_onnx
from .packages import import_onnxruntime, import_openvino
from .prediction import check_classes, is_single_label
from .settings import check_installed

# files of each format, with the names of optimum; the first one refers to the others
FORMATS = {
    "onnx": ("model.onnx",),
    "openvino": ("openvino_model.xml", "openvino_model.bin"),
    "torch": ("model.pt2",),
}
METADATA = "metadata.json"
PRECISIONS = ("float32", "fp16", "int8")
# largest difference of the outputs from the model's, relative to its largest output; int8 has no limit
DIFFERENCES = {"float32": 1e-4, "fp16": 2e-2}
RESIZED = 1e-3  # smallest such limit with a resize in the graph, whose rounding to gray levels differs at a few pixels
AGREEMENT = 0.995  # smallest share of equal classes
# of int8: largest difference of probabilities, smallest cosine similarity of embeddings
SCORES, COSINE = 0.01, 0.999
BATCH = 3  # also compared if the batch is dynamic
STRIDE = 32  # of convolutional backbones

Run = Callable[..., Sequence[torch.Tensor]]


def export_model(
    model,
    processor,
    task: str,
    output_dir: str | Path,
    format: str,
    settings: ExportSettings,
    frames: Sequence[Image.Image],
    calibration: Iterable[Image.Image] = (),
) -> dict:
    """Write a model to the files of another runtime, run them, and compare their outputs with those of the model.

    Either all files are written or none.

    Args:
        model: model in float32.
        processor: its image processor, whose mean and standard deviation the graph contains with `source_size`.
        task: see `Deployed`.
        output_dir: folder for the files of `FORMATS` and `metadata.json`.
        format: "onnx", "openvino", or "torch" for a program of `torch.export`.
        settings: what the graph contains.
        frames: RGB PIL images to compare on. For phases, consecutive frames of a video.
        calibration: RGB PIL images for int8, which are used one at a time.

    Returns:
        "file", "comparison", {runtime: result of `compare`}, and "calibration_frames", their number. An ONNX file is
        also run in OpenVINO if it is installed. With a dynamic batch, a batch of frames is compared too, and not
        reported. `metadata.json` contains "comparison" too.

    Raises:
        UserError: the settings do not fit the task, a package is not installed, or the outputs of the files differ
            from those of the model.
    """
    check_settings(model.config, task, format, settings)
    model = freeze(model, settings.image_size)
    reference = Deployed(model, processor, task, settings)
    inputs = [frame_input(frame, processor, settings) for frame in frames]
    expected = list(run_frames(_eager(reference), reference, inputs))
    half = settings.precision == "fp16" and format == "onnx"
    deployed = Deployed(copy.deepcopy(model).half(), processor, task, settings) if half else reference
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    files = FORMATS[format]
    metadata = describe(deployed) | {"file": files[0]}
    with TemporaryDirectory(dir=folder, prefix=".export-", suffix=".partial") as name:
        temporary = Path(name)
        if format == "torch":
            _write_program(deployed, temporary / files[0])
        else:
            path = temporary / FORMATS["onnx"][0]
            write_onnx(trace(deployed), path, *deployed.names(), metadata=metadata)
            if settings.precision == "int8":
                pixels = (frame_input(frame, processor, settings) for frame in calibration)
                samples = _calibration_samples(reference, pixels)
                metadata["calibration_frames"] = quantize_onnx(path, samples, RESIZE_WEIGHTS)
            if format == "openvino":
                _convert_to_openvino(path, temporary / files[0], metadata)
        comparison = {}
        for runtime, run in _runtimes(format, temporary / files[0], reference):
            single_label = _is_single_label(model.config, task)
            found = list(run_frames(run, reference, inputs))
            comparison[runtime] = compare(found, expected, task, settings, single_label, runtime)
            if settings.dynamic:
                several = (inputs * BATCH)[:BATCH]
                output, *_ = run(torch.cat(several))
                name = f"{runtime} in a batch of {BATCH}"
                compare(output.split(1), (expected * BATCH)[:BATCH], task, settings, single_label, name)
        metadata |= {"comparison": comparison, "compared_frames": len(inputs)}
        text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
        (temporary / METADATA).write_text(text, encoding="utf-8")
        _replace_files(temporary, folder, [*files, METADATA])
    return {
        "file": str(folder / files[0]),
        "comparison": comparison,
        "calibration_frames": metadata.get("calibration_frames", 0),
    }


def check_packages(format: str, precision: str) -> None:
    """Check that the packages that write, quantize, and run a format are installed.

    Raises:
        UserError: a package is missing. The message names the extra to install.
    """
    runtime = {"onnx": "onnxruntime"}.get(format, format)
    check_installed(runtime, precision == "int8", "--format torch with --precision float32")


def check_settings(config, task: str, format: str, settings: ExportSettings) -> None:
    """Check that settings fit each other and the model, and that the packages are installed.

    Raises:
        UserError: they do not, or are not.
    """
    check_packages(format, settings.precision)
    is_eomt = config.model_type.startswith("eomt")
    if settings.dynamic and (settings.source_size or task == "phases" or is_eomt):
        raise UserError("--dynamic needs the output of the image processor as input, and is not for phases and EoMT")
    if task == "segmentation" and settings.postprocess:
        check_classes(config)
    if is_eomt and settings.image_size != (config.image_size,) * 2:
        raise UserError(
            f"EoMT takes images of {config.image_size} pixels only, got {settings.image_size}; omit --image_size"
        )
    backbone: Any = getattr(config, "backbone_config", None) or config
    patch = getattr(backbone, "patch_size", None)
    smallest = patch if isinstance(patch, int) else STRIDE
    if min(settings.image_size) < smallest:
        raise UserError(
            f"--image_size must be at least {smallest}, the stride of the {backbone.model_type} backbone, got "
            f"{min(settings.image_size)}; use the size of the training"
        )
    if settings.precision != "float32" and format == "torch":
        raise UserError(
            f"--precision {settings.precision} is for --format onnx and openvino; omit it, and convert the torch "
            "program after loading"
        )


def run_frames(run: Run, deployed: Deployed, inputs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the outputs of consecutive frames. The state of phases goes from one frame to the next."""
    state: Sequence[torch.Tensor] = deployed.initial_state(1)
    for frame in inputs:
        output, *state = run(frame, *state)
        yield output


def compare(
    found: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    task: str,
    settings: ExportSettings,
    single_label: bool = True,
    runtime: str = "the file",
) -> dict[str, float]:
    """Compare outputs of a file with those of the model.

    Args:
        found: outputs of the file, one per frame.
        expected: outputs of the model.
        task: see `Deployed`.
        settings: what the graph contains.
        single_label: whether each frame has one class, so that its probabilities are a softmax.
        runtime: name of the runtime in the error.

    Returns:
        "max_difference", relative to the largest output, unless the outputs are class ids. "agreement", the share of
        equal classes, unless the outputs are embeddings. For embeddings "cosine", the smallest similarity. For
        classification and phases "score_difference", the largest difference of probabilities.

    Raises:
        UserError: they differ by more than the limits of this module.
    """
    report = {}
    is_ids = task == "segmentation" and settings.postprocess
    pairs = list(zip(found, expected, strict=True))
    if not is_ids:
        largest = max(theirs.abs().max().item() for _, theirs in pairs)
        report["max_difference"] = max((a - b).abs().max().item() for a, b in pairs) / max(largest, 1e-12)
    if task != "embeddings":
        classes = [(a, b) if is_ids else (a.argmax(1), b.argmax(1)) for a, b in pairs]
        report["agreement"] = float(np.mean([(a == b).float().mean().item() for a, b in classes]))
    else:
        report["cosine"] = min(F.cosine_similarity(a, b).min().item() for a, b in pairs)
    if task in ("classification", "phases"):
        if not settings.postprocess:
            scores = (lambda x: x.softmax(-1)) if single_label else torch.sigmoid
            pairs = [(scores(a), scores(b)) for a, b in pairs]
        report["score_difference"] = max((a - b).abs().max().item() for a, b in pairs)
    limits = _limits(task, settings)
    # NaN is outside of each limit
    if not all(report[name] <= limit if "difference" in name else report[name] >= limit for name, limit in limits):
        expectation = " and ".join(_describe_value(name, limit, True) for name, limit in limits)
        advice = {
            "float32": "Report a bug",
            "fp16": "Use --precision float32, or report a bug",
            "int8": "Use --precision fp16 or float32, or give more --frames that resemble those of the application",
        }
        if settings.dynamic and runtime.startswith("openvino"):
            advice["int8"] = (
                f"Omit --dynamic, with which OpenVINO computes some int8 networks wrongly. {advice['int8']}"
            )
        raise UserError(
            f"the exported model in {runtime} differs from the original: {describe_comparison(report)}; expected "
            f"{expectation}. Nothing was written. {advice[settings.precision]}"
        )
    return report


def describe_comparison(report: dict[str, float]) -> str:
    """Describe the result of `compare` in words."""
    return ", ".join(_describe_value(name, value) for name, value in report.items())


def _limits(task: str, settings: ExportSettings) -> list[tuple[str, float]]:
    """Return the names of results of `compare`, and their limits."""
    if settings.precision == "int8":
        return {"segmentation": [("agreement", AGREEMENT)], "embeddings": [("cosine", COSINE)]}.get(
            task, [("score_difference", SCORES)]
        )
    limits = [] if task == "embeddings" else [("agreement", AGREEMENT)]
    if task != "segmentation" or not settings.postprocess:
        limit = DIFFERENCES[settings.precision]
        limits.append(("max_difference", max(limit, RESIZED) if settings.source_size else limit))
    return limits


def _describe_value(name: str, value: float, is_limit: bool = False) -> str:
    bound = "" if not is_limit else "at most " if "difference" in name else "at least "
    return {
        "max_difference": f"largest difference {bound}{value:.1e} of the largest output",
        "agreement": f"{bound}{value:.2%} equal classes",
        "cosine": f"smallest cosine similarity {bound}{value:.4f}",
        "score_difference": f"largest difference of probabilities {bound}{value:.4f}",
    }[name]


def _is_single_label(config, task: str) -> bool:
    return task != "classification" or is_single_label(config)


def _calibration_samples(deployed: Deployed, pixels: Iterable[torch.Tensor]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of the graph for frames. The state of phases is that of a video of these frames."""
    names = deployed.names()[0]
    run = _eager(deployed)
    state: Sequence[torch.Tensor] = deployed.initial_state(1)
    for frame in pixels:
        yield {name: value.numpy() for name, value in zip(names, (frame, *state), strict=True)}
        if state:
            _, *state = run(frame, *state)


def _eager(deployed: Deployed) -> Run:
    def run(*given: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.inference_mode():
            found = deployed(*given)
        return found if isinstance(found, tuple) else (found,)

    return run


def _runtimes(format: str, path: Path, deployed: Deployed) -> Iterator[tuple[str, Run]]:
    """Yield the names of the runtimes that can run a file, and functions that run it."""
    names = deployed.names()[0]
    if format == "torch":
        with open(path, "rb") as file:
            yield "torch", _eager(torch.export.load(file).module())  # type: ignore[arg-type]
    if format == "onnx":
        yield "onnxruntime", _onnxruntime(path, names)
    if format == "openvino" or (format == "onnx" and find_spec("openvino")):
        yield "openvino", _openvino(path)


def _onnxruntime(path: Path, names: Sequence[str]) -> Run:
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*given: torch.Tensor) -> Sequence[torch.Tensor]:
        found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
        return [torch.from_numpy(value) for value in found]

    return run


def _openvino(path: Path) -> Run:
    # the default precision of some processors is bf16
    request = (
        import_openvino().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    )

    def run(*given: torch.Tensor) -> Sequence[torch.Tensor]:
        request.infer([value.numpy() for value in given])
        return [torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors]

    return run


def _convert_to_openvino(source: Path, path: Path, metadata: dict) -> None:
    """Write an ONNX file as .xml and .bin of OpenVINO, with metadata in `rt_info`."""
    openvino = import_openvino()
    model = openvino.Core().read_model(source)
    for name, value in metadata.items():
        model.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["surgenet_hf", name])
    openvino.save_model(model, path, compress_to_fp16=metadata["precision"] == "fp16")


def _write_program(deployed: Deployed, path: Path) -> None:
    """Write a program of torch.export."""
    program = trace(deployed)
    for node in program.graph.nodes:  # the paths of this machine
        node.meta.pop("stack_trace", None)
    with open(path, "wb") as file:
        torch.export.save(program, file)


def _replace_files(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files into a folder. Its old files are deleted first, so that a killed run leaves no mixture.

    Args:
        source: folder of the new files.
        folder: folder to change.
        names: names of the files. The first one refers to the others, and is deleted first and moved last.
    """
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for name in reversed(names):
        os.replace(source / name, folder / name)
