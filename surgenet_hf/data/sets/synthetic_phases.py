"""Synthetic videos with phases, to try out phase recognition without data.

A program draws the images, with the same components as `synthetic`. Results on them say nothing about surgery or about
the quality of weights.

A video has up to seven phases, which follow those of Cholec80 but last about a minute and a half in total. Durations
are log-normal, some phases are skipped at random, and the order of the last three can vary. The phase determines what
is visible, but a single frame is often ambiguous:

- Calot dissection and gallbladder dissection look the same, except for clips that are sometimes visible in the second.
  Only the earlier clipping phase distinguishes them.
- Every phase has short views of bare tissue with a grasper, which are the same in all phases. It also has short views
  of the previous or next phase.

Even a very good frame classifier is therefore right for only about two thirds of the frames. A model that uses the
earlier frames can be right for many more. Every frame is a deterministic function of (seed, video, frame) and of the
range of lengths.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...atomic import write_file
from ...errors import UserError
from ...rng import rng_for
from ..base import SINGLE, Sample, SurgicalData, build_splits
from ..colors import palette
from .synthetic import (
    NOTE,
    Grid,
    draw_background,
    draw_blood,
    draw_organs,
    encode_image,
    mix_colors,
    shade_image,
    smooth_noise,
    smooth_step,
    tone_curve,
)

PHASES = (
    "preparation",
    "calot dissection",
    "clipping",
    "gallbladder dissection",
    "packaging",
    "cleaning",
    "retraction",
)
# Part of the folder name. Increase it when the pictures change, so that old files are not reused.
VERSION = 1

_SHARES = (0.08, 0.27, 0.1, 0.25, 0.09, 0.12, 0.09)  # median shares of the length of a video
_SKIPPED = (0.2, 0, 0, 0, 0, 0.25, 0.15)  # probability that a phase is skipped
_ENDS = (((4, 5, 6), 0.5), ((5, 4, 6), 0.25), ((4, 6, 5), 0.25))  # orders of the last three, with probabilities
_MARGIN = 0.25  # tissue beyond each side of the picture, for camera motion


@dataclass(frozen=True)
class View:
    """Content of a frame in addition to tissue and a grasper."""

    gallbladder: bool = False
    tool: str = ""  # a key of _TOOLS
    clips: bool = False
    smoke: bool = False
    bag: bool = False
    blood: bool = False


_GLIMPSE = View()
_DISSECTION = View(gallbladder=True, tool="hook", smoke=True)
_VIEWS = (
    View(gallbladder=True),
    _DISSECTION,
    View(gallbladder=True, tool="clipper", clips=True),
    _DISSECTION,
    View(gallbladder=True, bag=True),
    View(tool="irrigator", blood=True),
    View(bag=True, tool="trocar"),
)
# color of the shaft, color of the tip, half the width
_TOOLS = {
    "hook": ((0.08, 0.08, 0.1), (0.95, 0.75, 0.15), 0.055),
    "clipper": ((0.1, 0.25, 0.75), (0.45, 0.55, 0.8), 0.08),
    "irrigator": ((0.92, 0.94, 0.96), (0.75, 0.78, 0.8), 0.07),
    "trocar": ((0.1, 0.4, 0.25), (0.15, 0.5, 0.3), 0.14),
}


def load(
    data_dir: str | Path | None = None,
    num_videos: int = 16,
    length: tuple[int, int] = (60, 120),
    size: tuple[int, int] = (64, 96),
    seed: int = 0,
) -> SurgicalData:
    """Draw synthetic phase videos.

    About five eighths of the videos train. Of the others, half validate and half test.

    Args:
        data_dir: folder for `synthetic-phases-.../frames/`, `phases/`, and `classes.txt`, in the layout that
            `surgenet_hf.data.sets.own` reads as "videos". Files from an earlier call are reused. None keeps the data
            in memory.
        num_videos: number of videos, at least 3.
        length: (shortest, longest) length of a video in frames (one per second), at least 21.
        size: (height, width) in pixels, at least 32 each.
        seed: seed of the videos. Another seed gives other videos.

    Raises:
        UserError: an argument is below its minimum, or the shortest length exceeds the longest.
    """
    if num_videos < 3 or not 21 <= length[0] <= length[1] or min(size) < 32:
        raise UserError(
            f"num_videos={num_videos}, length={length}, size={size}: at least 3 videos (for training, validation "
            "and test), 21 frames (shortest length first) and 32 pixels per side are needed"
        )
    root = None
    if data_dir is not None:
        name = f"synthetic-phases-v{VERSION}-seed{seed}-{size[0]}x{size[1]}-{length[0]}to{length[1]}"
        root = Path(data_dir).absolute() / name
        (root / "phases").mkdir(parents=True, exist_ok=True)
        write_file(root / "classes.txt", "\n".join(PHASES).encode() + b"\n")

    held_out = max(2, round(num_videos * 3 / 8))
    first_validation, first_test = num_videos - held_out, num_videos - held_out // 2
    plans = [plan(seed, video, length) for video in range(num_videos)]
    samples: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    with tqdm(desc="Drawing synthetic phase videos", total=sum(map(len, plans)), unit="frame") as bar:
        for video, steps in enumerate(plans):
            split = "train" if video < first_validation else "validation" if video < first_test else "test"
            samples[split] += _video(root, seed, video, steps, size, bar)
    return SurgicalData(
        "synthetic-phases",
        "phase-recognition",
        PHASES,
        palette(len(PHASES)),
        build_splits(samples),
        problem_type=SINGLE,
        frames_per_second=1.0,
        notes=(NOTE,),
        videos_are_public=True,
        split_protocol="by video number, the last three eighths are half validation, half test",
    )


def _video(
    root: Path | None, seed: int, video: int, steps: list[tuple[int, View]], size: tuple[int, int], bar: tqdm
) -> Iterator[Sample]:
    name = f"video{video:02d}"
    if root is not None:
        (root / "frames" / name).mkdir(parents=True, exist_ok=True)
        rows = "".join(f"{frame}\t{PHASES[phase]}\n" for frame, (phase, _) in enumerate(steps))
        write_file(root / "phases" / f"{name}.txt", f"Frame\tPhase\n{rows}".encode())
    for frame, (phase, view) in enumerate(steps):
        image: Path | bytes = b"" if root is None else root / "frames" / name / f"{frame:06d}.jpg"
        if root is None or not image.exists():
            encoded = encode_image(draw(seed, video, frame, view, size), "JPEG", quality=95)
            if root is None:
                image = encoded
            else:
                write_file(image, encoded)
        bar.update()
        yield Sample(image, phase, name, frame)


def plan(seed: int, video: int, length: tuple[int, int]) -> list[tuple[int, View]]:
    """Return the phase and the view of each frame of a video."""
    rng = rng_for(seed, video, 1)
    (ending,) = rng.choice(len(_ENDS), 1, p=[share for _, share in _ENDS])
    order = [phase for phase in (0, 1, 2, 3, *_ENDS[ending][0]) if rng.random() >= _SKIPPED[phase]]
    total = rng.integers(length[0], length[1] + 1)
    durations = np.array([_SHARES[phase] for phase in order]) * np.exp(0.4 * rng.standard_normal(len(order)))
    # Each phase gets three frames, and the rest in proportion. Rounding the edges keeps the total exact.
    edges = np.round(np.cumsum(3 + (total - 3 * len(order)) * durations / durations.sum())).astype(int)
    phases = np.repeat(order, np.diff(edges, prepend=0)).tolist()

    views: list[View] = []
    while len(views) < len(phases):
        here = phases[len(views)]
        kind, lasts = rng.random(), int(rng.integers(2, 5))
        shows_clips = rng.random() < 0.35
        step = -1 if rng.random() < 0.5 else 1
        if kind < 0.18:
            view = _GLIMPSE
        elif kind < 0.26:
            neighbor = order.index(here) + step
            view = _VIEWS[order[neighbor]] if 0 <= neighbor < len(order) else _GLIMPSE
        elif here == 3 and shows_clips:
            view = View(gallbladder=True, tool="hook", smoke=True, clips=True)
        else:
            view = _VIEWS[here]
        # A view ends with its phase.
        while lasts and len(views) < len(phases) and phases[len(views)] == here:
            views.append(view)
            lasts -= 1
    return list(zip(phases, views, strict=True))


def draw(seed: int, video: int, frame: int, view: View, size: tuple[int, int]) -> np.ndarray:
    """Draw one frame, uint8 (H, W, 3)."""
    look, here = rng_for(seed, video, 0), rng_for(seed, video, 2 + frame)
    height, width = size
    image, pad = _tissue(seed, video, size, view.gallbladder), round(_MARGIN * height)
    # The camera moves slowly and shakes, so that a model cannot memorize fixed views.
    glide = np.sin(0.16 * frame * np.array([1, 0.8]) + look.uniform(0, 2 * np.pi, 2)) + here.uniform(-0.7, 0.7, 2)
    top, left = (round(float(pad * (1 + 0.55 * shift))) for shift in glide)
    image = image[top : top + height, left : left + width].copy()
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    grid = Grid(x - 0.5 * width / height, y - 0.5, x, y, 1 / height)

    if view.blood:
        stains = smooth_step(smooth_noise(here, x, y, 0.4, 2), 0.3)
        image = image * mix_colors((1.0, 1.0, 1.0), (0.55, 0.1, 0.1), 0.9 * stains)
    for distance, color in _things(look, here, grid, frame, view):
        image += smooth_step(-distance, 1.5 * grid.pixel)[..., None] * (color - image)
    if view.smoke:
        image = mix_colors(
            image, (0.72, 0.7, 0.7), here.uniform(0.1, 0.45) * smooth_step(smooth_noise(here, x, y, 0.6, 2) + 0.2, 0.9)
        )
    image = image * look.uniform(0.94, 1.06, 3).astype(np.float32) * here.uniform(0.9, 1.25)
    image = image * np.exp(-look.uniform(0.4, 1.2) * (grid.x**2 + grid.y**2))[..., None]
    image = image + 0.015 * here.standard_normal(image.shape, np.float32)
    return (255 * np.clip(image, 0, 1) ** 0.9).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _tissue(seed: int, video: int, size: tuple[int, int], gallbladder: bool) -> np.ndarray:
    """Return the tissue of a video (0 to 1) with a margin on each side.

    The result is cached, because drawing the tissue is slow.
    """
    look = rng_for(seed, video, 0)
    pad = round(_MARGIN * size[0])
    y, x = np.mgrid[-pad : size[0] + pad, -pad : size[1] + pad].astype(np.float32) / size[0]
    x, y = x - 0.5 * size[1] / size[0], y - 0.5
    grid = Grid(x, y, x, y, 1 / size[0])
    image, height = draw_background(look, grid)
    *others, bladder = draw_organs(look, grid, 0)
    for _, distance, color, bulge in [*others, bladder] if gallbladder else others:
        image *= 1 - 0.3 * np.exp(-np.clip(distance, 0, None) / 0.03)[..., None]
        image += smooth_step(-distance, grid.pixel)[..., None] * (color - image)
        height += bulge
    return shade_image(look, grid, draw_blood(look, grid, image), height)


def _things(
    look: np.random.Generator, here: np.random.Generator, grid: Grid, frame: int, view: View
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (signed distance, color) of the bag, the clips, and the instruments, from back to front."""
    side = look.uniform(0, 2 * np.pi) + here.uniform(-0.5, 0.5)
    cloth, metal = tone_curve(look, (0.8, 0.86, 0.8), 0.06), tone_curve(look, (0.72, 0.73, 0.76), 0.1)
    motion = np.sin(frame * look.uniform(0.2, 0.5, 4) + look.uniform(0, 2 * np.pi, 4)) + here.uniform(-0.8, 0.8, 4)
    motion = (0.1 * motion).tolist()
    if view.bag:
        folds = smooth_noise(here, grid.x, grid.y, 0.3, 2)
        yield (
            np.hypot((grid.x - motion[0]) / 1.3, grid.y - motion[1] - 0.1) - 0.3 + 0.05 * folds,
            cloth * (0.85 + 0.25 * folds)[..., None],
        )
    if view.clips:
        for offset in (-0.07, 0.0, 0.07):
            x, y = grid.x - offset - motion[2], grid.y - motion[3] - 0.12
            yield np.maximum(np.abs(x) - 0.022, np.abs(y) - 0.09), np.array((0.3, 1.0, 1.0), np.float32)
    yield from _instrument(grid, side, (motion[0] - 0.2, motion[1]), 0.045, metal, metal * 0.8)
    if view.tool:
        sheath, tip, width = _TOOLS[view.tool]
        yield from _instrument(grid, side + 2.2, (motion[2] + 0.12, motion[3]), width, np.array(sheath), np.array(tip))


def _instrument(
    grid: Grid, bearing: float, place: tuple[float, float], width: float, sheath: np.ndarray, tip: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (signed distance, color) of an instrument's tip at `place`, and of its shaft from the border."""
    x, y = grid.x - place[0], grid.y - place[1]
    along = x * math.cos(bearing) + y * math.sin(bearing)
    across = y * math.cos(bearing) - x * math.sin(bearing)
    round_off = (0.5 + 0.5 * np.sqrt(1 - np.clip(across / width, -1, 1) ** 2))[..., None]
    yield np.maximum(np.abs(across) - 0.6 * width, np.abs(along - 0.08) - 0.09), tip * round_off
    yield np.maximum(np.abs(across) - width, 0.15 - along), sheath * round_off
