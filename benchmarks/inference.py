"""Measure prediction on this machine: forward passes in all runtimes and precisions, loading, memory, and end to end.

python benchmarks/inference.py --output_dir outputs/inference
python benchmarks/inference.py --surgenet_repo SurgeNet --frames endoscapes/val --output_dir outputs/inference

The candidates of a table take turns in one process, so that noise affects them equally. A speed is the median of the
ratios of a round, and its range is that of the middle half of the rounds. Weights are random unless a model is given.
Other libraries are measured if they are installed (segmentation_models_pytorch) or given (`--surgenet_repo`, a
checkout of TimJaspers0801/SurgeNet).
"""

import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference_jobs import FRAME_SIZE, measure_folder, measure_processes, measure_video
from inference_networks import (
    BACKBONE,
    REFERENCE,
    TASKS,
    candidate_names,
    device,
    make_builder,
    make_candidate,
    make_processor,
    original_model,
    parse_size,
    summarize,
    take_turns,
)
from inference_tables import write_tables
from PIL import Image

from surgenet_hf import SurgeNetForImageClassification, SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.cli.arguments import ArgumentParser, command
from surgenet_hf.data.images import read_frame
from surgenet_hf.data.sets import synthetic
from surgenet_hf.errors import MissingFileError, UserError
from surgenet_hf.models import resolve_model

PATHS = ("output_dir", "frames", "model_name_or_path", "surgenet_repo")  # recorded as whether they were given
CALIBRATION = 16  # frames for int8, whose ranges take minutes to compute at large sizes
PARTS = ("forward", "loading", "memory", "video", "folder", "processes")


