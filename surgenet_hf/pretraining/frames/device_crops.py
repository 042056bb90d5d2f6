"""Crops of a whole batch, computed on the device. This is the GPU counterpart of `crops.crop_frame`.

All crops of one size are computed at once, each with its own parameters. The parameters stay on the device, so the
host never waits for it. Resizing and blurring multiply by one matrix per crop, flips reverse the rows of that matrix,
and random choices are masks. Values are rounded wherever PIL, which works on 8 bits, rounds them.
"""

import itertools
from collections.abc import Sequence

import torch

from .crops import BRIGHTNESS, CONTRAST, HUE, SOLARIZE_THRESHOLD, CropConfig, Crops

# Upper limit of pixels that are cropped at once, which bounds the memory. It is 64 frames of 1280x720. With the
# default settings, their crops take 1.3 GB in addition to 0.2 GB for the frames.
PIXELS_AT_ONCE = 64 * 1280 * 720
BLUR_PASSES = 3
BLUR_REACH = 2  # pixels on either side of the center of the box, enough for the largest sigma that is drawn


@torch.no_grad()
def crop_batch(images: Sequence[torch.Tensor], crops: torch.Tensor, config: CropConfig) -> list[torch.Tensor]:
    """Cut the crops of a batch of frames.

    The results equal those of `crop_frame` up to rounding.

    Args:
        images: B uint8 tensors (3, H, W) on one device, of any sizes. Frames of the same size are cropped together.
        crops: (B, N, 16), the stacked `Crops.to_array` of the frames. A pinned tensor is copied asynchronously. Boxes
            may have fractional pixels and must overlap their frame.
        config: number, sizes, and scales of the crops.

    Returns:
        N uint8 tensors (B, 3, size, size), the global crops first. See `normalize`.
    """
    device = images[0].device
    drawn = crops.to(device, non_blocking=True).transpose(0, 1)  # crops first, in the order of the result
    results: list[torch.Tensor] = []
    with torch.autocast(device.type, enabled=False):  # bfloat16 has too few bits for the products
        for size, group in itertools.groupby(config.sizes):
            ours = drawn[len(results) :][: len(list(group))]
            pixels = _resize_all(images, ours, size).flatten(0, 1)
            pixels = _change_colors(pixels, Crops.from_array(ours.flatten(0, 1)))
            results.extend(pixels.to(torch.uint8).unflatten(0, ours.shape[:2]))
    return results


def _resize_all(images: Sequence[torch.Tensor], crops: torch.Tensor, size: int) -> torch.Tensor:
    """Resize and flip n crops of one size for each of B frames.

    Args:
        images: B uint8 tensors (3, H, W).
        crops: (n, B, 16), see `Crops.to_array`.
        size: side of the crops in pixels.

    Returns:
        float32 (n, B, 3, size, size).
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    parts, order = [], []
    for (_, height, width), indices in by_shape.items():
        step = max(1, PIXELS_AT_ONCE // (height * width))
        for part in (indices[k : k + step] for k in range(0, len(indices), step)):
            frames = torch.stack([images[i] for i in part]).to(_product_dtype(images[0].device))
            drawn = crops if len(part) == len(images) else torch.stack([crops[:, i] for i in part], dim=1)
            parts.append(_resize(frames, Crops.from_array(drawn), size))
            order += part
    if len(parts) == 1:
        return parts[0]
    resized = torch.cat(parts, dim=1).unbind(1)
    return torch.stack([resized[order.index(i)] for i in range(len(images))], dim=1)


def _product_dtype(device: torch.device) -> torch.dtype:
    """Return half precision on CUDA, where it is fast, else float32.

    Half precision represents pixels exactly and weights with an error of at most 1/4096.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def _resize(frames: torch.Tensor, crops: Crops, size: int) -> torch.Tensor:
    """Resize n crops of each frame (B, 3, H, W) and return float32 (n, B, 3, size, size).

    All crops are resized by the same few operations, because a GPU would otherwise wait for the host to start them.
    """
    number, (height, width) = len(crops.flip), frames.shape[2:]
    left, top, right, bottom = crops.boxes.flatten(0, 1).unbind(-1)
    flip = crops.flip.flatten()
    columns = bicubic_rows(left, right, size, width, flip).unflatten(0, (number, -1))  # (n, B, size, W)
    rows = bicubic_rows(top, bottom, size, height, torch.zeros_like(flip)).unflatten(0, (number, -1))
    narrow = _along_rows(frames, columns.transpose(0, 1).flatten(1, 2))  # (B, 3, H, n * size)
    narrow = narrow.unflatten(-1, (number, size)).permute(3, 0, 1, 2, 4)
    return _along_columns(narrow, rows).float()


