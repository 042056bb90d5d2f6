"""Networks that `inference.py` measures, and their timing."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from surgenet_hf import SurgeNetForImageClassification, SurgeNetForSemanticSegmentation
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference.runtimes import Builder
from surgenet_hf.inference.settings import RuntimeArguments, Setting, candidates
from surgenet_hf.models import resolve_model

BACKBONE = "caformer_s18"  # the only architecture that timm and the original code have, too
TASKS = ("segmentation", "classification")
REFERENCE = "ours, torch float32"


class Output(nn.Module):
    """Model of transformers as a network from pixels to one tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


def parse_size(size: str) -> tuple[int, int]:
    height, width = size.split("x")
    return int(height), int(width)


def make_processor(size: str):
    processor = build_image_processor()
    processor.size = dict(zip(("height", "width"), parse_size(size), strict=True))
    return processor


def device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def our_model(args, task: str):
    """Return our model of a task in float32."""
    torch.manual_seed(0)
    if args.model_name_or_path and task == "segmentation":
        return SurgeNetForSemanticSegmentation.from_pretrained(resolve_model(args.model_name_or_path)).eval()
    config = resolve_model(None, BACKBONE)
    config.num_labels = args.num_labels
    model_class = SurgeNetForSemanticSegmentation if task == "segmentation" else SurgeNetForImageClassification
    return model_class(config).eval()


def original_model(args, task: str, weights: Path | None = None) -> nn.Module:
    """Return the original network of a task, with random weights or with those of a backbone's file."""
    assert args.surgenet_repo
    sys.path.insert(0, args.surgenet_repo)
    module = importlib.import_module("metaformer")
    sys.path.remove(args.surgenet_repo)
    build_network = module.MetaFormerFPN if task == "segmentation" else module.caformer_s18
    with redirect_stdout(sys.stderr):  # the original code prints
        return build_network(
            num_classes=args.num_labels,
            pretrained="SurgeNet",
            pretrained_weights=weights.as_uri() if weights else None,
        ).eval()


def other_models(args, task: str) -> dict[str, Callable[[], nn.Module]]:
    """Return the functions that build the networks of other libraries for a task."""
    found: dict[str, Callable[[], nn.Module]] = {}
    if task == "classification":
        found["timm"] = lambda: timm.create_model(BACKBONE, num_classes=args.num_labels).eval()
    elif find_spec("segmentation_models_pytorch"):
        smp = importlib.import_module("segmentation_models_pytorch")
        found["smp"] = lambda: smp.FPN(f"tu-{BACKBONE}", encoder_weights=None, classes=args.num_labels).eval()
    if args.surgenet_repo:
        found["original"] = lambda: original_model(args, task)
    return found


def settings() -> list[Setting]:
    """Return the runtimes and precisions that this machine supports, and PyTorch with compilation on a GPU."""
    on_cpu = device().type == "cpu"
    return candidates(RuntimeArguments(calibration=["frames"], compile=not on_cpu), on_cpu)


def candidate_names(args, task: str) -> list[str]:
    """Return the names of the candidates for a forward pass; `REFERENCE` is the first."""
    ours = [f"ours, {setting}" for setting in settings()]
    others = [f"{name}, torch {mode}" for name in other_models(args, task) for mode in ("float32", "bf16")]
    best = ["original, torch bf16 channels_last"] if args.surgenet_repo else []
    return ours + others + best


def make_builder(args, task: str, size: tuple[int, int], samples: list[torch.Tensor]) -> Builder:
    """Return the builder of our networks of a task. It is a context manager, which deletes its files at the end."""
    return Builder(our_model(args, task).to(device()), size, 1, lambda: [sample.numpy() for sample in samples])


def make_candidate(args, task: str, name: str, batch: int, builder: Builder) -> Callable[[torch.Tensor], Any]:
    """Return the function of a candidate, from pixel values float32 (B, 3, H, W) on the device to its output.

    Args:
        args: arguments.
        task: task.
        name: name of the candidate.
        batch: number of images, which OpenVINO needs in advance.
        builder: builder of our networks.
    """
    library, mode = name.split(", ", 1)
    if library == "ours":
        setting = next(each for each in settings() if str(each) == mode)
        builder.shape[0] = batch
        network = builder.build(setting)
        return lambda pixels: network(pixel_values=pixels).logits
    network = other_models(args, task)[library]().to(device())
    dtype = torch.bfloat16 if "bf16" in mode else torch.float32
    layout = torch.channels_last if "channels_last" in mode else torch.contiguous_format
    network.to(dtype)
    return lambda pixels: network(pixels.to(dtype, memory_format=layout))


def take_turns(runs: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of each candidate in each round, after a warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for turn in range(-1, rounds):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
        if turn >= 2 and time.perf_counter() - begin > seconds:
            break
    return times


def synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def summarize(times: dict[str, list[float]], reference: str, images: int | dict[str, int]) -> Iterator[dict]:
    """Yield the figures of each candidate: milliseconds, images per second, and speed relative to the reference.

    Args:
        times: seconds of each round, by candidate.
        reference: candidate that the others are compared with.
        images: number of images, or that of each candidate.
    """
    counts = images if isinstance(images, dict) else dict.fromkeys(times, images)
    for name, found in times.items():
        ratios = np.array(times[reference]) / np.array(found) * counts[name] / counts[reference]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        p50, p95, p99 = 1e3 * np.percentile(found, [50, 95, 99])
        yield {
            "candidate": name,
            "rounds": len(found),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "images_per_second": 1e3 * counts[name] / p50,
            "speed": middle,
            "speed_low": low,
            "speed_high": high,
        }
