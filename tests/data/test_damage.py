"""Tests of datasets with a damaged file.

Loading and reading all rows must succeed or raise an error that names a file.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
TABLE = "image,video,label,frame,split\n" + "\n".join(
    f'"frames/{name}_{i}.jpg",{name},{"ab"[i]},{i},{split}'
    for name, split in (("p", "train"), ("q", "validation"))
    for i in range(2)
)
ODD = [b"\0", b'"', b"\xff", b",", b"\n", b"\r", b"\xc2\xad", b"9" * 20, b"../", b"a" * 300, b"a" * 140_000]


def _encode(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _folder():
    """Return frames and masks with orientation tags, palettes, and 16-bit values."""
    rgb, ids = Image.fromarray(PIXELS), PIXELS[..., 0] % 3
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 3, "camera"
    palette = Image.frombytes("P", (24, 16), ids.tobytes())
    palette.putpalette(range(30))
    return {
        "images/a_1.jpg": _encode(rgb, "JPEG"),
        "images/a_2.jpg": _encode(rgb, "JPEG", exif=exif, progressive=True),
        "images/b_1.png": _encode(rgb, "PNG", exif=exif),
        "images/b_2.png": _encode(rgb.convert("P"), "PNG", transparency=bytes(range(256))),
        "masks/a_1.png": _encode(Image.fromarray(ids), "PNG"),
        "masks/a_2.png": _encode(Image.fromarray(ids.astype(np.uint16)), "PNG"),
        "masks/b_1.png": _encode(palette, "PNG"),
        "masks/b_2.png": _encode(Image.fromarray(np.stack([ids] * 3, -1)), "PNG"),
        "classes.txt": b"tissue\nliver\nhook\n",
    }


def _csv():
    frame = _encode(Image.fromarray(PIXELS), "JPEG")
    return {f"frames/{name}_{i}.jpg": frame for name in "pq" for i in range(2)} | {"labels.csv": TABLE.encode()}


def _claims(width, height, mode="RGB"):
    """Return a PNG with correct checksums whose header declares another size than that of its image."""
    png = _encode(Image.new(mode, (24, 16)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


OTHERS = [b"", _claims(1, 1), _claims(24, 7), _claims(16, 24), _claims(24, 16, "I;16")]
OTHERS += [_claims(20_000, 20_000), _claims(65_535, 2_000)]


@st.composite
def damage(draw, content: bytes):
    """Draw another image, or the content with changed or inserted bytes or a truncated end."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(OTHERS))
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # favor the header, which determines most of the decoding
        at = draw(st.integers(0, min(40, len(content))) | st.integers(0, len(content)))
        new = draw(st.binary(min_size=1, max_size=4) | st.sampled_from(ODD))
        content[at : at + draw(st.sampled_from([0, len(new)]))] = new
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    def write(files, folder=None):
        folder = folder or tmp_path_factory.mktemp("data")
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    return write


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PIL warns about damaged files
@pytest.mark.parametrize(
    ("name", "files", "damaged"),
    [
        ("folder", _folder(), sorted(_folder())),
        ("csv", _csv(), ["labels.csv"]),
    ],
    ids=["folder", "csv"],
)
def test_damaged_files_are_named(name, files, damaged, write):
    root = write(files)

    def read():
        """Return the rows or the error."""
        try:
            return [row for split in load_data(name, root).splits.values() for row in split]
        except (ValueError, FileNotFoundError) as error:
            return error

    assert len(read()) == 4

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(st.data())
    def check(data):
        victim = data.draw(st.sampled_from(damaged))
        write({victim: data.draw(damage(files[victim]))}, root)
        found = read()
        write({victim: files[victim]}, root)
        if isinstance(found, Exception):
            assert isinstance(found, UserError)
            assert str(root) in str(found)
        else:
            assert all(row["image"].mode == "RGB" for row in found)

    check()
