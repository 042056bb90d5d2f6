"""Measurements of `inference.py` from files to predictions."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import torch
from inference_networks import (
    BACKBONE,
    REFERENCE,
    Output,
    device,
    make_processor,
    original_model,
    our_model,
    settings,
    summarize,
    take_turns,
)
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize, pil_to_tensor, resize

from surgenet_hf import SurgeNetModel
from surgenet_hf.inference.job import predict_to_folder
from surgenet_hf.inference.predictors import Predictor
from surgenet_hf.inference.selection import Runtimes
from surgenet_hf.inference.settings import RuntimeArguments, Setting
from surgenet_hf.models import resolve_model
from surgenet_hf.tasks import load_predictor

FRAME_SIZE = (480, 854)


def plain_loop(network: nn.Module, processor, frames: Iterator[Image.Image], folder: Path) -> None:
    """Predict frame by frame, as the original code is used: read, resize, normalize, predict, and write a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    size = [processor.size["height"], processor.size["width"]]
    for i, image in enumerate(frames):
        pixels = normalize(
            resize(pil_to_tensor(image), size, antialias=True) / 255, processor.image_mean, processor.image_std
        )
        logits = F.interpolate(network(pixels[None].to(device())), image.size[::-1], mode="bilinear")
        Image.fromarray(logits.argmax(1)[0].to("cpu", torch.uint8).numpy()).save(folder / f"{i:06d}.png")


def write_video(path: Path, images: list[Image.Image], rate: int = 25) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, width=images[0].width, height=images[0].height)
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def video_frames(path: Path) -> Iterator[Image.Image]:
    with av.open(str(path)) as container:
        yield from (frame.to_image() for frame in container.decode(video=0))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name) / "out"


def fastest(rows: list[dict], task: str, batch: int, tolerance: float = 0.995) -> Setting:
    """Return the fastest setting within tolerance for a batch size, among the measured forward passes."""
    found = [
        row
        for row in rows
        if row["part"] == "forward"
        and row["task"] == task
        and row["batch"] == batch
        and (row["agreement"] or 0) >= tolerance
        and "int8" not in row["candidate"]  # needs the user's frames
    ]
    best = max(found, key=lambda row: row["speed"], default={"candidate": REFERENCE})["candidate"]
    return next(setting for setting in settings() if f"ours, {setting}" == best)


def make_predictor(folder: Path, setting: Setting, batch_size: int = 8) -> Predictor:
    """Return the predictor of a model folder with its network in a setting."""
    predictor = load_predictor(str(folder))
    Runtimes(predictor, RuntimeArguments(setting.runtime, setting.precision), batch_size).apply(setting, [])
    return predictor


@torch.inference_mode()
def measure_video(args, images: list[Image.Image], folder: Path, rows: list[dict]) -> Iterator[dict]:
    """Measure from a 480p video to masks: a plain loop, and `surgenet predict` in float32 and the fastest setting."""
    video, model_folder = folder / "video.mp4", folder / "segmentation"
    write_video(video, [images[i % len(images)].resize(FRAME_SIZE[::-1]) for i in range(args.num_frames)])
    processor = make_processor(args.sizes[len(args.sizes) // 2])
    our_model(args, "segmentation").save_pretrained(model_folder)
    processor.save_pretrained(model_folder)
    library = "original" if args.surgenet_repo else "ours"
    network = (
        original_model(args, "segmentation") if args.surgenet_repo else Output(our_model(args, "segmentation"))
    ).to(device())

    def loop() -> None:
        with new_folder(folder) as output:
            plain_loop(network, processor, video_frames(video), output)

    def job(setting: Setting) -> Callable[[], None]:
        predictor = make_predictor(model_folder, setting)

        def run() -> None:
            with new_folder(folder) as output:
                predict_to_folder(predictor, video, output, fps=0)

        return run

    reference = f"plain loop over {library}, torch float32"
    best = {setting for batch in args.batch_sizes[:2] for setting in [fastest(rows, "segmentation", batch)]}
    runs = {reference: loop} | {f"surgenet predict, {each}": job(each) for each in dict.fromkeys([Setting(), *best])}
    for row in summarize(take_turns(runs, args.rounds, args.seconds), reference, args.num_frames):
        yield {"part": "video", **row}


def make_folder(args, images: list[Image.Image], folder: Path) -> tuple[Path, Path]:
    """Write a folder of JPEG files and a backbone, unless they exist, and return both folders."""
    frames, model_folder = folder / "frames", folder / "embedder"
    if not frames.exists():
        frames.mkdir()
        for i in range(args.num_frames):
            images[i % len(images)].save(frames / f"{i:06d}.jpg", quality=95)
        SurgeNetModel(resolve_model(None, BACKBONE)).save_pretrained(model_folder)
        make_processor(args.sizes[len(args.sizes) // 2]).save_pretrained(model_folder)
    return frames, model_folder


@torch.inference_mode()
def measure_folder(args, images: list[Image.Image], folder: Path, batch: int = 8) -> Iterator[dict]:
    """Measure embeddings of a folder of JPEG files in bf16 against the forward passes alone."""
    frames, model_folder = make_folder(args, images, folder)
    processor = make_processor(args.sizes[len(args.sizes) // 2])
    model = SurgeNetModel.from_pretrained(model_folder).eval()
    model.to(device(), torch.bfloat16)
    pixels = processor(images[:1] * batch, return_tensors="pt").pixel_values.to(device(), torch.bfloat16)
    predictor = make_predictor(model_folder, Setting("torch", "bf16"))

    def bare() -> None:
        for _ in range(args.num_frames // batch):
            model(pixels)

    def job() -> None:
        with new_folder(folder) as output:
            predict_to_folder(predictor, frames, output, batch_size=batch)

    runs = {"forward passes alone, bf16": bare, "surgenet predict, bf16": job}
    for row in summarize(take_turns(runs, args.rounds, args.seconds), next(iter(runs)), args.num_frames):
        yield {"part": "folder", **row}


def measure_processes(args, images: list[Image.Image], folder: Path) -> Iterator[dict]:
    """Measure `surgenet predict` on a folder with one and two processes, and with a quarter of the frames."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    frames_folder, model_folder = make_folder(args, images, folder)
    frames = sorted(frames_folder.glob("*.jpg"))

    def run(processes: int, files: list[Path]) -> None:
        with new_folder(folder) as output:
            options = ["--model_name_or_path", model_folder, "--output_dir", output, "--input", *files]
            launcher = ["torch.distributed.run", "--nproc_per_node", processes, "-m", "surgenet_hf.cli.predict"]
            environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes))}
            subprocess.run(
                [sys.executable, "-m", *map(str, [*launcher, *options])],
                env=environment,
                check=True,
                capture_output=True,
            )

    quarter = frames[: len(frames) // 4]
    runs = {
        f"1 process, {len(frames)} frames": lambda: run(1, frames),
        f"1 process, {len(quarter)} frames": lambda: run(1, quarter),
        f"2 processes, {len(frames)} frames": lambda: run(2, frames),
    }
    counts = dict(zip(runs, (len(frames), len(quarter), len(frames)), strict=True))
    for row in summarize(take_turns(runs, min(args.rounds, 3), args.seconds), next(iter(runs)), counts):
        yield {"part": "processes", **row}