def _along_rows(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Resample the rows of images (B, 3, H, W) by weights (B, w, W), in the precision of the images."""
    narrow = images.flatten(1, 2) @ weights.to(images.dtype).mT
    return narrow.round_().clamp_(0, 255).unflatten(1, (3, -1))


def _along_columns(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Resample the columns of images (..., B, 3, H, W) by weights (..., B, h, H), in the precision of the images."""
    return (weights.to(images.dtype).unsqueeze(-3) @ images).round_().clamp_(0, 255)


def bicubic_rows(start: torch.Tensor, stop: torch.Tensor, size: int, length: int, flip: torch.Tensor) -> torch.Tensor:
    """Compute weights (B, size, length) that resize an interval of a line of `length` pixels to `size` pixels.

    The filter is PIL's antialiased bicubic (a = -0.5), whose support grows with the reduction factor. It reads only
    the pixels of the interval, which is extended outward to whole pixels.

    Args:
        start, stop: (B,) bounds of the intervals in pixels.
        size: number of pixels of the result.
        length: number of pixels of a line.
        flip: (B,) bool, whether to reverse the result.
    """
    scale = ((stop - start) / size)[:, None]
    target = torch.arange(size, device=start.device)
    target = torch.where(flip[:, None], size - 1 - target, target)
    center = start[:, None] + (target + 0.5) * scale
    pixel = torch.arange(length, device=start.device)
    x = (pixel + 0.5 - center[..., None]).abs_().div_(scale.clamp(min=1)[..., None])
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, far.masked_fill_(x >= 2, 0))
    inside = (pixel >= start[:, None].floor()) & (pixel < stop[:, None].ceil())
    weights *= inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def _change_colors(pixels: torch.Tensor, crops: Crops) -> torch.Tensor:
    """Apply color jitter, grayscale, blur, and solarization to M crops.

    Args:
        pixels: float32 (M, 3, h, w), integers from 0 to 255.
        crops: the parameters of the M crops.

    Returns:
        float32 (M, 3, h, w), integers from 0 to 255.
    """
    for operation in crops.order.unbind(-1):
        pixels = _jitter(pixels, operation, crops.factors.gather(1, operation[:, None])[:, 0])
    pixels = torch.where(_each(crops.gray), luma(pixels), pixels)
    pixels = _blur(pixels.to(_product_dtype(pixels.device)), crops.sigma)
    return torch.where(_each(crops.solarize) & (pixels >= SOLARIZE_THRESHOLD), 255 - pixels, pixels)


def _each(values: torch.Tensor) -> torch.Tensor:
    """Reshape values (M,) so that they broadcast to crops (M, 3, h, w)."""
    return values.view(-1, 1, 1, 1)


def _jitter(pixels: torch.Tensor, operation: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Apply to each crop the color operation that is next in its order.

    Brightness, contrast, and saturation blend the pixel with black, the mean gray, and the pixel's own gray. Hue is
    computed separately.

    Args:
        pixels: (M, 3, h, w).
        operation: (M,) one of the four operations.
        factor: (M,) factor of the operation.
    """
    operation, factor = _each(operation), _each(factor)
    gray = luma(pixels)
    mean = (gray.mean(dim=(2, 3), keepdim=True) + 0.5).floor_()
    anchor = torch.where(operation == CONTRAST, mean, gray).masked_fill_(operation == BRIGHTNESS, 0)
    is_hue = operation == HUE
    moved = (anchor + factor.masked_fill(is_hue, 1) * (pixels - anchor)).clamp_(0, 255).floor_()
    return torch.where(is_hue & (factor != 0), shift_hue(pixels, factor), moved)


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """Compute gray values (M, 1, h, w) of RGB (M, 3, h, w) like PIL.

    PIL uses integer arithmetic, which float32 reproduces exactly.
    """
    red, green, blue = pixels.split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor_()


def shift_hue(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Shift the hue by a fraction of the color circle, with 8-bit hue and saturation as in PIL.

    Args:
        pixels: (M, 3, h, w).
        factor: (M, 1, 1, 1), from -0.5 to 0.5.
    """
    value, darkest = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = value - darkest
    red, green, blue = ((value - pixels) / chroma.clamp(min=1)).split(1, dim=1)
    hue = torch.where(red == 0, blue - green, torch.where(green == 0, 2 + red - blue, 4 + green - red))
    hue = ((hue % 6 * 42.5).floor_() + (255 * factor).trunc()) % 256  # from 6 sectors to 255 steps
    saturation = (255 * chroma / value.clamp(min=1)).floor_() / 255
    sector = (hue * (6 / 255) + torch.arange(5, 0, -2, device=pixels.device).view(3, 1, 1)) % 6
    fall = torch.minimum(sector, 4 - sector).clamp_(0, 1)
    return (value - value * saturation * fall + 0.5).floor_()


def _blur(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur M square crops (M, 3, size, size), each with its own sigma (M,). A sigma of 0 changes nothing."""
    box = box_matrix(sigma, pixels.shape[-1])
    for _ in range(BLUR_PASSES):
        pixels = _along_rows(pixels, box)
    for _ in range(BLUR_PASSES):
        pixels = _along_columns(pixels, box)
    return pixels.float()


def box_matrix(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """Compute matrices (M, size, size) that average over a box of pixels.

    A box includes a fraction of one more pixel on each side. Applying a matrix three times equals PIL's GaussianBlur
    (Gwosdek et al., SSVM 2011). Beyond the border, the last pixel is repeated.

    Args:
        sigma: (M,) standard deviation of the three passes together, at most 2.4. A sigma of 0 gives the identity.
        size: number of pixels of a row or column.
    """
    variance = sigma**2 / BLUR_PASSES
    whole = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = (whole + part)[:, None, None]
    pixel = torch.arange(size, device=sigma.device)
    box = sigma.new_zeros(len(sigma), size, size)
    for offset in range(-BLUR_REACH, BLUR_REACH + 1):
        source = (pixel + offset).clamp_(0, size - 1)
        box += (radius + 1 - abs(offset)).clamp(0, 1) * (source[:, None] == pixel)
    return box / (2 * radius + 1)
