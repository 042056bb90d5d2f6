"""Procedural scenes that resemble laparoscopy, with masks, to try out an installation, a script, or a test.

A program draws these images. Results on them say nothing about surgery or about the quality of weights.

A scene has wet tissue with folds and vessels, a liver, a gallbladder, lobes of fat, and instruments that enter from
the border. Blood, smoke, highlights, light falloff, and sometimes the rim of the endoscope cover parts of the scene.
Hues, light, and shapes differ between videos, so color alone does not identify the classes. Within a video, the
camera and the instruments move slowly. Every frame is a deterministic function of (seed, video, frame).
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...atomic import write_file
from ...errors import UserError
from ...rng import rng_for
from ..base import Sample, SurgicalData, build_splits
from ..masks import lookup_table

LABELS = ("background", "liver", "gallbladder", "fat", "instrument")
COLORS = ((127, 127, 127), (213, 94, 0), (0, 158, 115), (240, 228, 66), (86, 180, 233))
LIVER, GALLBLADDER, FAT, INSTRUMENT = 1, 2, 3, 4
# Part of the folder name. Increase it when the pictures change, so that old files are not reused.
VERSION = 1

NOTE = "Synthetic images, drawn by a program: results on them are not evidence about surgical data."


def load(
    data_dir: str | Path | None = None,
    num_videos: int = 10,
    frames_per_video: int = 12,
    size: tuple[int, int] = (144, 192),
    seed: int = 0,
) -> SurgicalData:
    """Draw synthetic data.

    The first four fifths of the videos train, and the others (at least one) validate.

    Args:
        data_dir: folder for `synthetic-.../images/*.jpg` and `masks/*.png`, in the layout that
            `surgenet_hf.data.sets.folder` reads. Files from an earlier call are reused. None keeps the data in memory.
        num_videos: number of videos, at least 2.
        frames_per_video: number of frames per video, at least 1.
        size: (height, width) in pixels, at least 32 each.
        seed: seed of the videos. Another seed gives other videos.

    Raises:
        UserError: an argument is below its minimum.
    """
    if num_videos < 2 or frames_per_video < 1 or min(size) < 32:
        raise UserError(
            f"num_videos={num_videos}, frames_per_video={frames_per_video}, size={size}: at least 2 videos (one for "
            "training, one for validation), 1 frame and 32 pixels per side are needed"
        )
    root = None
    if data_dir is not None:
        root = Path(data_dir).absolute() / f"synthetic-v{VERSION}-seed{seed}-{size[0]}x{size[1]}"
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "masks").mkdir(exist_ok=True)
        write_file(root / "classes.txt", "\n".join(LABELS).encode() + b"\n")

    first_validation = num_videos - max(1, round(num_videos / 5))
    splits: dict[str, list[Sample]] = {"train": [], "validation": []}
    items = [(video, frame) for video in range(num_videos) for frame in range(frames_per_video)]
    for video, frame in tqdm(items, desc="Drawing synthetic frames", unit="frame"):
        split = "train" if video < first_validation else "validation"
        splits[split].append(_sample(root, seed, video, frame, size))
    table = lookup_table({i: i for i in range(len(LABELS))})
    return SurgicalData(
        "synthetic",
        "semantic-segmentation",
        LABELS,
        COLORS,
        build_splits(splits, table),
        notes=(NOTE,),
        videos_are_public=True,
        split_protocol="by video number, the last fifth validates",
        background_id=0,
    )


def _sample(root: Path | None, seed: int, video: int, frame: int, size: tuple[int, int]) -> Sample:
    name = f"video{video:02d}_{frame:04d}"
    if root is not None:
        image_path, mask_path = root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png"
        if image_path.exists() and mask_path.exists():
            return Sample(image_path, mask_path, f"video{video:02d}", frame)
    image, mask = draw(seed, video, frame, size)
    # JPEG in memory too, so that both ways give the same pixels.
    image_bytes, mask_bytes = encode_image(image, "JPEG", quality=95), encode_image(mask, "PNG")
    if root is None:
        return Sample(image_bytes, mask_bytes, f"video{video:02d}", frame)
    write_file(mask_path, mask_bytes)
    write_file(image_path, image_bytes)
    return Sample(image_path, mask_path, f"video{video:02d}", frame)


def encode_image(array: np.ndarray, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, file_format, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class Grid:
    """Pixel coordinates that all layers share, on the screen and on the tissue.

    The unit is the height of the picture.
    """

    x: np.ndarray  # (H, W), 0 in the center, increasing to the right
    y: np.ndarray  # (H, W), 0 in the center, increasing downward
    u: np.ndarray  # position of the pixel on the tissue, which changes as the camera moves
    v: np.ndarray
    pixel: float  # width of a pixel


def draw(seed: int, video: int, frame: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one frame.

    Returns:
        The image (H, W, 3) and the mask of class ids (H, W), both uint8.
    """
    look = rng_for(seed, video, 0)  # for values that are constant in a video, drawn in the same order for every frame
    here = rng_for(seed, video, 1 + frame)  # for values that differ from frame to frame
    grid = _grid(look, frame, size)

    image, height = draw_background(look, grid)
    mask = np.zeros(size, np.uint8)
    for label, distance, color, bulge in draw_organs(look, grid, frame):
        # Contact shadow around the organ, then the organ itself with a soft edge of about one pixel.
        image *= 1 - 0.3 * np.exp(-np.clip(distance, 0, None) / 0.03)[..., None]
        image += smooth_step(-distance, grid.pixel)[..., None] * (color - image)
        height += bulge  # an organ adds to the height of the tissue behind it
        mask[distance < 0] = label
    image = draw_blood(look, grid, image)
    image = shade_image(look, grid, image, height)
    for distance, color in _instruments(look, grid, frame):
        image *= 1 - 0.4 * np.exp(-np.clip(_shifted(distance, size), 0, None) / 0.04)[..., None]
        image += smooth_step(-distance, grid.pixel)[..., None] * (color - image)
        mask[distance < 0] = INSTRUMENT
    image, outside = _camera(look, here, grid, image, frame)
    mask[outside] = 0
    return image, mask


