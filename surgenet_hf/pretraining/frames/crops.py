"""Multi-crop augmentation of DINO (Caron et al. 2021): random draws, and crops on the CPU.

`crop_frame` makes the crops of one frame in a worker. `device_crops.crop_batch` makes those of a whole batch on a GPU.
Both use the same draws.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torchvision.transforms import functional as F

from ..arguments import NUM_GLOBAL_CROPS, CropConfig

# Probabilities and ranges of the original code. The color operations are applied in random order. The first global
# crop is always blurred, and the second rarely is. Only the second may be solarized.
FLIP = 0.5
ASPECT_RATIO = (3 / 4, 4 / 3)
JITTER = 0.8
JITTER_LOW, JITTER_HIGH = (0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1)
NO_JITTER = (1.0, 1.0, 1.0, 0.0)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GRAYSCALE = 0.2
BLUR_FIRST, BLUR_SECOND, BLUR_LOCAL = 1.0, 0.1, 0.5
BLUR_SIGMA = (0.1, 2.0)
SOLARIZE_SECOND = 0.2
SOLARIZE_THRESHOLD = 128

ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

_TRIES = 10  # attempts to fit a box into the frame


class Crops(NamedTuple):
    """Parameters of the N crops of a frame.

    Fields are arrays, or tensors with leading batch dimensions.
    """

    boxes: Any  # (N, 4): left, top, right, bottom in pixels of the frame
    flip: Any  # (N,) bool
    order: Any  # (N, 4) int: permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE
    factors: Any  # (N, 4): factors indexed by these operations; NO_JITTER leaves colors unchanged
    gray: Any  # (N,) bool
    sigma: Any  # (N,): standard deviation of the blur in pixels of the crop; 0 for no blur
    solarize: Any  # (N,) bool

    def to_array(self) -> np.ndarray:
        """Pack all fields into one float32 array (N, 16) for transport. `np.stack` combines arrays to a batch."""
        columns = [x if x.ndim == 2 else x[:, None] for x in self]
        return np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")

    @classmethod
    def from_array(cls, array: np.ndarray | torch.Tensor) -> "Crops":
        """Unpack an array or tensor (..., N, 16) with any leading dimensions."""
        order = array[..., 5:9]
        order = order.long() if isinstance(array, torch.Tensor) else order.astype(int)
        flip, gray, solarize = (array[..., i] > 0 for i in (4, 13, 15))
        return cls(array[..., :4], flip, order, array[..., 9:13], gray, array[..., 14], solarize)


def draw_crops(size: tuple[int, int], config: CropConfig, rng: np.random.Generator) -> Crops:
    """Draw the crops of one frame from the distribution of the original code.

    Args:
        size: (width, height) of the frame in pixels. For a frame that is decoded at a smaller scale, draw for the full
            size and scale the boxes: `crops._replace(boxes=crops.boxes * scale)`.
        config: number, sizes, and scales of the crops.
        rng: the only source of randomness. The number of draws depends on `config` alone.
    """
    number = len(config.sizes)
    num_local = config.local_crops_number
    boxes = [
        _draw_boxes(size, config.global_crops_scale, NUM_GLOBAL_CROPS, rng),
        _draw_boxes(size, config.local_crops_scale, num_local, rng),
    ]
    flip = rng.random(number) < FLIP
    jitter = rng.random((number, 1)) < JITTER
    order = rng.permuted(np.tile(np.arange(4), (number, 1)), axis=1)
    factors = np.where(jitter, rng.uniform(JITTER_LOW, JITTER_HIGH, (number, 4)), NO_JITTER)
    gray = rng.random(number) < GRAYSCALE
    blur = rng.random(number) < [BLUR_FIRST, BLUR_SECOND] + [BLUR_LOCAL] * num_local
    sigma = np.where(blur, rng.uniform(*BLUR_SIGMA, number), 0.0)
    solarize = rng.random(number) < [0.0, SOLARIZE_SECOND] + [0.0] * num_local
    return Crops(np.concatenate(boxes), flip, order, factors, gray, sigma, solarize)


def _draw_boxes(size: tuple[int, int], scale: Sequence[float], number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw boxes (number, 4) of whole pixels like torchvision's RandomResizedCrop.

    The result is the first of ten boxes of random area and aspect ratio that fits into the frame. If none fits, it is
    the largest central box whose aspect ratio is allowed.

    Args:
        size: (width, height) of the frame in pixels.
        scale: smallest and largest fraction of the frame's area.
        number: number of boxes.
        rng: source of randomness.
    """
    width, height = size
    area = width * height * rng.uniform(*scale, (number, _TRIES))
    ratio = np.exp(rng.uniform(*np.log(ASPECT_RATIO), (number, _TRIES)))
    place = rng.random((number, 2))
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    chosen = np.arange(number), fits.argmax(axis=1)
    shape = np.stack([widths[chosen], heights[chosen]], axis=1)
    origin = np.floor(place * ([width, height] - shape + 1))
    # Python's round to integers, as in torchvision
    low, high = ASPECT_RATIO
    fallback = np.array([min(width, round(height * high)), min(height, round(width / low))])
    fallen = ~fits.any(axis=1, keepdims=True)
    shape = np.where(fallen, fallback, shape)
    origin = np.where(fallen, ([width, height] - fallback) // 2, origin)
    return np.concatenate([origin, origin + shape], axis=1)


def crop_frame(image: Image.Image, crops: Crops, config: CropConfig) -> list[torch.Tensor]:
    """Cut the crops of a frame with torchvision's transforms of PIL images.

    Only resizing uses torch, which is many times faster than PIL. Few values differ from PIL's, by one gray level. In
    an enlarged crop, one of 100,000 values differs by two.

    Args:
        image: RGB image. Convert other modes first.
        crops: boxes must be inside the frame. Boxes with fractional pixels are cut like PIL's `resize(box=)`.
        config: number, sizes, and scales of the crops.

    Returns:
        N uint8 tensors (3, size, size), the global crops first. See `normalize`.
    """
    pixels = F.pil_to_tensor(image)
    return [
        F.pil_to_tensor(_change_colors(_resize_box(image, pixels, crops.boxes[i], size), crops, i))
        for i, size in enumerate(config.sizes)
    ]


def _resize_box(image: Image.Image, pixels: torch.Tensor, box: np.ndarray, size: int) -> Image.Image:
    """Resize a box of a frame to (size, size) with antialiased bicubic interpolation.

    Args:
        image: the frame.
        pixels: the same frame as a tensor (3, H, W).
        box: (4,) left, top, right, bottom in pixels.
        size: side of the result in pixels.
    """
    outer = [*np.floor(box[:2]).astype(int).tolist(), *np.ceil(box[2:]).astype(int).tolist()]
    left, top, right, bottom = outer
    if (box != outer).any():
        inner = (box - [left, top, left, top]).tolist()
        return image.crop(outer).resize((size, size), Image.Resampling.BICUBIC, box=inner)
    # Cut before resizing, because pixels outside the box must not contribute to the crop.
    resized = nn.functional.interpolate(
        pixels[None, :, top:bottom, left:right], (size, size), mode="bicubic", antialias=True
    )
    return Image.fromarray(resized[0].permute(1, 2, 0).numpy())


def _change_colors(image: Image.Image, crops: Crops, i: int) -> Image.Image:
    """Apply the drawn flip, color jitter, grayscale, blur, and solarization to crop i."""
    if crops.flip[i]:
        image = F.hflip(image)
    for operation in crops.order[i]:
        factor = float(crops.factors[i, operation])
        if factor != NO_JITTER[operation]:
            image = ADJUST[operation](image, factor)
    if crops.gray[i]:
        image = F.to_grayscale(image, 3)
    if crops.sigma[i]:
        image = image.filter(ImageFilter.GaussianBlur(float(crops.sigma[i])))
    return F.solarize(image, SOLARIZE_THRESHOLD) if crops.solarize[i] else image


def normalize(
    crops: Sequence[torch.Tensor], mean: Sequence[float] | torch.Tensor, std: Sequence[float] | torch.Tensor
) -> list[torch.Tensor]:
    """Normalize crops with values from 0 to 255 to model inputs: (crop / 255 - mean) / std.

    Args:
        crops: N tensors (..., 3, h, w) from `crop_frame` or `crop_batch`, on any device.
        mean, std: mean and standard deviation of the three channels, for values from 0 to 1.

    Returns:
        N float32 tensors of the same shapes.
    """
    # Copy asynchronously, so that the host does not wait for the device.
    mean, std = (
        torch.as_tensor(x, dtype=torch.float32).mul(255).view(3, 1, 1).to(crops[0].device, non_blocking=True)
        for x in (mean, std)
    )
    return [(crop - mean) / std for crop in crops]
