"""How fast pretraining is, and against the original loop: everything by turns in one run, so that ratios hold.

The original is facebookresearch/dino, in a checkout that the user has (`original_loop`). Its network is that of a
checkout of TimJaspers0801/SurgeNet, or else ours.
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
from PIL import Image

from ..checkpoints.catalog import NORMALIZATIONS
from ..configuration_surgenet import BACKBONES
from ..data.sets import synthetic
from ..fast_gradients import speed_up
from ..modeling_surgenet import SurgeNetModel
from ..models import resolve_model
from ..rng import rng_for
from .dino.method import DinoConfig, DinoModel, build_optimizer, build_schedules, compute_loss, training_step
from .frames.crops import CropConfig, crop_frame, draw_crops, normalize
from .frames.device_crops import crop_batch
from .frames.loader import Feed
from .frames.ordering import collate, unpack_images
from .frames.sources import FrameArguments
from .original_loop import OriginalLoop, original_modules, single_process

PARTS = ("decode", "crops", "forward_backward", "step", "end_to_end")
PREFETCH = 2  # batches that each worker of a DataLoader has begun or holds ready


@dataclass
class BenchmarkArguments:
    """What is measured."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Of {', '.join(PARTS)}."})
    backbone: str = field(default="caformer_s18", metadata={"help": "Network.", "choices": [*BACKBONES, "tiny"]})
    batch_size: int = field(default=4, metadata={"help": "Frames in a step."})
    rounds: int = field(default=5, metadata={"help": "Turns of each candidate; end to end with workers: 2, longer."})
    out_dim: int = field(default=65_536, metadata={"help": "Prototypes of the head."})
    frame_size: list[int] = field(default_factory=lambda: [1280, 720], metadata={"help": "Width and height."})
    data_dir: str | None = field(default=None, metadata={"help": "JPEG frames; left out: synthetic scenes."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "For the end to end part."})
    torch_compile: bool = field(default=False, metadata={"help": "Measure ours compiled, too."})
    channels_last: bool = field(default=False, metadata={"help": "Measure ours in this memory format, too."})
    dino_repo: str | None = field(default=None, metadata={"help": "A checkout of facebookresearch/dino."})
    surgenet_repo: str | None = field(default=None, metadata={"help": "A checkout of TimJaspers0801/SurgeNet."})

    def __post_init__(self):
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
        if self.surgenet_repo and not self.dino_repo:
            raise ValueError("--surgenet_repo is for the original loop only: give --dino_repo, too")
        if self.surgenet_repo and self.backbone != "caformer_s18":
            raise ValueError("the original's network is compared for caformer_s18 only: leave out --surgenet_repo")
        for name, module in (("dino_repo", "main_dino.py"), ("surgenet_repo", "metaformer.py")):
            folder = getattr(self, name)
            if folder and not Path(folder, module).is_file():
                raise FileNotFoundError(f"--{name} {folder} holds no {module}: give the folder of a checkout")


Candidates = dict[str, Callable[[], None]]