def _grid(look: np.random.Generator, frame: int, size: tuple[int, int]) -> Grid:
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    y, x = y - 0.5, x - 0.5 * width / height
    phases = look.uniform(0, 2 * np.pi, 4)
    # Python floats here and below. A float64 scalar of NumPy would convert all arrays to float64 at half the speed.
    right, down, turn, near = np.sin(0.16 * frame * np.array([1, 0.8, 0.6, 0.5]) + phases).tolist()
    angle, zoom = 0.08 * turn, 1 + 0.08 * near
    u = (math.cos(angle) * x - math.sin(angle) * y) / zoom + 0.09 * right
    v = (math.sin(angle) * x + math.cos(angle) * y) / zoom + 0.07 * down
    return Grid(x, y, u, v, 1 / height)


def smooth_noise(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, scale: float, octaves: int = 4) -> np.ndarray:
    """Return smooth noise of several octaves, from about -1 to 1.

    Args:
        rng: source of randomness.
        u: horizontal coordinates (H, W).
        v: vertical coordinates (H, W).
        scale: size of the largest features.
        octaves: number of octaves.
    """
    total = np.zeros_like(u)
    for octave in range(octaves):
        lattice = 2 * rng.random(16 * 16, np.float32) - 1  # repeats after 16 features, at least twice the picture
        a, b = (u + 10) * (2**octave / scale), (v + 10) * (2**octave / scale)
        floor_a, floor_b = np.floor(a), np.floor(b)
        s, t = a - floor_a, b - floor_b
        s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
        i, j = floor_a.astype(np.intp), floor_b.astype(np.intp)
        i, j, i1, j1 = i & 15, (j & 15) << 4, (i + 1) & 15, ((j + 1) & 15) << 4
        top, top1 = lattice.take(j + i), lattice.take(j + i1)
        bottom, bottom1 = lattice.take(j1 + i), lattice.take(j1 + i1)
        top += s * (top1 - top)
        bottom += s * (bottom1 - bottom)
        total += 0.55**octave * (top + t * (bottom - top))
    return total


