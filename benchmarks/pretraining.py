"""Measure the speed of DINO pretraining on this machine, part by part, and compare it with the original code.

python benchmarks/pretraining.py --batch_size 4
python benchmarks/pretraining.py --batch_size 64 --dataloader_num_workers 16 --channels_last --torch_compile \\
    --dino_repo dino --surgenet_repo SurgeNet

All candidates are measured alternately in one process, so that noise affects them equally. The original code is a
checkout of facebookresearch/dino, see `original_dino`. Its network is that of a checkout of TimJaspers0801/SurgeNet,
or else ours.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from original_dino import OriginalLoop, original_modules, single_process
from PIL import Image

from surgenet_hf.checkpoints.catalog import NORMALIZATIONS
from surgenet_hf.cli.arguments import ArgumentParser, command
from surgenet_hf.configuration_surgenet import BACKBONES
from surgenet_hf.data.sets import synthetic
from surgenet_hf.errors import MissingFileError, UserError
from surgenet_hf.pretraining.arguments import CropConfig, DinoConfig, FrameArguments, PretrainingArguments
from surgenet_hf.pretraining.dino.method import build_optimizer, build_schedules, training_step
from surgenet_hf.pretraining.frames.crops import crop_frame, draw_crops
from surgenet_hf.pretraining.frames.device_crops import crop_batch
from surgenet_hf.pretraining.frames.loader import PretrainingLoader, split_batch
from surgenet_hf.pretraining.frames.ordering import collate, unpack_images
from surgenet_hf.pretraining.start import build_model
from surgenet_hf.rng import rng_for

PARTS = ("decode", "crops", "step", "end_to_end")
PREFETCH = 2  # batches that each worker of a DataLoader prepares ahead

Candidates = dict[str, Callable[[], None]]


@dataclass
class BenchmarkArguments:
    """Parts and sizes of the measurement."""

    parts: list[str] = field(
        default_factory=lambda: list(PARTS), metadata={"help": f"Parts to measure: {', '.join(PARTS)}."}
    )
    backbone: str = field(default="caformer_s18", metadata={"help": "Backbone.", "choices": [*BACKBONES, "tiny"]})
    batch_size: int = field(default=4, metadata={"help": "Number of frames per step."})
    rounds: int = field(default=5, metadata={"help": "Number of rounds. At most 2 for end_to_end with workers."})
    out_dim: int = field(default=65_536, metadata={"help": "Number of prototypes of the head."})
    frame_size: list[int] = field(
        default_factory=lambda: [1280, 720], metadata={"help": "Width and height of synthetic frames."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of JPEG frames. Default: synthetic scenes."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Number of workers for end_to_end."})
    torch_compile: bool = field(default=False, metadata={"help": "Whether to also measure our step compiled."})
    channels_last: bool = field(default=False, metadata={"help": "Whether to also measure our step in channels-last."})
    dino_repo: str | None = field(default=None, metadata={"help": "Checkout of facebookresearch/dino."})
    surgenet_repo: str | None = field(default=None, metadata={"help": "Checkout of TimJaspers0801/SurgeNet."})

    def __post_init__(self):
        if unknown := set(self.parts) - set(PARTS):
            raise UserError(f"unknown --parts {' '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
        if self.surgenet_repo and not (self.dino_repo and self.backbone == "caformer_s18"):
            raise UserError("--surgenet_repo needs --dino_repo and --backbone caformer_s18")
        for name, module in (("dino_repo", "main_dino.py"), ("surgenet_repo", "metaformer.py")):
            folder = getattr(self, name)
            if folder and not Path(folder, module).is_file():
                raise MissingFileError(f"--{name} {folder} contains no {module}: give the folder of a checkout")


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args, crop_config = ArgumentParser(
        (BenchmarkArguments, CropConfig), description=__doc__
    ).parse_args_into_dataclasses(argv)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, batches of {args.batch_size}")
    torch.backends.cudnn.benchmark = True  # as in both loops
    with (
        tempfile.TemporaryDirectory() as temporary,
        single_process(device),
        original_modules(args.dino_repo, args.surgenet_repo) as modules,
    ):
        original = OriginalLoop(modules, args.backbone, args.out_dim, crop_config, device) if modules else None
        benchmark = Benchmark(args, crop_config, device, original, _frames(args, Path(temporary)))
        for part in args.parts:
            print(table(part, getattr(benchmark, part)()), flush=True)


def table(part: str, seconds: dict[str, float]) -> str:
    """Format milliseconds per frame, frames per second, and the speed relative to the first row."""
    first = next(iter(seconds.values()))
    width = max(map(len, seconds))
    lines = [f"\n{part.replace('_', ' ')}: {'ms per frame':>{width + 12 - len(part)}}   frames/s   speed"]
    lines += [f"{name:<{width}} {1e3 * s:13.2f} {1 / s:10.1f} {first / s:7.2f}" for name, s in seconds.items()]
    return "\n".join(lines)


class Benchmark:
    """Parts of the measurement. Each returns the median seconds per frame of its candidates.

    Args:
        args, crop_config: arguments of the measurement and the crops.
        device: device of the steps.
        original: the original loop, or None.
        paths: paths of JPEG frames, at least one batch.
    """

    def __init__(
        self,
        args: BenchmarkArguments,
        crop_config: CropConfig,
        device: torch.device,
        original: OriginalLoop | None,
        paths: list[Path],
    ):
        self.args, self.crop_config, self.device = args, crop_config, device
        self.original, self.paths = original, paths
        self.contents = [path.read_bytes() for path in paths[: args.batch_size]]
        self.turn = 0
        self.ahead = PREFETCH * args.dataloader_num_workers
        self.frames_per_loader = (6 * self.ahead + 2) * args.batch_size  # the loader does not end within a turn

    def decode(self) -> dict[str, float]:
        """Measure decoding of a batch of JPEGs, at full size and at the scale that the crops need."""
        loader = self._loader(on_device=True)

        def in_full():
            for content in self.contents:
                np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

        return self._take_turns({"full size (original)": in_full, "reduced, with draws": lambda: self._batch(loader)})

    def crops(self) -> dict[str, float]:
        """Measure the crops of a batch of decoded frames."""
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in self.contents]

        def in_workers():
            self.turn += 1
            for i, image in enumerate(images):
                crop_frame(image, draw_crops(image.size, self.crop_config, rng_for(0, self.turn, i)), self.crop_config)

        candidates = {"workers": in_workers}
        if self.original:
            transform = self.original.transform()
            candidates = {"original": lambda: [transform(image) for image in images], **candidates}
        batch = self._batch(self._loader(on_device=True))
        pixels = batch["pixels"].to(self.device)
        candidates[f"batched on {self.device.type}"] = lambda: crop_batch(
            unpack_images(pixels, batch["sizes"]), batch["crops"], self.crop_config
        )
        return self._take_turns(candidates)

    def step(self) -> dict[str, float]:
        """Measure a whole step with crops that are already on the device."""
        crops = self._random_crops()
        return self._take_turns({name: lambda step=step: step(crops) for name, step in self.steps().items()})

    def end_to_end(self) -> dict[str, float]:
        """Measure from JPEG files through workers and crops to the end of the step.

        The workers of a candidate exist only during its turns. Otherwise they would load batches during the turns of
        others. Each turn first uses up the batches that may be ready after a long first step. It then times four times
        as many. Therefore at most a quarter of the timed batches was loaded before, and none if loading is the
        bottleneck.
        """
        steps, times = self.steps(), {}
        for step in steps.values():
            step(self._random_crops())  # otherwise workers would load batches during allocation and compilation
        for _ in range(min(self.args.rounds, 2) if self.ahead else self.args.rounds):
            for name, step in steps.items():
                with closing(self._batches("original" in name)) as batches:
                    for _ in range(self.ahead + 1):
                        step(next(batches))
                    self._wait()
                    start, timed = time.perf_counter(), max(1, 4 * self.ahead)
                    for _ in range(timed):
                        step(next(batches))
                    self._wait()
                    seconds = time.perf_counter() - start
                    times.setdefault(name, []).append(seconds / timed / self.args.batch_size)
        return {name: statistics.median(values) for name, values in times.items()}

    def steps(self) -> dict[str, Callable[[list[torch.Tensor]], None]]:
        """Return the steps to compare, as functions of the crops."""
        steps = {}
        if self.original:
            steps |= {"original, float32": self.original.step(False), "original, autocast": self.original.step(True)}
        steps |= {"ours, float32": self._our_step(), "ours, bf16": self._our_step(bf16=True)}
        if self.args.channels_last:
            steps["ours, bf16, channels last"] = self._our_step(bf16=True, channels_last=True)
        if self.args.torch_compile:
            steps["ours, bf16, compiled"] = self._our_step(bf16=True, torch_compile=True)
        if self.args.channels_last and self.args.torch_compile:
            both = {"channels_last": True, "torch_compile": True}
            steps["ours, bf16, channels last, compiled"] = self._our_step(bf16=True, **both)
        return steps

    def _our_step(self, **options) -> Callable[[list[torch.Tensor]], None]:
        args = PretrainingArguments("unused", backbone=self.args.backbone, **options)
        model = build_model(args, DinoConfig(out_dim=self.args.out_dim), self.crop_config, self.device)
        optimizer = build_optimizer(model.student)
        schedules = build_schedules(model.config, 1000, self.args.batch_size)
        layout = torch.channels_last if args.channels_last else torch.preserve_format

        def step(crops: list[torch.Tensor]):
            crops = [crop.contiguous(memory_format=layout) for crop in crops]
            training_step(
                model,
                optimizer,
                schedules,
                [crops],
                5000,
                autocast=lambda: torch.autocast(self.device.type, torch.bfloat16, enabled=args.bf16),
            )

        return step

    def _random_crops(self) -> list[torch.Tensor]:
        return [torch.randn(self.args.batch_size, 3, n, n, device=self.device) for n in self.crop_config.sizes]

    def _loader(self, on_device: bool, **options) -> PretrainingLoader:
        args = FrameArguments(["folder"], [str(self.paths[0].parent)], frames_per_epoch=self.frames_per_loader)
        return PretrainingLoader(args, self.crop_config, 0, self.args.batch_size, on_device=on_device, **options)

    def _batch(self, loader: PretrainingLoader) -> dict:
        self.turn += 1
        return collate([loader.dataset[(self.turn, i, i)] for i in range(self.args.batch_size)])

    def _batches(self, original: bool) -> Iterator[list[torch.Tensor]]:
        workers, size = self.args.dataloader_num_workers, self.args.batch_size
        if original:
            yield from self.original.batches(self.paths, self.frames_per_loader, size, workers)
            return
        mean, std = (torch.tensor(x, device=self.device) for x in NORMALIZATIONS["surgenet"])
        on_gpu = self.device.type == "cuda"
        loader = self._loader(self.device.type != "cpu", num_workers=workers, pin_memory=on_gpu)
        for _, batch in loader.steps(0, loader.steps_per_epoch):
            yield from split_batch(batch, size, self.crop_config, self.device, mean, std)

    def _take_turns(self, candidates: Candidates) -> dict[str, float]:
        """Measure every candidate in each round, after a warm-up round."""
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for turn in range(self.args.rounds + 1):
            for name, run in candidates.items():
                start = time.perf_counter()
                run()
                self._wait()
                if turn:
                    times[name].append((time.perf_counter() - start) / self.args.batch_size)
        return {name: statistics.median(values) for name, values in times.items()}

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def _frames(args: BenchmarkArguments, folder: Path) -> list[Path]:
    """Return paths of JPEG frames, at least one batch.

    They are the user's frames, or synthetic scenes that are written to `folder`.
    """
    if args.data_dir:
        paths = sorted(Path(args.data_dir).glob("*.jpg"))
        if len(paths) < args.batch_size:
            raise UserError(f"{args.data_dir} contains {len(paths)} *.jpg files, but a batch needs {args.batch_size}")
        return paths
    width, height = args.frame_size
    drawn = [synthetic.encode_image(synthetic.draw(0, i, 0, (height, width))[0], "JPEG", quality=90) for i in range(8)]
    paths = [folder / f"{i:04}.jpg" for i in range(max(args.batch_size, 64))]
    for i, path in enumerate(paths):
        path.write_bytes(drawn[i % len(drawn)])
    return paths


if __name__ == "__main__":
    main()
