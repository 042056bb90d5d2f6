import io
import struct
import zlib

import numpy as np
import pytest
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from surgenet_hf.data.base import Sample, build_splits
from surgenet_hf.data.images import MAX_PIXELS, check_images, frame_size, read_frame, to_cell
from surgenet_hf.data.masks import count_values, lookup_table

WIDTH, HEIGHT = 24, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def _encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _png(width, height, depth, color_type, data):
    """Return a PNG of a kind that PIL does not write, or one with a false size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _rows(samples):
    """Return the rows of a segmentation dataset and of a classification dataset with these frames."""
    frames = [Sample(sample.image, 0, sample.video, sample.frame) for sample in samples]
    segmentation = build_splits({"train": samples}, lookup_table({0: 0}))["train"]
    return segmentation, build_splits({"train": frames})["train"]


def test_a_stack_of_images_is_refused(tmp_path):
    """Test that an image stack, such as a volume, is refused.

    PIL alone would read only the first page.
    """
    pages = [Image.fromarray(PIXELS)] * 3
    pages[0].save(tmp_path / "volume.tif", save_all=True, append_images=pages[1:])
    for read in (read_frame, frame_size):
        with pytest.raises(ValueError, match=r"volume\.tif is a stack of 3 images; expected a single image"):
            read(tmp_path / "volume.tif")
    pages[0].save(tmp_path / "single.tif")
    assert np.array_equal(read_frame(tmp_path / "single.tif"), PIXELS)


def _normal_frames():
    rgb = Image.fromarray(PIXELS)
    for mode in ("RGB", "L", "1", "LA", "RGBA", "P"):
        yield mode, _encode(rgb.convert(mode))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(PIXELS[..., 0]))
    yield "RGBA with transparency", _encode(alpha)
    yield "P with a transparent index", _encode(rgb.convert("P"), transparency=3)
    yield "P with transparency of every index", _encode(rgb.convert("P"), transparency=bytes(range(256)))
    yield "16-bit RGB", _png(4 * 2, 8, 16, 2, b"".join(b"\0" + PIXELS[y].tobytes()[:48] for y in range(8)))
    for mode in ("RGB", "L", "CMYK"):
        yield f"JPEG {mode}", _encode(rgb.convert(mode), "JPEG")
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"JPEG turned {orientation}", _encode(rgb, "JPEG", exif=exif)
        yield f"PNG turned {orientation}", _encode(rgb, exif=exif)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in _normal_frames()])
def test_frames_are_decoded_as_datasets_does(tmp_path, content):
    path = tmp_path / "frame.png"
    path.write_bytes(content)
    expected = ImageFeature(mode="RGB").decode_example({"path": str(path), "bytes": None})
    sample = Sample(path, _encode(Image.new("L", expected.size)), "v", 0)
    for source in (path, content, to_cell(path)):
        frame = read_frame(source)
        assert (frame.mode, frame.size, frame.tobytes()) == ("RGB", expected.size, expected.tobytes())
        assert frame_size(source) == expected.size
    for rows in _rows([sample]):
        assert rows[0]["image"].tobytes() == expected.tobytes()
    count_values([sample])


def _deep():
    yield "I;16", _encode(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257))
    yield "I", _encode(Image.fromarray(PIXELS[..., 0].astype(np.int32)), "TIFF")
    yield "F", _encode(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF")


REFUSED = [
    *[(content, rf"has more than 8 bits per channel \(mode {mode}\); expected 8. Scale") for mode, content in _deep()],
    (_encode(Image.new("RGB", (1, 1))), "has 1x1 pixels; a frame needs at least 8 on each side"),
    (_encode(Image.new("RGB", (64, 7))), "has 64x7 pixels; a frame needs at least 8 on each side"),
    (_png(20_000, 20_000, 8, 2, b""), rf"has more than .* pixels; the maximum is {MAX_PIXELS:,}. Reduce its size"),
    (_png(10_000, 10_000, 8, 2, b""), rf"has 10000x10000 pixels; the maximum is {MAX_PIXELS:,}. Reduce its size"),
    (_encode(Image.fromarray(PIXELS))[:-60], "cannot be read as an image .*truncated.*; replace it or remove it"),
    (_encode(Image.fromarray(PIXELS), "JPEG")[:-60], "cannot be read as an image .*truncated.*; replace it"),
    (b"", "cannot be read as an image .*its format is not known"),
    (b"no picture", "cannot be read as an image .*its format is not known, expected JPEG, PNG, WEBP, BMP, TIFF"),
    *[
        (_encode(Image.fromarray(PIXELS).convert(mode), name), "cannot be read .*its format is not known, expected")
        for name, mode in (("EPS", "RGB"), ("GIF", "P"), ("PPM", "RGB"), ("BLP", "P"))
    ],
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_frames_that_cannot_be_used_are_named(tmp_path, content, message):
    """Test that unusable frames are named both by the check of the data and by the decoding of a row.

    A file may have changed since the check.
    """
    path, mask = tmp_path / "some_frame.png", tmp_path / "mask.png"
    path.write_bytes(content)
    Image.new("L", (WIDTH, HEIGHT)).save(mask)
    sample = Sample(path, mask, "v", 0)
    for read in (lambda: count_values([sample]), lambda: check_images([path])):
        with pytest.raises(ValueError, match=rf"some_frame\.png {message}"):
            read()
    for rows in _rows([sample]):
        with pytest.raises(ValueError, match=rf"some_frame\.png {message}"):
            rows[0]
        assert rows.select_columns(["video", "frame"])[0] == {"video": "v", "frame": 0}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "MPO"])
def test_formats_that_are_read(file_format):
    """Test all supported formats.

    Some phones and cameras write MPO data into .jpg files.
    """
    image = Image.fromarray(PIXELS)
    options = {"append_images": [image], "save_all": True} if file_format == "MPO" else {}
    assert read_frame(_encode(image, file_format, **options)).size == (WIDTH, HEIGHT)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_holds_where_warnings_are_errors():
    with pytest.raises(ValueError, match=f"the maximum is {MAX_PIXELS:,}"):
        read_frame(_png(10_000, 10_000, 8, 2, b""))


def test_masks_that_cannot_be_used_are_named(tmp_path):
    frame, path = tmp_path / "frame.png", tmp_path / "some_mask.png"
    Image.fromarray(PIXELS).save(frame)
    sample = Sample(frame, path, "v", 0)
    segmentation, _ = _rows([sample])
    for content, message in (
        (_png(20_000, 20_000, 8, 0, b""), "the maximum is"),
        (_encode(Image.fromarray(PIXELS))[:-60], "truncated"),
        (_encode(Image.fromarray(PIXELS)), "has color channels that differ"),
        (_encode(Image.new("I;16", (WIDTH, HEIGHT), 300)), "contains values from 300 to 300"),
    ):
        path.write_bytes(content)
        for read in (lambda: count_values([sample]), lambda: segmentation[0]):
            with pytest.raises(ValueError, match=rf"some_mask\.png .*{message}"):
                read()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_frames_that_are_lost_during_training_are_named(tmp_path, workers):
    """Test that an error in a DataLoader worker reaches the training process with its type and message."""
    paths = [tmp_path / f"frame_{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(PIXELS).save(path)
    samples = [Sample(path, _encode(Image.new("L", (WIDTH, HEIGHT))), "v", i) for i, path in enumerate(paths)]
    paths[0].write_bytes(paths[0].read_bytes()[:-60])
    paths[1].unlink()
    for rows in _rows(samples):
        for index, error, message in (
            (0, ValueError, r"frame_0\.png cannot be read as an image"),
            (1, FileNotFoundError, r"frame_1\.png does not exist; restore it or remove it"),
        ):
            loader = DataLoader(rows, sampler=[index], batch_size=None, num_workers=workers)
            with pytest.raises(error, match=message):
                list(loader)


def test_a_file_without_permission_to_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "frame.png"

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"frame\.png cannot be read .*Permission denied"):
        read_frame(path)
