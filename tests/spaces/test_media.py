"""Tests of hostile and unusual uploads, which give a clear message or the right image."""

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import tests.spaces.running  # noqa: F401  (puts the demo's modules on the path)

import media  # isort: skip


@pytest.fixture(autouse=True)
def gradios_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def upload(path) -> dict:
    return {"path": str(path), "url": None, "orig_name": "<b>../../x</b>.png"}


def picture(height=48, width=64) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


def write_clip(path, frames=20, rate=5, size=(64, 48), codec="libx264", **options):
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for shade in np.linspace(0, 255, frames).astype(np.uint8):
            frame = np.full((size[1], size[0], 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few kilobytes that declares a huge size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", media.IMAGE_FORMATS)
def test_pictures_of_all_formats(tmp_path, kind):
    path = tmp_path / "name.png"  # the suffix is irrelevant
    picture().save(path, kind)
    image = media.read_image(upload(path))
    assert (image.mode, image.size) == ("RGB", (64, 48))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_all_modes(tmp_path, mode):
    image = Image.new("I;16", (64, 48)) if mode == "I;16" else picture().convert(mode)
    image.save(tmp_path / "a", "JPEG" if mode == "CMYK" else "PNG")
    assert media.read_image(upload(tmp_path / "a")).mode == "RGB"


def test_pictures_come_upright_and_are_shrunk(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    picture(1600, 2400).save(tmp_path / "a.jpg", exif=exif)
    image = media.read_image(upload(tmp_path / "a.jpg"))
    assert image.size == (853, 1280)
    assert image.info == {"uploaded_size": (1600, 2400)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"<svg onload=alert(1)></svg>", "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n" + b"junk" * 100, "cannot be read as an image"),
        (b"#EXTM3U\nhttp://example.invalid/a.ts\n", "cannot be read as an image"),
        (bomb(60_000, 60_000), "far more than"),
        (bomb(9_000, 9_000), "9000 x 9000 pixels"),
        (bomb(5_000, 5_000), "damaged or incomplete"),
        (bomb(20, 400), "at least 32"),
        (bomb(32, 40_000), "damaged or incomplete"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(media.Refused, match=message):
        media.read_image(upload(tmp_path / "a.png"))


def test_narrow_pictures(tmp_path):
    """Test images that are wide enough as uploaded, but not after shrinking."""
    Image.new("RGB", (40, 2000)).save(tmp_path / "a.png")
    with pytest.raises(media.Refused, match="40 x 2000 pixels is too narrow: resized to 26 x 1280"):
        media.read_image(upload(tmp_path / "a.png"))
    Image.new("RGB", (60, 2000)).save(tmp_path / "a.png")
    assert media.read_image(upload(tmp_path / "a.png")).size == (38, 1280)


def test_other_pictures_are_refused(tmp_path):
    """Test that other formats are refused, since their decoders are rarely reviewed."""
    picture().save(tmp_path / "a.png", "TIFF")
    with pytest.raises(media.Refused, match="JPEG, PNG, WebP, or BMP"):
        media.read_image(upload(tmp_path / "a.png"))


def test_cut_pictures_and_large_files(tmp_path, monkeypatch):
    picture(480, 640).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(media.Refused, match="damaged or incomplete"):
        media.read_image(upload(tmp_path / "a.png"))
    monkeypatch.setattr(media, "MAX_IMAGE_BYTES", 2**20)
    (tmp_path / "b.png").write_bytes(bytes(3 * 2**20))
    with pytest.raises(media.Refused, match="has 3 MB; images may have up to 1 MB"):
        media.read_image(upload(tmp_path / "b.png"))


def test_sixteen_bits_of_gray_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    gray = np.asarray(media.read_image(upload(tmp_path / "a.png")))[..., 0]
    np.testing.assert_array_equal(gray, ramp // 256)


def test_files_of_the_server_are_not_read(tmp_path, monkeypatch):
    """Test that files outside of gradio's folder are not read, even real images and clips.

    They are requested by path, through "..", and through a link.
    """
    inside = tmp_path / "uploads"
    inside.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(inside))
    picture().save(tmp_path / "secret.png")
    clip = write_clip(tmp_path / "secret.mp4")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", inside / ".." / "secret.png", inside / "link.png", inside, "a\0b"):
        with pytest.raises(media.Refused, match="upload the file itself"):
            media.read_image({"path": str(path)})
    with pytest.raises(media.Refused, match="upload the file itself"):
        media.check_video({"path": str(clip)})


@pytest.mark.parametrize(("value", "number"), [(7, 7), ("7.5", 7.5), (-1, 0), (1e9, 10), (float("inf"), 10)])
def test_numbers(value, number):
    assert media.read_number(value, 0, 10, "x") == number


@pytest.mark.parametrize("value", [None, "abc", [1], float("nan")])
def test_what_is_no_number(value):
    with pytest.raises(media.Refused, match="please give a number from 0 to 10"):
        media.read_number(value, 0, 10, "x")


@pytest.mark.parametrize(
    "nothing", [None, {}, {"path": None, "url": "data:image/png;base64,AAAA"}, "a.png", [1], {"path": {"path": "a"}}]
)
def test_no_upload(nothing):
    for read in (media.read_image, media.check_video):
        with pytest.raises(media.Refused, match="upload"):
            read(nothing)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "libx264"), (".webm", "libvpx-vp9"), (".avi", "mpeg4")]
)
def test_clips_of_several_formats(tmp_path, suffix, codec):
    path = write_clip(tmp_path / f"a{suffix}", codec=codec)
    checked, seconds = media.check_video(upload(path))
    assert checked == path
    assert seconds == pytest.approx(4, abs=0.3)
    frames = list(media.read_frames(path, 2))
    assert len(frames) == 8
    assert frames[0].size == (64, 48)
    assert np.asarray(frames[0]).mean() < 20 < 180 < np.asarray(frames[-1]).mean()


def test_clips_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "frame.png").write_bytes(b"x" * 1000)
    picture().save(tmp_path / "still.mp4", "PNG")
    # playlists would make the decoder open other files or addresses
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/frame.png\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/frame.png\n")
    for name in ("frame.png", "still.mp4", "list.mp4", "concat.mp4"):
        with pytest.raises(media.Refused, match="cannot be read as a video clip"):
            media.check_video(upload(tmp_path / name))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        sound.sample_rate = 44100
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(media.Refused, match="only sound"):
        media.check_video(upload(tmp_path / "sound.mp4"))
    path = write_clip(tmp_path / "small.mp4", size=(16, 16))
    with pytest.raises(media.Refused, match="16 x 16"):
        media.check_video(upload(path))
    path = write_clip(tmp_path / "long.mp4", frames=11, rate=Fraction(1, 120))
    with pytest.raises(media.Refused, match=r"lasts 22\.0 minutes; up to 10 minutes"):
        media.check_video(upload(path))
    monkeypatch.setattr(media, "MAX_UPLOAD_BYTES", 100)
    with pytest.raises(media.Refused, match="clips may have up to"):
        media.check_video(upload(path))


