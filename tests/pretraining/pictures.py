"""Small images in all supported kinds of sources."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage


def encode(number: int, size: tuple[int, int] = (48, 40), file_format: str = "JPEG") -> bytes:
    """Return an encoded image whose mean gray value encodes its number.

    Args:
        number: Number of the image.
        size: Size (width, height).
        file_format: Format of the file.
    """
    noise = np.random.default_rng(number).integers(-8, 9, (size[1] // 8, size[0] // 8, 3))
    pixels = np.kron(np.clip(10 + 5 * (number % 48) + noise, 0, 255).astype(np.uint8), np.ones((8, 8, 1), np.uint8))
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, file_format, quality=95)
    return buffer.getvalue()


def write_folder(root: Path, frames: dict[str, bytes]) -> Path:
    for name, content in frames.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, frames: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in frames.items():
            archive.writestr(name, content)


def write_tar(path: Path, frames: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in frames.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, frames: dict[str, bytes], as_images: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": content, "path": name} if as_images else content for name, content in frames.items()]
    features = Features({"frame": Image() if as_images else Value("binary"), "video": Value("string")})
    Dataset.from_dict({"frame": cells, "video": ["v"] * len(cells)}, features=features).to_parquet(path)
