"""Validation and decoding of uploads, and output files for visitors.

All files are in gradio's temporary folder, which `keeping` cleans.
"""

import errno
import math
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from html import escape
from pathlib import Path

import av
import gradio as gr
import numpy as np
from gradio import processing_utils
from gradio.utils import get_upload_folder
from PIL import Image, ImageOps

from surgenet_hf.data.video import iter_frames

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_IMAGE_BYTES = 20 * 2**20
MAX_IMAGE_PIXELS = 50_000_000  # size of the uploaded file; enough for phone cameras
MIN_SIDE, MAX_SIDE = 32, 1280  # pixels; larger pictures are resized to a longer side of MAX_SIDE
_decoding = threading.Lock()  # one picture at a time, because a large one needs several hundred megabytes

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv")
# FFmpeg's names of these containers, without playlists, which would make it open other files and addresses
VIDEO_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,asf"
MAX_UPLOAD_BYTES = 100 * 2**20
MAX_SECONDS = 600
MAX_VIDEO_SIDE = 3840
MAX_RATE = 250  # frames per second of a clip, limited because skipped frames are decoded, too
MAX_FRAMES = 600  # processed frames per clip
FRAME_SIDE = 640  # pixels, longer side of a clip's frames on the page and in the result

FULL = "The disk of this server is full. Please try again in half an hour, when older files have been deleted."


class Refused(gr.Error):
    """Error message for the visitor that states what was found and what is expected. The text is escaped for HTML."""

    def __init__(self, message: str):
        self.text = message
        super().__init__(escape(message, quote=False), title="Please check", print_exception=False)


@contextmanager
def full_disk():
    """Show a message to the visitor when the server's disk is full, instead of the operating system's error.

    Raises:
        Refused: the disk is full.
    """
    try:
        yield
    except Exception as error:
        # gradio wraps the error if gradio itself writes the result
        if any(isinstance(each, OSError) and each.errno == errno.ENOSPC for each in (error, error.__cause__)):
            raise Refused(FULL) from error
        raise


async def _refuse_address(*args, **kwargs):
    raise Refused("Files are not downloaded from URLs. Please upload the file itself.")


# A request can contain an address instead of a file, which gradio would download before it calls our functions.
processing_utils.async_ssrf_protected_download = _refuse_address


def _path(upload: dict | None) -> Path:
    """Return the path of an uploaded file.

    A request can name any path on the server. gradio checks the path only if the request marks it as a file in `meta`.

    Raises:
        Refused: there is no upload, or the path is not a file in gradio's folder.
    """
    if not upload:
        raise Refused("Please choose an example or upload a file first.")
    named = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(named, str) or "\0" in named:  # e.g. the content of the file as text
        raise Refused("Please upload the file itself.")
    path = Path(named).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise Refused("This file is not in the upload folder, or it was deleted. Please upload the file itself.")
    return path


def shorten(text: str, length: int = 80) -> str:
    """Shorten a text that a visitor typed, for a message."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def read_number(value, low: float, high: float, what: str) -> float:
    """Convert a value to a number, clipped to the range from `low` to `high`.

    Raises:
        Refused: the value is not a number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise Refused(f"{what} is {str(value)[:40]!r}; please give a number from {low:g} to {high:g}.")
    return min(max(number, low), high)


def read_image(upload: dict | None) -> Image.Image:
    """Read an uploaded picture as upright RGB with a longer side of at most `MAX_SIDE` pixels.

    The returned image has the original upright size (width, height) in `info["uploaded_size"]`.

    Args:
        upload: upload as gradio describes it to functions with `preprocess=False`. With preprocessing, gradio would
            open the file first, and its messages are not suitable for clinicians.

    Raises:
        Refused: there is no file, or it is too large, in another format, damaged, or not a picture.
    """
    path = _path(upload)
    formats = "JPEG, PNG, WebP, or BMP"
    if path.stat().st_size > MAX_IMAGE_BYTES:
        size = path.stat().st_size / 2**20
        raise Refused(f"This file has {size:.0f} MB; images may have up to {MAX_IMAGE_BYTES // 2**20} MB.")
    try:
        image = Image.open(path, formats=IMAGE_FORMATS)  # reads only the header
        width, height = image.size
    except Image.DecompressionBombError as error:
        raise Refused(
            f"This image has far more than the {MAX_IMAGE_PIXELS // 10**6} million pixels allowed."
        ) from error
    except Exception as error:  # decoders raise many kinds of errors
        raise Refused(f"This file cannot be read as an image. Please upload a {formats} file.") from error
    if width * height > MAX_IMAGE_PIXELS:
        raise Refused(
            f"This image has {width} x {height} pixels; up to {MAX_IMAGE_PIXELS // 10**6} million pixels are allowed. "
            "Please upload a smaller image."
        )
    if min(width, height) < MIN_SIDE:
        raise Refused(f"This image has {width} x {height} pixels; each side must have at least {MIN_SIDE}.")
    try:
        image = _decode(image)
    except Exception as error:
        raise Refused(f"This image is damaged or incomplete. Please save it again as a {formats} file.") from error
    upright = (width, height) if (image.width > image.height) == (width > height) else (height, width)
    if min(image.size) < MIN_SIDE:
        raise Refused(
            f"This image of {width} x {height} pixels is too narrow: resized to {image.width} x {image.height}, it "
            f"has a side of less than {MIN_SIDE} pixels. Please crop its longer side."
        )
    image.info = {"uploaded_size": upright}
    return image