def test_a_clip_that_breaks_off(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=100, options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3] + bytes(len(content) // 3))
    checked, _ = media.check_video(upload(path))
    with pytest.raises(media.Refused, match=r"damaged or .* cannot be read beyond") as refused:
        list(media.read_frames(checked, 5))
    assert str(tmp_path) not in refused.value.text  # no paths of the server


@pytest.mark.parametrize("side", [4000, 5000])  # the first is within the decoder's limit, which has a margin
def test_a_clip_with_larger_pictures_than_its_header_says(tmp_path, side):
    packets = []
    for size in ((64, 48), (side, side)):
        file = io.BytesIO()
        Image.new("RGB", size, "red").save(file, "JPEG", subsampling=2, quality=20)
        packets.append(file.getvalue())
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for time in range(15):
            packet = av.Packet(packets[time >= 10])
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, time, time, Fraction(1, 5)
            container.mux(packet)
    path, _ = media.check_video(upload(tmp_path / "a.mkv"))
    with pytest.raises(media.Refused, match=r"frames of more than 3840 x 3840 pixels: it cannot be read beyond \d"):
        list(media.read_frames(path, 5))


def test_a_clip_of_too_many_frames_a_second(tmp_path):
    """Test that a clip with too many frames per second is refused.

    The time stamps give the rate, whereas the header has the length of the whole clip.
    """
    path = write_clip(tmp_path / "a.mp4", frames=300, rate=1000)
    with pytest.raises(media.Refused, match="has 300 frames in one second; up to 250"):
        media.check_video(upload(path))
    media.check_video(upload(write_clip(tmp_path / "b.mp4", frames=300, rate=240)))


def test_so_many_frames_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MAX_FRAMES", 7)
    assert len(list(media.read_frames(write_clip(tmp_path / "a.mp4"), 5))) == 7


def test_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    """Test that images are decoded one at a time, since each needs much memory until it is shrunk."""
    picture(480, 640).save(tmp_path / "a.png")
    at_work, most = [], []
    load, shrink = PngImagePlugin.PngImageFile.load, Image.Image.thumbnail

    def loading(image):
        if id(image) not in at_work:
            at_work.append(id(image))
        most.append(len(at_work))
        time.sleep(0.05)
        return load(image)

    def shrinking(image, *arguments):
        shrink(image, *arguments)
        at_work.pop()

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", loading)
    monkeypatch.setattr(Image.Image, "thumbnail", shrinking)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(media.read_image, [upload(tmp_path / "a.png")] * 4))
    assert [image.size for image in images] == [(640, 480)] * 4
    assert max(most) == 1