@dataclass
class InferenceArguments:
    """What is measured."""

    output_dir: str = field(metadata={"help": "Folder for results.json, results.md, and results.png."})
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Parts: {', '.join(PARTS)}."})
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": "Tasks of the forward passes."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32], metadata={"help": "Numbers of images."})
    sizes: list[str] = field(
        default_factory=lambda: ["224x224", "256x448", "480x854"],
        metadata={"help": "HEIGHTxWIDTH of the network's input."},
    )
    max_megapixels: float = field(
        default=float("inf"), metadata={"help": "Largest size of a batch in megapixels; others are omitted."}
    )
    rounds: int = field(default=20, metadata={"help": "Maximum number of rounds of a table."})
    seconds: float = field(default=60, metadata={"help": "Time per table, after which 3 rounds suffice."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Segmentation model with this architecture. Default: random weights."}
    )
    frames: str | None = field(default=None, metadata={"help": "Folder of frames. Default: synthetic frames."})
    num_frames: int = field(default=64, metadata={"help": "Number of frames of the measurements end to end."})
    num_labels: int = field(default=7, metadata={"help": "Number of classes of models with random weights."})
    surgenet_repo: str | None = field(default=None, metadata={"help": "Checkout of TimJaspers0801/SurgeNet."})

    def __post_init__(self):
        if self.surgenet_repo and not Path(self.surgenet_repo, "metaformer.py").is_file():
            raise MissingFileError(
                f"--surgenet_repo {self.surgenet_repo} contains no metaformer.py: give the folder of a checkout"
            )
        if unknown := set(self.parts).difference(PARTS) | set(self.tasks).difference(TASKS):
            raise UserError(
                f"unknown {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}; tasks: {', '.join(TASKS)}"
            )


@torch.inference_mode()
def measure_forward(args: InferenceArguments, images: list[Image.Image]) -> Iterator[dict]:
    """Measure the forward passes of all candidates, and how far ours agree with the reference."""
    for task in args.tasks:
        for size in args.sizes:
            processor = make_processor(size)
            pixels = processor(images, return_tensors="pt").pixel_values
            samples = list(pixels.split(1))[:CALIBRATION]
            with make_builder(args, task, parse_size(size), samples) as builder:
                height, width = parse_size(size)
                for batch in (each for each in args.batch_sizes if each * height * width <= 1e6 * args.max_megapixels):
                    yield from measure_batch(args, task, size, pixels, batch, builder)


def measure_batch(args: InferenceArguments, task: str, size: str, pixels, batch: int, builder) -> Iterator[dict]:
    """Measure the forward passes of all candidates for one batch size."""
    names = candidate_names(args, task)
    networks = {name: make_candidate(args, task, name, batch, builder) for name in names}
    given = pixels[torch.arange(batch) % len(pixels)].to(device())
    agreement = agreements(networks, given)
    runs = {name: lambda network=network: network(given) for name, network in networks.items()}
    common = {"part": "forward", "task": task, "size": size, "batch": batch}
    for row in summarize(take_turns(runs, args.rounds, args.seconds), REFERENCE, batch):
        yield {**common, **row, "agreement": agreement.get(row["candidate"])}


def agreements(networks: dict[str, Callable], pixels: torch.Tensor) -> dict[str, float]:
    """Return the share of pixels or images with the same class as in the reference, for our candidates."""
    expected = networks[REFERENCE](pixels).argmax(1)
    ours = {name: network for name, network in networks.items() if name.startswith("ours")}
    return {name: (network(pixels).argmax(1) == expected).float().mean().item() for name, network in ours.items()}


def measure_loading(args: InferenceArguments, folder: Path) -> Iterator[dict]:
    """Measure loading of a backbone from a file, with a new head."""
    ours, weights = folder / "backbone", folder / "backbone.pth"
    backbone = SurgeNetModel(resolve_model(None, BACKBONE))
    backbone.save_pretrained(ours)
    for task, model_class in zip(
        TASKS, (SurgeNetForSemanticSegmentation, SurgeNetForImageClassification), strict=True
    ):
        runs: dict[str, Callable] = {"ours": lambda model_class=model_class: model_class.from_pretrained(ours)}
        if args.surgenet_repo:
            torch.save(original_model(args, "classification").state_dict(), weights)
            os.environ["TORCH_HOME"] = str(folder / "hub")  # where the original code copies the file at first
            runs = {"original": lambda task=task: original_model(args, task, weights), **runs}
        times = take_turns(runs, args.rounds, args.seconds)
        for row in summarize(times, next(iter(runs)), 1):
            yield {"part": "loading", "task": task, **row}


def peak_memory(args: InferenceArguments, task: str, name: str, size: tuple[int, int], batch: int) -> float:
    """Return the peak memory of this process in MiB, after three forward passes of a candidate."""
    with torch.inference_mode():
        network = make_candidate(args, task, name, batch, make_builder(args, task, size, []))
        for _ in range(3):
            network(torch.randn(batch, 3, *size, device=device()))
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage would include the memory of the parent process
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def measure_memory(args: InferenceArguments) -> Iterator[dict]:
    """Measure the peak memory of each candidate in PyTorch in its own process, at the middle size.

    Other runtimes are omitted, because the export to ONNX in the same process would dominate.
    """
    size = args.sizes[len(args.sizes) // 2]
    task = args.tasks[0]
    for batch in args.batch_sizes[:2]:
        for name in (name for name in candidate_names(args, task) if ", torch " in name):
            with get_context("spawn").Pool(1) as pool:
                found = pool.apply(peak_memory, (args, task, name, parse_size(size), batch))
            yield {"part": "memory", "task": task, "size": size, "batch": batch, "candidate": name, "mib": found}


def machine() -> dict[str, Any]:
    """Return what the figures depend on, without the name of the machine."""
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    packages = ("torch", "transformers", "timm", "onnxruntime", "openvino", "nncf", "segmentation_models_pytorch")
    versions = {name: version(name) for name in packages if find_spec(name)}
    name = torch.cuda.get_device_name() if device().type == "cuda" else f"{model}, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    } | versions


def load_images(args: InferenceArguments) -> list[Image.Image]:
    if not args.frames:
        return [Image.fromarray(synthetic.draw(0, i, 0, FRAME_SIZE)[0]) for i in range(32)]
    paths = sorted(path for path in Path(args.frames).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    if not paths:
        raise MissingFileError(f"--frames {args.frames} contains no .jpg or .png files")
    return [read_frame(paths[i]) for i in np.linspace(0, len(paths) - 1, 32).astype(int)]


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    (args,) = ArgumentParser(InferenceArguments, description=__doc__).parse_args_into_dataclasses(argv)
    images = load_images(args)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "machine": machine(),
        "arguments": {**{name: bool(value) if name in PATHS else value for name, value in vars(args).items()}},
    }
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measurements = {
            "forward": lambda: measure_forward(args, images),
            "loading": lambda: measure_loading(args, folder),
            "memory": lambda: measure_memory(args),
            "video": lambda: measure_video(args, images, folder, rows),
            "folder": lambda: measure_folder(args, images, folder),
            "processes": lambda: measure_processes(args, images, folder),
        }
        for part in args.parts:
            for row in measurements[part]():
                rows.append(row)
                print(json.dumps(row), flush=True)
                (output_dir / "results.json").write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
    write_tables(record | {"rows": rows}, output_dir)
    print(f"Written to {output_dir}: results.json, results.md, results.png")


if __name__ == "__main__":
    main()
