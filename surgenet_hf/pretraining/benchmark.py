"""How fast pretraining is, and against the original loop: everything by turns in one run, so that ratios hold.

The original is facebookresearch/dino, in a checkout that the user has; the parts of its loop are called here in its
order. Its network is that of a checkout of TimJaspers0801/SurgeNet, or else ours.
"""

import importlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset

from ..checkpoints.catalog import STATISTICS
from ..checkpoints.loading import find_source
from ..configuration_surgenet import BACKBONES
from ..data import synthetic
from ..data.sampling import generator
from ..modeling_surgenet import SurgeNetModel
from .augmentation import CropConfig, crop_frame, draw_crops, normalize
from .cpu import speed_up
from .device_augmentation import crop_batch
from .feed import Feed
from .frames import collate, unpack_images
from .method import DinoConfig, DinoModel, build_optimizer, build_schedules, compute_loss, training_step
from .sources import FrameArguments

PARTS = ("decode", "crops", "forward_backward", "step", "end_to_end")


@dataclass
class BenchmarkArguments:
    """What is measured."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Of {', '.join(PARTS)}."})
    backbone: str = field(default="caformer_s18", metadata={"help": "Network.", "choices": [*BACKBONES, "tiny"]})
    batch_size: int = field(default=4, metadata={"help": "Frames in a step."})
    rounds: int = field(default=5, metadata={"help": "Turns of each candidate, after one that does not count."})
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
    with tempfile.TemporaryDirectory() as temporary, _single_process(), _imports(args) as original:
        bench = Benchmark(args, crop_config, device, original, _frames(args, Path(temporary)))
        for part in args.parts:
            candidates = getattr(bench, part)()
            wait = torch.cuda.synchronize if device.type == "cuda" else None
            results[part] = take_turns(candidates, args.rounds, args.batch_size, wait)
            print(table(part, results[part]), flush=True)
    return results


def take_turns(
    candidates: Candidates, rounds: int, frames: int, wait: Callable[[], None] | None = None
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
            if wait is not None:
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


class Benchmark:
    """Candidates for each part. Each is called once a turn, and works on one batch.

    Args:
        original: the modules `main_dino` and `utils` of facebookresearch/dino and perhaps `metaformer`; {} for none.
        paths: of JPEG frames, at least a batch.
    """

    def __init__(
        self,
        args: BenchmarkArguments,
        crop_config: CropConfig,
        device: torch.device,
        original: dict,
        paths: list[Path],
    ):
        self.args, self.crop_config, self.device, self.original, self.paths = (
            args,
            crop_config,
            device,
            original,
            paths,
        )
        self.contents = [path.read_bytes() for path in paths[: args.batch_size]]
        self.turn = 0

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
                crops = draw_crops(image.size, self.crop_config, generator(0, self.turn, i))
                crop_frame(image, crops, self.crop_config)

        candidates = {"workers": in_workers}
        if self.original:
            transform = self._original_transform()
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

    def end_to_end(self) -> Candidates:
        """From JPEG files through workers and crops to the end of the step."""
        candidates = {}
        for name, step in self._all_steps().items():
            batches = self._original_batches() if "original" in name else self._our_batches()
            candidates[name] = lambda step=step, batches=batches: step(next(batches))
        return candidates

    def _all_steps(self) -> dict[str, Callable]:
        steps = {}
        if self.original:
            steps |= {"original, float32": self._original_step(False), "original, autocast": self._original_step(True)}
        steps |= {"ours, float32": self._our_step(False), "ours, bf16": self._our_step(True)}
        if self.args.channels_last:
            steps["ours, bf16, channels last"] = self._our_step(True, channels_last=True)
        if self.args.torch_compile:
            steps["ours, bf16, compiled"] = self._our_step(True, compiled=True)
        return steps

    def _model(self, half: bool) -> DinoModel:
        torch.manual_seed(0)
        backbone = SurgeNetModel(find_source(None, self.args.backbone))
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
            model.student.backbone.compile()
            model.teacher.backbone.compile()
        optimizer = build_optimizer(model.student)
        schedules = build_schedules(model.config, 1000, self.args.batch_size)

        def step(crops: list[torch.Tensor]):
            if channels_last:
                crops = [crop.contiguous(memory_format=torch.channels_last) for crop in crops]
            autocast = lambda: self._autocast(half)  # noqa: E731
            training_step(model, optimizer, schedules, [crops], 5000, autocast=autocast)

        return step

    def _original_step(self, half: bool) -> Callable:
        """The body of the original's `train_one_epoch`."""
        main_dino, utils = self.original["main_dino"], self.original["utils"]

        def network():
            if "metaformer" in self.original:
                backbone = self.original["metaformer"].caformer_s18(num_classes=0, pretrained="ImageNet")
            else:
                backbone = _Pooled(SurgeNetModel(find_source(None, self.args.backbone)))
            width = SurgeNetModel.config_class(backbone=self.args.backbone).hidden_sizes[-1]
            width = backbone.width if isinstance(backbone, _Pooled) else width
            return utils.MultiCropWrapper(backbone, main_dino.DINOHead(width, self.args.out_dim)).to(self.device)

        student, teacher = network(), network()
        teacher.load_state_dict(student.state_dict())
        teacher.requires_grad_(False)
        num_crops = len(self.crop_config.sizes)
        dino_loss = main_dino.DINOLoss(self.args.out_dim, num_crops, 0.04, 0.04, 0, 50).to(self.device)
        optimizer = torch.optim.AdamW(utils.get_params_groups(student), lr=1e-5)
        on_gpu = half and self.device.type == "cuda"  # where the original trains in fp16
        scaler = torch.amp.GradScaler(enabled=on_gpu)

        def step(crops: list[torch.Tensor]):
            crops = [crop.to(self.device, non_blocking=True) for crop in crops]
            with torch.autocast(self.device.type, torch.float16 if on_gpu else torch.bfloat16, enabled=half):
                teacher_output = teacher(crops[:2])
                student_output = student(crops)
                loss = dino_loss(student_output, teacher_output, 1)
            loss.item()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            utils.clip_gradients(student, 3.0)
            utils.cancel_gradients_last_layer(1, student, 1)
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                    theirs.data.mul_(0.996).add_((1 - 0.996) * ours.detach().data)

        return step

    def _random_crops(self) -> list[torch.Tensor]:
        sizes, batch = self.crop_config.sizes, self.args.batch_size
        return [torch.randn(batch, 3, size, size, device=self.device) for size in sizes]

    def _feed(self, on_device: bool) -> Feed:
        args = FrameArguments(dataset=["folder"], data_dir=[str(self.paths[0].parent)])
        return Feed(args, self.crop_config, 0, self.args.batch_size, on_device=on_device)

    def _samples(self, feed: Feed) -> dict:
        self.turn += 1
        return collate([feed.dataset[(self.turn, i, i)] for i in range(self.args.batch_size)])

    def _our_batches(self) -> Iterator[list[torch.Tensor]]:
        on_device = self.device.type == "cuda"
        mean, std = (torch.tensor(x, device=self.device) for x in STATISTICS["surgenet"])
        steps = self._feed(on_device).steps(0, 10**9, self.args.dataloader_num_workers, pin_memory=on_device)
        for _, batch in steps:
            if on_device:
                images = unpack_images(batch["pixels"].to(self.device, non_blocking=True), batch["sizes"])
                crops = crop_batch(images, batch["crops"], self.crop_config)
            else:
                crops = batch["crops"]
            yield normalize(crops, mean, std)

    def _original_transform(self) -> Callable:
        config = self.crop_config
        if (config.global_crops_size, config.local_crops_size) != (224, 96):
            raise ValueError("the original's crops are 224 and 96 pixels: leave out --global_crops_size and the other")
        return self.original["main_dino"].DataAugmentationDINO(
            config.global_crops_scale, config.local_crops_scale, config.local_crops_number
        )

    def _original_batches(self) -> Iterator[list[torch.Tensor]]:
        loader = DataLoader(
            _Frames(self.paths, self._original_transform()),
            self.args.batch_size,
            shuffle=True,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )
        while True:
            yield from loader


class _Pooled(nn.Module):
    """Our backbone as the original's wrapper wants one."""

    def __init__(self, backbone: SurgeNetModel):
        super().__init__()
        self.backbone, self.width = backbone, backbone.config.hidden_sizes[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x).pooler_output


class _Frames(Dataset):
    """Frames as the original's ImageFolder reads them."""

    def __init__(self, paths: list[Path], transform: Callable):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        with self.paths[index].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


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


@contextmanager
def _single_process():
    """The original reduces its centre over processes, so that it needs a group, be it of one."""
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()


@contextmanager
def _imports(args: BenchmarkArguments):
    """The original's modules by name; {} without a checkout."""
    folders = {"main_dino": args.dino_repo, "utils": args.dino_repo, "metaformer": args.surgenet_repo}
    before = list(sys.path)
    try:
        sys.path[:0] = [folder for folder in dict.fromkeys(folders.values()) if folder]
        yield {name: importlib.import_module(name) for name, folder in folders.items() if args.dino_repo and folder}
    finally:
        sys.path[:] = before