def _decode(image: Image.Image) -> Image.Image:
    """Decode an opened picture to upright RGB with a longer side of at most `MAX_SIDE` pixels."""
    with _decoding:
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode != "RGB":  # for RGB, this would only make a copy
            image = image.convert("RGB")
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        return image


def check_video(upload: dict | None) -> tuple[Path, float]:
    """Check the format and size of an uploaded clip.

    Returns:
        The path of the clip, and its length in seconds.

    Raises:
        Refused: the upload is not a valid clip.
    """
    path = _path(upload)
    formats = "MP4, MOV, MKV, WebM, AVI, MPEG, or WMV"
    if path.stat().st_size > MAX_UPLOAD_BYTES:
        size = path.stat().st_size / 2**20
        raise Refused(f"This clip has {size:.0f} MB; clips may have up to {MAX_UPLOAD_BYTES // 2**20} MB.")
    whitelist = {"format_whitelist": VIDEO_CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(str(path), options=whitelist) as container:
            stream = container.streams.best("video")
            size = (stream.width, stream.height) if stream else (0, 0)
            seconds = float((stream.duration or 0) * stream.time_base) if stream else 0.0
            seconds = seconds or (container.duration or 0) / av.time_base
            rate = _highest_rate(container, stream) if stream else 0
    except Exception as error:  # demuxers raise many kinds of errors
        raise Refused(f"This file cannot be read as a video clip. Please upload an {formats} file.") from error
    if stream is None:
        raise Refused(f"This file contains only sound and no video. Please upload an {formats} file.")
    if min(size) < MIN_SIDE or max(size) > MAX_VIDEO_SIDE:
        raise Refused(
            f"This clip has frames of {size[0]} x {size[1]} pixels; each side must have {MIN_SIDE} to "
            f"{MAX_VIDEO_SIDE} pixels. Please export it with another resolution."
        )
    if not 0 < seconds <= MAX_SECONDS:
        length = f"lasts {seconds / 60:.1f} minutes" if seconds else "does not state its duration"
        raise Refused(
            f"This clip {length}; up to {MAX_SECONDS // 60} minutes are allowed. Please export a shorter clip."
        )
    if rate > MAX_RATE:
        raise Refused(
            f"This clip has {rate} frames in one second; up to {MAX_RATE} are allowed. Please export it at a lower "
            "frame rate."
        )
    return path, seconds


def _highest_rate(container, stream) -> int:
    """Return the maximum number of frames in one second of a clip, without decoding them."""
    counts = Counter()
    try:
        for packet in container.demux(stream):
            if packet.size:  # the last packet is empty
                counts[int((packet.pts or 0) * packet.time_base)] += 1
    except av.FFmpegError:  # an incomplete clip; decoding reports where it ends
        pass
    return max(counts.values(), default=0)


def read_frames(path: Path, frames_per_second: float) -> Iterator[Image.Image]:
    """Read the frames of a clip as RGB pictures.

    The longer side is at most `FRAME_SIDE` pixels, and the number of frames at most `MAX_FRAMES`.

    Args:
        path: path of the clip.
        frames_per_second: rate of the returned frames.

    Raises:
        Refused: the clip is incomplete, cannot be decoded, or has larger pictures than its header states.
    """
    frames = iter_frames(path, frames_per_second, FRAME_SIDE, max_decoded_side=MAX_VIDEO_SIDE)
    for number in range(MAX_FRAMES):
        try:
            _, image = next(frames)
        except StopIteration:
            return
        except Exception as error:
            raise Refused(
                f"This clip is damaged or has frames of more than {MAX_VIDEO_SIDE} x {MAX_VIDEO_SIDE} pixels: it "
                f"cannot be read beyond {number / frames_per_second:.1f} s. Please export it again, or cut it before "
                "that time."
            ) from error
        yield image


def new_file(name: str) -> Path:
    """Return a path in a new subfolder of gradio's temporary folder."""
    os.makedirs(get_upload_folder(), exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="result-", dir=get_upload_folder())) / name


def write_mask(class_map: np.ndarray, colors) -> Path:
    """Write a class map (H, W) as a lossless PNG, and return its path.

    The pixel values are the class ids. The palette is only for viewing.
    """
    image = Image.fromarray(class_map)
    image.putpalette([value for color in colors for value in color])
    path = new_file("mask.png")
    image.save(path)
    return path


@contextmanager
def film(frames_per_second: float):
    """Write an H.264 clip frame by frame.

    The file exists after the block ends. If the block raises an error or is abandoned, no file remains.

    Args:
        frames_per_second: frame rate of the clip.

    Yields:
        A function that adds a frame uint8 (H, W, 3), and the path of the clip. All frames have the same size.
    """
    path = new_file("result.mp4")
    stream = None

    def add(picture: np.ndarray) -> None:
        nonlocal stream
        height, width = (side - side % 2 for side in picture.shape[:2])  # the pixel format requires even sides
        if stream is None:
            stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"preset": "veryfast", "crf": "23"}
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        container.mux(stream.encode(frame))

    try:
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            yield add, path
            container.mux(stream.encode())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