def write_film(picture) -> None:
    with media.film(2) as (add, _):
        for _ in range(20):
            add(picture)


def test_a_full_disk(tmp_path, monkeypatch):
    """Test that a full disk gives a clear message and leaves no partial result."""
    monkeypatch.setattr(media, "new_file", lambda name: tmp_path / name)
    for name in ("mask.png", "result.mp4"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(media.Refused, match="The disk of this server is full"), media.full_disk():
        media.write_mask(np.zeros((300, 400), np.uint8), [(0, 0, 0)])
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    with pytest.raises(media.Refused, match="The disk of this server is full"), media.full_disk():
        write_film(noise)
    assert not (tmp_path / "result.mp4").is_symlink()
    with pytest.raises(FileNotFoundError), media.full_disk():  # other errors are unchanged
        (tmp_path / "missing").read_bytes()


def test_results(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    class_map = np.random.default_rng(0).integers(0, 5, (30, 40), dtype=np.uint8)
    path = media.write_mask(class_map, [(10 * i, 0, 0) for i in range(5)])
    image = Image.open(path)
    np.testing.assert_array_equal(np.asarray(image), class_map)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[..., 0], 10 * class_map)
    assert media.write_mask(class_map, [(0, 0, 0)]) != path  # each result has its own file

    with media.film(2.5) as (add, path):
        for shade in (0, 100, 200):
            add(np.full((49, 65, 3), shade, np.uint8))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == Fraction(5, 2)
        found = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert found == pytest.approx([0, 100, 200], abs=6)

    given_up = media.film(1)
    add, path = given_up.__enter__()
    add(np.zeros((48, 64, 3), np.uint8))
    given_up.__exit__(GeneratorExit, GeneratorExit(), None)  # as when a visitor cancels
    assert not path.exists()


def test_long_names_are_shortened():
    assert media.shorten("organs") == "organs"
    assert media.shorten("x" * 5000) == "x" * 79 + "…"


def test_messages_are_text():
    """Test that messages are escaped, since gradio shows them as HTML."""
    assert "<script>" not in media.Refused("<script>").message
