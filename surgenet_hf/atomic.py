"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(
    path: str | os.PathLike, folder: str | os.PathLike | None = None, durable: bool = False
) -> Iterator[Path]:
    """A name to write to. When the block ends without an error, what lies there becomes `path`; else it is deleted.

    The name ends on the number of this process and `.partial`: parallel runs do not collide, and what a killed one
    leaves is taken for nothing else.

    Args:
        path: its folder is made.
        folder: where to write, on the same file system; default: beside `path`.
        durable: wait until the file is on the disk, so that a power cut leaves the old or the new one. For what took
            long to make; it takes milliseconds.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(folder or path.parent) / f".{path.name[:40]}.{os.getpid()}.partial"
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Wait until a folder and all in it is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    if os.name == "posix":  # elsewhere what is open for reading cannot be synchronized
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