def run_benchmark(args: BenchmarkArguments, crop_config: CropConfig) -> dict[str, dict[str, float]]:
    """Measure and print; the median seconds a frame of each candidate of each part."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, batches of {args.batch_size}")
    results = {}
    torch.backends.cudnn.benchmark = True  # as both loops have it
    with (
        tempfile.TemporaryDirectory() as temporary,
        single_process(device),
        original_modules(args.dino_repo, args.surgenet_repo) as modules,
    ):
        original = OriginalLoop(modules, args.backbone, args.out_dim, crop_config, device) if modules else None
        bench = Benchmark(args, crop_config, device, original, _frames(args, Path(temporary)))
        for part in args.parts:
            if part == "end_to_end":
                results[part] = bench.end_to_end()
            else:
                results[part] = take_turns(getattr(bench, part)(), args.rounds, args.batch_size, bench.wait)
            print(table(part, results[part]), flush=True)
    if device.type != "cpu" and {"step", "end_to_end"} <= results.keys():
        print(busy_shares(results["step"], results["end_to_end"]))
    return results


def take_turns(
    candidates: Candidates, rounds: int, frames: int, wait: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median seconds a frame of each; every candidate has its turn in each round, so that all meet the same noise.

    Args:
        rounds: that count, after one that does not.
        frames: on which a candidate works in a turn.
        wait: for the device, at the end of a turn.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            wait()
            if turn:
                times[name].append((time.perf_counter() - start) / frames)
    return {name: statistics.median(values) for name, values in times.items()}


def table(part: str, seconds: dict[str, float]) -> str:
    """Milliseconds a frame, frames per second, and the speed relative to the first row."""
    first = next(iter(seconds.values()))
    width = max(map(len, seconds))
    lines = [f"\n{part.replace('_', ' ')}: {'ms a frame':>{width + 12 - len(part)}}   frames/s   speed"]
    lines += [f"{name:<{width}} {1e3 * s:13.2f} {1 / s:10.1f} {first / s:7.2f}" for name, s in seconds.items()]
    return "\n".join(lines)


def busy_shares(step: dict[str, float], end_to_end: dict[str, float]) -> str:
    """For how much of the time from the files on the device is in the step; what crops take on it comes on top."""
    shares = [f"{name} {step[name] / seconds:.0%}" for name, seconds in end_to_end.items()]
    return f"\nDevice busy with the step, of the time end to end: {'; '.join(shares)}"


class Benchmark:
    """Candidates for each part but the last. Each is called once a turn, and works on one batch.

    Args:
        original: to compare with; None: there is no checkout.
        paths: of JPEG frames, at least a batch.
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
        self.frames_per_loader = (6 * self.ahead + 2) * args.batch_size  # it does not end within a turn

    def wait(self) -> None:
        """For the device to end what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def decode(self) -> Candidates:
        """A batch of JPEGs, in full and as far as the crops need."""
        feed = self._feed(on_device=True)

        def in_full():
            for content in self.contents:
                np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

        return {"in full (original)": in_full, "reduced, with draws": lambda: self._samples(feed)}

    def crops(self) -> Candidates:
        """The crops of a batch of decoded frames."""
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in self.contents]

        def in_workers():
            self.turn += 1
            for i, image in enumerate(images):
                crops = draw_crops(image.size, self.crop_config, rng_for(0, self.turn, i))
                crop_frame(image, crops, self.crop_config)

        candidates = {"workers": in_workers}
        if self.original:
            transform = self.original.transform()
            candidates = {"original": lambda: [transform(image) for image in images], **candidates}
        batch = self._samples(self._feed(on_device=True))
        pixels = batch["pixels"].to(self.device)
        candidates[f"batched on {self.device.type}"] = lambda: crop_batch(
            unpack_images(pixels, batch["sizes"]), batch["crops"], self.crop_config
        )
        return candidates

    def forward_backward(self) -> Candidates:
        """Loss and gradients of ours, without the optimiser."""
        crops = self._random_crops()

        def of(half: bool):
            model = self._model(half)

            def run():
                with self._autocast(half):
                    loss = compute_loss(model, crops, 0.04).loss
                loss.backward()
                model.zero_grad(set_to_none=True)

            return run

        return {"float32": of(False), "bf16 autocast": of(True)}

    def step(self) -> Candidates:
        """A whole step on crops that are there."""
        crops = self._random_crops()
        steps = self._all_steps()
        return {name: lambda step=step: step(crops) for name, step in steps.items()}

    def end_to_end(self) -> dict[str, float]:
        """Median seconds a frame from JPEG files through workers and crops to the end of the step.

        The workers of a candidate live in its turns only: else they would load ahead in those of others, who would pay
        for it. First the batches pass that they may have ready while the first step takes long, then four times as
        many are timed; so at most a quarter of what is timed was loaded before, and none where loading is what bounds.
        """
        steps, times = self._all_steps(), {}
        for step in steps.values():
            step(self._random_crops())  # what the first one allocates and compiles gives workers no head start
        for _ in range(min(self.args.rounds, 2) if self.ahead else self.args.rounds):
            for name, step in steps.items():
                with closing(self._batches("original" in name)) as batches:
                    for _ in range(self.ahead + 1):
                        step(next(batches))
                    self.wait()
                    start, timed = time.perf_counter(), max(1, 4 * self.ahead)
                    for _ in range(timed):
                        step(next(batches))
                    self.wait()
                    seconds = time.perf_counter() - start
                    times.setdefault(name, []).append(seconds / timed / self.args.batch_size)
        return {name: statistics.median(values) for name, values in times.items()}

    def _all_steps(self) -> dict[str, Callable]:
        steps = {}
        if self.original:
            steps |= {"original, float32": self.original.step(False), "original, autocast": self.original.step(True)}
        steps |= {"ours, float32": self._our_step(False), "ours, bf16": self._our_step(True)}
        if self.args.channels_last:
            steps["ours, bf16, channels last"] = self._our_step(True, channels_last=True)
        if self.args.torch_compile:
            steps["ours, bf16, compiled"] = self._our_step(True, compiled=True)
        return steps

    def _model(self, half: bool) -> DinoModel:
        torch.manual_seed(0)
        backbone = SurgeNetModel(resolve_model(None, self.args.backbone))
        model = DinoModel(backbone, DinoConfig(out_dim=self.args.out_dim)).to(self.device)
        if self.device.type == "cpu":
            speed_up(model, half)
        return model

    def _autocast(self, half: bool):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _our_step(self, half: bool, channels_last: bool = False, compiled: bool = False) -> Callable:
        model = self._model(half)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        if compiled:
            model.student.backbone.compile(dynamic=False)
            model.teacher.backbone.compile(dynamic=False)
        optimizer = build_optimizer(model.student)
        schedules = build_schedules(model.config, 1000, self.args.batch_size)

        def step(crops: list[torch.Tensor]):
            if channels_last:
                crops = [crop.contiguous(memory_format=torch.channels_last) for crop in crops]
            autocast = lambda: self._autocast(half)  # noqa: E731
            training_step(model, optimizer, schedules, [crops], 5000, autocast=autocast)

        return step

    def _random_crops(self) -> list[torch.Tensor]:
        sizes, batch = self.crop_config.sizes, self.args.batch_size
        return [torch.randn(batch, 3, size, size, device=self.device) for size in sizes]

    def _feed(self, on_device: bool) -> Feed:
        args = FrameArguments(dataset=["folder"], data_dir=[str(self.paths[0].parent)])
        args.frames_per_epoch = self.frames_per_loader
        return Feed(args, self.crop_config, 0, self.args.batch_size, on_device=on_device)

    def _samples(self, feed: Feed) -> dict:
        self.turn += 1
        return collate([feed.dataset[(self.turn, i, i)] for i in range(self.args.batch_size)])

    def _batches(self, original: bool) -> Iterator[list[torch.Tensor]]:
        workers = self.args.dataloader_num_workers
        if original:
            yield from self.original.batches(self.paths, self.frames_per_loader, self.args.batch_size, workers)
            return
        on_device = self.device.type != "cpu"
        mean, std = (torch.tensor(x, device=self.device) for x in NORMALIZATIONS["surgenet"])
        feed = self._feed(on_device)
        for _, batch in feed.steps(0, feed.steps_per_epoch, workers, pin_memory=self.device.type == "cuda"):
            if on_device:
                images = unpack_images(batch["pixels"].to(self.device, non_blocking=True), batch["sizes"])
                crops = crop_batch(images, batch["crops"], self.crop_config)
            else:
                crops = batch["crops"]
            yield normalize(crops, mean, std)


def _frames(args: BenchmarkArguments, folder: Path) -> list[Path]:
    """JPEG frames: the user's, or synthetic scenes drawn to `folder`; at least a batch."""
    if args.data_dir:
        paths = sorted(Path(args.data_dir).glob("*.jpg"))
        if len(paths) < args.batch_size:
            raise ValueError(f"{args.data_dir} holds {len(paths)} *.jpg, a batch has {args.batch_size}")
        return paths
    width, height = args.frame_size
    drawn = [synthetic.encode_image(synthetic.draw(0, i, 0, (height, width))[0], "JPEG", quality=90) for i in range(8)]
    paths = [folder / f"{i:04}.jpg" for i in range(max(args.batch_size, 64))]
    for i, path in enumerate(paths):
        path.write_bytes(drawn[i % len(drawn)])
    return paths
