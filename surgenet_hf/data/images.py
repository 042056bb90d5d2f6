"""The one reader of frames and masks: image files, or encoded images in memory.

A frame is returned as an RGB PIL image with 8 bits per channel. Grayscale and palette images, CMYK, and 16-bit color
PNGs are converted as PIL does it; transparency is dropped. Frames that PIL would convert to pure white or black
(more than 8 bits in a single channel) are refused, as are frames that are very small or very large.

Functions on opened images (`open_frame`, `decode_frame`, ...) raise a ValueError that says what is wrong; `naming`
puts the name of the file before it. `read_frame` and the other functions that read do both.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from ..errors import MissingFileError, UserError
from .names import require_unicode

# Pillow would try all its decoders otherwise, whatever the suffix. MPO files of cameras are opened as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MIN_SIDE = 8  # pixels
MAX_PIXELS = 89_478_485  # above this PIL warns of a decompression bomb; it raises an error only above twice as many

Source = Path | bytes | dict  # a dict is a cell of an image column of `datasets`

# What PIL raises about damaged files: mostly OSError, SyntaxError for PNG, and the others for TIFF and EXIF fields.
_DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def to_cell(source: Path | bytes) -> dict:
    """Return the cell of an image column of `datasets` that holds the path of a file or its encoded bytes."""
    if isinstance(source, bytes):
        return {"path": None, "bytes": source}
    return {"path": str(require_unicode(source)), "bytes": None}


def read_cell(cell: bytes | dict | None) -> bytes:
    """Read the encoded image in a cell of a table: its bytes, or those of the file that it names.

    Raises:
        OSError: the cell is empty, or its file cannot be read.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is not None:
        return content
    if cell is None or not cell.get("path"):
        raise OSError("the cell is empty")
    if "://" not in cell["path"]:
        return Path(cell["path"]).read_bytes()
    import fsspec  # reads what `datasets` refers to: hf://, https://, members of archives

    with fsspec.open(cell["path"], "rb") as file:
        return file.read()


def read_frame(source: Source) -> Image.Image:
    """Read an upright RGB frame.

    Args:
        source: path of a file, an encoded image, or a cell with one of them.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file cannot be read or cannot be used as a frame.
    """
    with naming(source):
        return decode_frame(open_frame(_content(source)))


def frame_size(source: Source) -> tuple[int, int]:
    """Return the (width, height) of the frame that `read_frame` gives, after a check that it can be read.

    JPEG is decoded at an eighth of its resolution. That is much faster, and still finds truncated files.
    """
    with naming(source):
        image = open_frame(_content(source))
        width, height = image.size
        image.draft("RGB", (width // 8, height // 8))
        decode_frame(image)
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def read_upright(source: Source) -> Image.Image:
    """Read any image, such as a mask, in its own mode, turned as its orientation tag says."""
    with naming(source):
        return _load(open_image(_content(source)))


def read_mask(source: Source) -> np.ndarray:
    """Read the raw values (H, W), uint8, of an upright mask; arguments and errors as in `read_frame`."""
    mask = read_upright(source)
    with naming(source):
        return raw_values(mask)


def raw_values(mask: Image.Image) -> np.ndarray:
    """Return the raw values (H, W), uint8, of a mask: gray, palette index, or the value of three equal channels.

    Alpha is ignored.

    Raises:
        UserError: the channels differ, or a value is above 255.
    """
    bands = mask.split()
    if mask.mode in ("RGB", "RGBA") and len({band.tobytes() for band in bands[:3]}) > 1:
        raise UserError(
            "has color channels that differ, but a mask must hold class ids (0, 1, 2, ... and 255 for ignore): "
            "the same value in every channel, or a single channel; turn colors into ids first"
        )
    values = np.asarray(bands[0])
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 255):
        raise UserError(f"holds values from {values.min()} to {values.max()}, but class ids go from 0 to 255")
    return values.astype(np.uint8, copy=False)


def check_images(paths: list[Path]) -> None:
    """Read every frame once, in low resolution; errors as in `read_frame`."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        sizes = pool.imap(frame_size, paths)
        for _ in tqdm(sizes, desc="Checking frames", total=len(paths), unit="frame"):
            pass


class DecodeFrames:
    """Transform of a dataset that decodes the column "image"; a class, so that workers can pickle it."""

    def __call__(self, batch: dict) -> dict:
        if "image" in batch:  # not after select_columns without it
            batch["image"] = [read_frame(cell) for cell in batch["image"]]
        return batch


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Put the name of an image before the errors about it, and turn those of the file system into ours.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file cannot be read, or the block raised a ValueError about its content.
    """
    name = source.get("path") if isinstance(source, dict) else source if isinstance(source, Path) else None
    name = name or "an image in memory"
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(f"{name} does not exist; put it back or remove it from the data") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error}); check its permissions, or replace it") from error
    except ValueError as error:
        raise UserError(f"{name} {error}") from error


def open_image(content: bytes) -> Image.Image:
    """Open an encoded image without decoding it.

    Raises:
        UserError: not an image, or one with more than `MAX_PIXELS`.
    """
    try:
        with _damage():
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        found = f"{image.width}x{image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        image, found = None, f"more than {2 * MAX_PIXELS:,}"
    if image is None or image.width * image.height > MAX_PIXELS:
        raise UserError(f"has {found} pixels; at most {MAX_PIXELS:,} are read: make it smaller")
    return image


def open_frame(content: bytes) -> Image.Image:
    """Open an encoded frame without decoding it.

    Raises:
        UserError: not an image, or one that cannot be used as a frame.
    """
    image = open_image(content)
    require_frame(image)
    return image


def require_frame(image: Image.Image) -> None:
    """Raise `UserError` if an image cannot be used as a frame."""
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"has {image.width}x{image.height} pixels; a frame needs at least {MIN_SIDE} on each side: remove it or "
            "replace it"
        )
    if image.format == "TIFF" and image.n_frames > 1:  # PIL would read the first page and say nothing
        raise UserError(
            f"is a stack of {image.n_frames} images, expected a single one: save each of them as a file of its own"
        )
    if image.mode.startswith(("I", "F")):  # PIL would clip its values at 255
        raise UserError(
            f"has more than 8 bits per channel (mode {image.mode}); expected 8: scale its values to 0 to 255 and save "
            "it with 8 bits"
        )


def decode_frame(image: Image.Image, upright: bool = True) -> Image.Image:
    """Decode an opened frame to RGB.

    Args:
        image: the opened frame.
        upright: turn it as its orientation tag says.

    Raises:
        UserError: the image is damaged.
    """
    image = _load(image, upright)
    with _damage():
        return image if image.mode == "RGB" else image.convert("RGB")


def _load(image: Image.Image, upright: bool = True) -> Image.Image:
    with _damage():
        image.load()
        if upright and image.getexif().get(ExifTags.Base.Orientation) is not None:
            return ImageOps.exif_transpose(image)
        return image


def _content(source: Source) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else read_cell(source)


@contextmanager
def _damage() -> Iterator[None]:
    """Turn what PIL raises about a damaged image into a ValueError. Only PIL's own work may run in the block."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise UserError(
            f"cannot be read as an image (its format is not known, expected {', '.join(FORMATS)}); replace it or "
            "remove it"
        ) from error
    except _DAMAGE as error:
        raise UserError(f"cannot be read as an image ({error}); replace it or remove it") from error
