"""Reader for all frames and masks, from image files or from encoded images in memory.

A frame is an RGB PIL image with 8 bits per channel. PIL converts gray and palette images, CMYK, and 16-bit color PNG
files; transparency is dropped. Single-channel images with more than 8 bits are refused, because PIL would clip them to
white or black. Very small and very large images are refused too.

Functions on opened images (`open_frame`, `decode_frame`, ...) raise a ValueError that describes the problem. `naming`
adds the file name to such an error. `read_frame` and the other reading functions do both.
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

# Without this list, Pillow would try all its decoders whatever the suffix. It opens MPO files from cameras as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MIN_SIDE = 8  # pixels
MAX_PIXELS = 89_478_485  # above this, PIL only warns; it raises DecompressionBombError above twice as many

Source = Path | bytes | dict  # a dict is a cell of an image column in `datasets`

# Exceptions of PIL for damaged files: mostly OSError, SyntaxError for PNG, the others for TIFF and EXIF fields.
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
    """Return a cell of a `datasets` image column with the path of a file or its encoded bytes.

    Raises:
        UserError: the path is not valid Unicode.
    """
    if isinstance(source, bytes):
        return {"path": None, "bytes": source}
    return {"path": str(require_unicode(source)), "bytes": None}


def read_cell(cell: bytes | dict | None) -> bytes:
    """Return the encoded image of a table cell, reading its file if the cell holds only a path.

    Raises:
        OSError: the cell is empty, or its file cannot be read.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is not None:
        return content
    if not isinstance(cell, dict) or not cell.get("path"):
        raise OSError("the cell is empty")
    if "://" not in cell["path"]:
        return Path(cell["path"]).read_bytes()
    import fsspec  # opens the references of `datasets`: hf://, https://, members of archives

    with fsspec.open(cell["path"], "rb") as file:
        return file.read()


def read_frame(source: Source) -> Image.Image:
    """Read an upright RGB frame.

    Args:
        source: path of a file, an encoded image, or a cell with either.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read or cannot be used as a frame.
    """
    with naming(source):
        return decode_frame(open_frame(_content(source)))


def frame_size(source: Source) -> tuple[int, int]:
    """Return the (width, height) that `read_frame` would give, and check that the frame is readable.

    JPEG files are decoded at an eighth of their resolution. This is much faster and still detects truncated files.
    """
    with naming(source):
        image = open_frame(_content(source))
        width, height = image.size
        image.draft("RGB", (width // 8, height // 8))
        decode_frame(image)
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def read_upright(source: Source) -> Image.Image:
    """Read any image, such as a mask, in its own mode, and rotate it by its orientation tag."""
    with naming(source):
        return _load(open_image(_content(source)))


def read_mask(source: Source) -> np.ndarray:
    """Read the raw values of an upright mask as uint8 (H, W).

    Arguments and errors are those of `read_frame`.
    """
    mask = read_upright(source)
    with naming(source):
        return raw_values(mask)


def raw_values(mask: Image.Image) -> np.ndarray:
    """Return the raw values of a mask as uint8 (H, W).

    A value is the gray level, the palette index, or the common value of three equal channels. Alpha is ignored.

    Raises:
        UserError: the channels differ, or a value is above 255.
    """
    bands = mask.split()
    if mask.mode in ("RGB", "RGBA") and len({band.tobytes() for band in bands[:3]}) > 1:
        raise UserError(
            "has color channels that differ; expected class ids (0, 1, 2, ..., or 255 for ignore) in a single channel "
            "or the same ids in every channel. Convert colors to ids first"
        )
    values = np.asarray(bands[0])
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 255):
        raise UserError(f"contains values from {values.min()} to {values.max()}, but class ids go from 0 to 255")
    return values.astype(np.uint8, copy=False)


def check_images(paths: list[Path]) -> None:
    """Read every frame once at low resolution, with the errors of `read_frame`."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        sizes = pool.imap(frame_size, paths)
        for _ in tqdm(sizes, desc="Checking frames", total=len(paths), unit="frame"):
            pass


class DecodeFrames:
    """Dataset transform that decodes the column "image".

    It is a class, so that worker processes can pickle it.
    """

    def __call__(self, batch: dict) -> dict:
        if "image" in batch:  # `select_columns` may have dropped the column
            batch["image"] = [read_frame(cell) for cell in batch["image"]]
        return batch


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Prefix errors about an image with its name, and convert file system errors to `UserError`.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read, or the block raised a ValueError about its content.
    """
    name = source.get("path") if isinstance(source, dict) else source if isinstance(source, Path) else None
    name = name or "an image in memory"
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(f"{name} does not exist; restore it or remove it from the data") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error}); check its permissions, or replace it") from error
    except ValueError as error:
        raise UserError(f"{name} {error}") from error


def open_image(content: bytes) -> Image.Image:
    """Open an encoded image without decoding it.

    Raises:
        UserError: the content is not an image, or has more than `MAX_PIXELS`.
    """
    try:
        with _damage():
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        found = f"{image.width}x{image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        image, found = None, f"more than {2 * MAX_PIXELS:,}"
    if image is None or image.width * image.height > MAX_PIXELS:
        raise UserError(f"has {found} pixels; the maximum is {MAX_PIXELS:,}. Reduce its size")
    return image


def open_frame(content: bytes) -> Image.Image:
    """Open an encoded frame without decoding it.

    Raises:
        UserError: the content is not an image, or cannot be used as a frame.
    """
    image = open_image(content)
    require_frame(image)
    return image


def require_frame(image: Image.Image) -> None:
    """Check that an image can be used as a frame.

    Raises:
        UserError: the image is too small, is a stack of several images, or has more than 8 bits per channel.
    """
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"has {image.width}x{image.height} pixels; a frame needs at least {MIN_SIDE} on each side: remove it or "
            "replace it"
        )
    if image.format == "TIFF" and image.n_frames > 1:  # PIL would silently read only the first page
        raise UserError(
            f"is a stack of {image.n_frames} images; expected a single image. Save each image as a separate file"
        )
    if image.mode.startswith(("I", "F")):  # PIL would clip values at 255
        raise UserError(
            f"has more than 8 bits per channel (mode {image.mode}); expected 8. Scale its values to 0 to 255 and save "
            "it with 8 bits per channel"
        )


def decode_frame(image: Image.Image, upright: bool = True) -> Image.Image:
    """Decode an opened frame to RGB.

    Args:
        image: opened frame.
        upright: whether to rotate the frame by its orientation tag.

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
    """Convert the exceptions that PIL raises for damaged images to `UserError`.

    The block must contain only PIL calls.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise UserError(
            f"cannot be read as an image (its format is not known, expected {', '.join(FORMATS)}); replace it or "
            "remove it"
        ) from error
    except _DAMAGE as error:
        raise UserError(f"cannot be read as an image ({error}); replace it or remove it") from error