def smooth_step(value: np.ndarray, width: float) -> np.ndarray:
    """Return a smooth step: 0 below -width, 1 above width."""
    t = np.clip(0.5 + value / (2 * width), 0, 1)
    return t * t * (3 - 2 * t)


def mix_colors(a, b, share: np.ndarray) -> np.ndarray:
    """Return colors (H, W, 3) interpolated from a (share 0) to b (share 1)."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return a + (b - a) * share[..., None]


def tone_curve(rng: np.random.Generator, color: tuple[float, float, float], spread: float) -> np.ndarray:
    """Return a random variant of a color (0 to 1) with another brightness and hue."""
    return np.clip(np.array(color) * rng.uniform(1 - spread, 1 + spread) * rng.uniform(0.9, 1.1, 3), 0, 1).astype(
        np.float32
    )


def draw_background(look: np.random.Generator, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Draw peritoneum and bowel in pink to red, with folds, pale patches, and thin vessels.

    Returns:
        The colors (H, W, 3) and the height (H, W) of the surface.
    """
    folds = smooth_noise(look, grid.u, grid.v, look.uniform(0.3, 0.6))
    fine = smooth_noise(look, grid.u, grid.v, 0.12)
    red, pale = tone_curve(look, (0.66, 0.27, 0.23), 0.2), tone_curve(look, (0.84, 0.58, 0.48), 0.15)
    image = mix_colors(red, pale, smooth_step(folds + 0.4 * fine + look.uniform(-0.3, 0.3), 0.7))
    vessels = np.abs(smooth_noise(look, grid.u, grid.v, 0.4, 3))
    image = mix_colors(image, tone_curve(look, (0.5, 0.1, 0.1), 0.2), 0.55 * np.exp(-vessels / 0.025))
    return image, 0.06 * folds + 0.012 * fine


