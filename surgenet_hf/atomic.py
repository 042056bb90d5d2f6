"""Atomic file writes."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(
    path: str | os.PathLike, folder: str | os.PathLike | None = None, durable: bool = False
) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends without an error.

    After an error, the temporary file is deleted and `path` is unchanged. The temporary name contains the ids of the
    process and the thread, so parallel runs and threads do not collide. The suffix `.partial` marks a file that a
    killed run left behind.

    Args:
        path: final path. Its parent folder is created.
        folder: folder of the temporary file, on the same file system. Default: the parent folder of `path`.
        durable: wait until the file is on the disk, so that a power failure leaves either the old or the new file.
            This takes milliseconds. Use it for files that are expensive to compute again.

    Yields:
        The temporary path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name[:40]}.{os.getpid()}-{threading.get_native_id()}.partial"
    temporary = Path(folder or path.parent) / name
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
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Wait until a folder and its contents are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    if os.name == "posix":  # other systems cannot sync a descriptor that is open for reading
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
