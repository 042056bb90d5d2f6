"""Measure the forward pass of a backbone and of its FPN segmentation model on this machine.

python benchmarks/forward.py --batch_sizes 1 8
python benchmarks/forward.py --batch_sizes 1 8 64 --torch_compile --surgenet_repo SurgeNet

All candidates are measured alternately in one process, so that noise affects them equally. The weights are random. The
references are timm's backbone of the same architecture and, with `--surgenet_repo`, a checkout of
TimJaspers0801/SurgeNet, its backbone and its segmentation model.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import nn

from surgenet_hf import SurgeNetForSemanticSegmentation
from surgenet_hf.cli.arguments import ArgumentParser, command
from surgenet_hf.errors import MissingFileError
from surgenet_hf.modeling_surgenet import SurgeNetEncoder
from surgenet_hf.models import resolve_model

BACKBONE = "caformer_s18"  # the only architecture that timm and the original code have, too


@dataclass
class ForwardArguments:
    """Sizes of the measurement."""

    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "Numbers of images."})
    image_size: int = field(default=256, metadata={"help": "Height and width of the images, in pixels."})
    num_labels: int = field(default=8, metadata={"help": "Number of classes of the segmentation models."})
    rounds: int = field(default=10, metadata={"help": "Number of rounds; the median counts."})
    torch_compile: bool = field(default=False, metadata={"help": "Whether to also measure compiled networks."})
    surgenet_repo: str | None = field(default=None, metadata={"help": "Checkout of TimJaspers0801/SurgeNet."})

    def __post_init__(self):
        if self.surgenet_repo and not Path(self.surgenet_repo, "metaformer.py").is_file():
            raise MissingFileError(
                f"--surgenet_repo {self.surgenet_repo} contains no metaformer.py: give the folder of a checkout"
            )


class Logits(nn.Module):
    """Our segmentation model as a network from pixels to logits."""

    def __init__(self, model: SurgeNetForSemanticSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def networks(args: ForwardArguments) -> dict[str, dict[str, nn.Module]]:
    """Return the networks of each part by name; the first of a part is its reference."""
    config = resolve_model(None, BACKBONE)
    config.num_labels = args.num_labels
    parts = {
        "backbone": {"timm": timm.create_model(BACKBONE, features_only=True), "ours": SurgeNetEncoder(config)},
        "segmentation": {"ours": Logits(SurgeNetForSemanticSegmentation(config))},
    }
    if args.surgenet_repo:
        sys.path.insert(0, args.surgenet_repo)
        model = importlib.import_module("metaformer").MetaFormerFPN(num_classes=args.num_labels)
        sys.path.remove(args.surgenet_repo)
        backbone = _Features(model.metaformer)
        parts["backbone"]["original"] = backbone
        parts["segmentation"] = {"original": model, **parts["segmentation"]}
    return parts


class _Features(nn.Module):
    def __init__(self, metaformer: nn.Module):
        super().__init__()
        self.metaformer = metaformer

    def forward(self, pixel_values: torch.Tensor):
        return self.metaformer.forward_features(pixel_values)


def precisions(device: torch.device) -> dict[str, tuple[torch.dtype, bool, torch.memory_format]]:
    """Return data type, TensorFloat-32, and memory format of each mode."""
    contiguous = torch.contiguous_format
    modes = {"float32": (torch.float32, False, contiguous), "bf16": (torch.bfloat16, False, contiguous)}
    if device.type == "cuda":
        modes["float32, TF32"] = (torch.float32, True, contiguous)
        modes["bf16, channels last"] = (torch.bfloat16, False, torch.channels_last)
    return modes


def take_turns(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each candidate. Every candidate runs in each round, after warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-3, rounds):
        for name, run in candidates.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@torch.inference_mode()
def measure(
    models: dict[str, nn.Module], pixels: torch.Tensor, args: ForwardArguments, mode: tuple
) -> dict[str, float]:
    """Return the median seconds of a forward pass of each network in one mode."""
    dtype, tf32, layout = mode
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    pixels = pixels.to(dtype).contiguous(memory_format=layout)
    candidates = {}
    for name, model in models.items():
        model.to(dtype).to(memory_format=layout)
        candidates[name] = lambda model=model: model(pixels)
        if args.torch_compile and name == "ours":
            compiled = torch.compile(model, dynamic=False)
            candidates["ours, compiled"] = lambda compiled=compiled: compiled(pixels)
    return take_turns(candidates, args.rounds)


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    (args,) = ArgumentParser(ForwardArguments, description=__doc__).parse_args_into_dataclasses(argv)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, {BACKBONE}, {args.image_size} pixels")
    torch.backends.cudnn.benchmark = True
    for part, models in networks(args).items():
        for model in models.values():
            model.to(device).eval()
        print(f"\n{part:<12} {'mode':<20} {'images':>6}  {'network':<15} {'ms':>8} {'images/s':>9} {'speed':>6}")
        for size in args.batch_sizes:
            pixels = torch.randn(size, 3, args.image_size, args.image_size, device=device)
            for mode, settings in precisions(device).items():
                seconds = measure(models, pixels, args, settings)
                first = next(iter(seconds.values()))
                for network, s in seconds.items():
                    print(
                        f"{'':<12} {mode:<20} {size:>6}  {network:<15} {1e3 * s:>8.2f} {size / s:>9.1f} "
                        f"{first / s:>6.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