def draw_organs(
    look: np.random.Generator, grid: Grid, frame: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (class id, signed distance (negative inside), colors, height) of each organ from back to front."""
    u, v = grid.u, grid.v
    # The liver enters from above, left, or right. `along` and `across` are coordinates relative to its edge.
    angle = math.pi / 2 + look.uniform(-0.9, 0.9)
    across = u * math.cos(angle) + v * math.sin(angle) + look.uniform(0.06, 0.2)
    along = v * math.cos(angle) - u * math.sin(angle)
    wave = smooth_noise(look, u, v, 0.5, 3)

    center = look.uniform(-0.25, 0.25), look.uniform(0.38, 0.5)
    radius = look.uniform(0.2, 0.3)
    lobes = smooth_noise(look, u, v, 0.22, 3)
    fat = np.hypot((along - center[0]) / look.uniform(1.2, 2), across - center[1]) - radius + 0.12 * lobes
    cells = np.abs(smooth_noise(look, u, v, 0.13, 2))
    color = mix_colors(
        tone_curve(look, (0.85, 0.62, 0.3), 0.15),
        tone_curve(look, (0.96, 0.84, 0.56), 0.08),
        smooth_step(cells - 0.2, 0.5),
    )
    yield FAT, fat, color, (0.06 + 0.03 * smooth_step(cells, 0.5)) * _dome(fat, 0.12)

    liver = across + 0.08 * wave
    grain = smooth_noise(look, u, v, 0.05, 3)
    dark, light = tone_curve(look, (0.38, 0.13, 0.1), 0.3), tone_curve(look, (0.58, 0.26, 0.2), 0.2)
    color = mix_colors(dark, light, smooth_step(wave + 0.35 * grain, 0.9))
    yield LIVER, liver, color, (0.14 + 0.002 * grain) * _dome(liver, 0.25)

    # A pear shape that hangs from the liver's edge, with its wide end toward the instruments.
    tilt, pull = look.uniform(-0.6, 0.6), 0.02 * math.sin(0.3 * frame + look.uniform(0, 6))
    p = along - look.uniform(-0.25, 0.25) - pull
    q = across - look.uniform(0.04, 0.12)
    p, q = p * math.cos(tilt) - q * math.sin(tilt), p * math.sin(tilt) + q * math.cos(tilt)
    length, girth = look.uniform(0.24, 0.34), look.uniform(0.12, 0.17)
    girth = girth * (1 + 0.3 * np.clip(q / length, -1, 1))
    bladder = (np.hypot(p / girth, q / length) - 1) * 0.14 + 0.04 * wave
    hue = look.uniform(0, 1)  # 0: greenish and thin-walled, 1: pink-gray and inflamed
    base = (1 - hue) * np.array([0.5, 0.55, 0.33]) + hue * np.array([0.74, 0.55, 0.48])
    veins = np.abs(smooth_noise(look, u, v, 0.2, 3))
    color = mix_colors(
        tone_curve(look, base, 0.12),
        tone_curve(look, base * 1.25, 0.1),
        smooth_step(smooth_noise(look, u, v, 0.3), 0.8),
    )
    color = mix_colors(color, tone_curve(look, (0.55, 0.18, 0.16), 0.2), 0.4 * np.exp(-veins / 0.03))
    yield GALLBLADDER, bladder, color, 0.15 * _dome(bladder, 0.14)


def _dome(distance: np.ndarray, width: float) -> np.ndarray:
    """Return a parabolic height, from 0 at the edge of an organ to 1 at `width` inside."""
    return 1 - np.clip(1 + distance / width, 0, 1) ** 2


def draw_blood(look: np.random.Generator, grid: Grid, image: np.ndarray) -> np.ndarray:
    """Draw blood stains over the image, which do not have a class of their own."""
    stains = smooth_noise(look, grid.u, grid.v, 0.35) - look.uniform(0.5, 1.1)
    return image * mix_colors((1.0, 1.0, 1.0), (0.6, 0.2, 0.2), 0.85 * smooth_step(stains, 0.12))


def shade_image(look: np.random.Generator, grid: Grid, image: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Shade a wet surface under the light of the endoscope.

    The shading has a diffuse part, and highlights where the surface reflects the lamp.
    """
    ripples = smooth_noise(look, grid.u, grid.v, 0.06, 2)
    slope_y, slope_x = np.gradient(height + 0.003 * ripples, grid.pixel)
    # The lamp is next to the lens, and the scene is close. The direction to the lamp therefore differs between pixels,
    # and so does the half-angle direction between lamp and lens, which determines the highlights.
    lamp_x, lamp_y = look.uniform(-0.25, 0.25, 2).tolist()

    def facing(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the cosine between the surface normal and the direction (x, y, 1)."""
        return (1 - slope_x * x - slope_y * y) / np.sqrt((slope_x**2 + slope_y**2 + 1) * (x**2 + y**2 + 1))

    diffuse = facing(lamp_x - 0.6 * grid.x, lamp_y - 0.6 * grid.y)
    shine = np.exp((facing(lamp_x - 0.8 * grid.x, lamp_y - 0.8 * grid.y) - 1) / look.uniform(0.003, 0.008))
    shine = shine * smooth_step(ripples - look.uniform(-0.1, 0.3), 0.3)
    image = image * (0.25 + 0.85 * np.clip(diffuse, 0, 1))[..., None]
    return mix_colors(image, (1.0, 0.97, 0.94), 0.85 * shine)


def _instruments(look: np.random.Generator, grid: Grid, frame: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (signed distance, colors) of one or two instruments.

    An instrument has a shaft from the border and a tip of two jaws.
    """
    side = look.uniform(0, 2 * np.pi)
    for number in range(look.integers(1, 3)):
        bearing = side + number * look.uniform(1.6, 3.2)
        motion = np.sin(frame * look.uniform(0.15, 0.35, 3) + look.uniform(0, 2 * np.pi, 3)).tolist()
        tip = look.uniform(-0.18, 0.18, 2).tolist()
        direction = bearing + 0.1 * motion[2]
        # s increases outward from the tip, t is perpendicular to the shaft.
        dx, dy = grid.x - tip[0] - 0.09 * motion[0], grid.y - tip[1] - 0.09 * motion[1]
        s = dx * math.cos(direction) + dy * math.sin(direction)
        t = dy * math.cos(direction) - dx * math.sin(direction)
        width, jaw = look.uniform(0.035, 0.055), look.uniform(0.14, 0.22)
        shaft = np.maximum(np.abs(t) - width, jaw - s)
        opening = (0.12 + 0.1 * motion[1]) * look.uniform(0.3, 1.2)
        lever = np.clip(s / jaw, 0, 1)
        blades = np.abs(np.abs(t) - opening * (1 - lever)) - width * (0.25 + 0.45 * lever)
        blades = np.maximum(blades, np.abs(s - jaw / 2) - jaw / 2)

        metal = tone_curve(look, (0.72, 0.73, 0.76), 0.12)
        sheath = metal * 0.95 if look.uniform() < 0.4 else tone_curve(look, (0.13, 0.13, 0.15), 0.4)
        profile = np.clip(t / width, -1, 1)
        gloss = np.exp(-(((profile - look.uniform(-0.5, 0.5)) / 0.16) ** 2))
        tube = (0.35 + 0.65 * np.sqrt(1 - profile**2))[..., None]
        tube = mix_colors(sheath * tube, (1.0, 1.0, 1.0), 0.6 * gloss)
        collar = np.abs(s - jaw - 0.02) < 0.015
        tube = np.where(collar[..., None], metal * (0.5 + 0.5 * gloss[..., None]), tube)
        ridges = 0.75 + 0.25 * np.sin(s / 0.012)
        steel = metal * (0.6 + 0.4 * ridges * (1 - np.abs(profile)))[..., None]
        yield np.minimum(shaft, blades), np.where((shaft < blades)[..., None], tube, steel)


def _shifted(distance: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shift an instrument's distance field down and right, to the position of its shadow."""
    rows, columns = size[0] // 24, size[1] // 32
    return np.pad(distance, ((rows, 0), (columns, 0)), mode="edge")[: size[0], : size[1]]


def _camera(
    look: np.random.Generator, here: np.random.Generator, grid: Grid, image: np.ndarray, frame: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add smoke, light falloff, the rim of the endoscope, white balance, exposure, and noise.

    Returns:
        The picture, uint8 (H, W, 3), and a bool mask (H, W) of the pixels that the rim covers.
    """
    amount = look.uniform(-0.3, 0.5) + 0.15 * math.sin(0.2 * frame + look.uniform(0, 6))
    drift = 0.03 * frame
    clouds = smooth_noise(look, grid.x + drift, grid.y - 0.5 * drift, 0.6)
    image = mix_colors(image, (0.72, 0.7, 0.7), min(max(amount, 0), 0.45) * smooth_step(clouds + 0.2, 0.9))

    radius = np.hypot(grid.x - look.uniform(-0.06, 0.06), grid.y - look.uniform(-0.06, 0.06))
    image = image * np.exp(-look.uniform(0.6, 1.6) * radius**2)[..., None]
    rim = look.uniform(0.54, 0.62) if look.uniform() < 0.4 else math.inf
    image = image * (1 - 0.97 * smooth_step(radius - rim, 0.012))[..., None]
    image = image * look.uniform(0.92, 1.08, 3).astype(np.float32) * look.uniform(1.0, 1.35)
    image = image + 0.012 * here.standard_normal(image.shape, np.float32)
    return (255 * np.clip(image, 0, 1) ** 0.9).astype(np.uint8), radius > rim
