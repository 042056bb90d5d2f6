"""Folder of uploads and results. Each process has its own, which is cleaned while it runs and removed when it ends."""

import atexit
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)
PREFIX, LOCK = "surgenet-demo-", "lock"
MAX_FOLDER_BYTES = 4 * 2**30  # total size of uploads and results
MIN_FILE_BYTES = 2**17  # minimum size counted for a file, which limits the number of small files
BUSY_SECONDS = 120  # a file that changed within this time may be in use


def claim_folder(parent: Path) -> Path:
    """Create a folder in `parent` that is removed when this process ends.

    Folders of killed processes are removed. A process holds the lock in its folder for its lifetime, and the lock is
    released however the process ends.

    Args:
        parent: parent folder, created if it does not exist.

    Returns:
        The folder.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{PREFIX}*"):
        if left.is_symlink():
            continue
        try:
            with FileLock(left / LOCK, timeout=0):
                pass
        except (Timeout, OSError):  # its process is alive or belongs to another user
            continue
        shutil.rmtree(left, ignore_errors=True)  # another new process can remove it at the same time
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = FileLock(folder / LOCK)
    lock.acquire()

    def remove():
        lock.release()
        for _ in range(10):  # an upload or `sweep` in another thread can interfere
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                return
            time.sleep(0.2)
        logger.error("%s could not be deleted: delete it, because it may contain files of visitors", folder)

    atexit.register(remove)
    return folder


def sweep(folder: Path, seconds: float, keep: set[Path]) -> None:
    """Delete old files and empty folders in a folder, at any depth.

    This includes incomplete uploads, which gradio does not delete.

    Args:
        folder: folder to clean.
        seconds: minimum time since the last change of a deleted file.
        keep: paths that are not deleted.
    """
    before = time.time() - seconds
    for parent, folders, files in os.walk(folder, topdown=False):
        for path in (Path(parent) / name for name in files + folders):
            try:
                if path in keep or path.lstat().st_ctime > before:  # not st_mtime, which copying preserves
                    continue
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()
            except FileNotFoundError:  # gradio has deleted it
                continue
            except OSError:
                logger.exception("%s could not be deleted", path)


def make_room(folder: Path, needed: int, keep: set[Path]) -> bool:
    """Delete the oldest files of a folder until `needed` more bytes fit within `MAX_FOLDER_BYTES` and on the disk.

    Args:
        folder: folder of the files.
        needed: size of the new data, in bytes.
        keep: files that are not deleted. Files that may be in use are not deleted either.

    Returns:
        Whether the bytes fit.
    """
    files = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent) / name for name in names):
            try:
                status = path.lstat()
            except FileNotFoundError:  # deleted since it was listed
                continue
            files.append((status.st_ctime, max(status.st_size, MIN_FILE_BYTES), path))
    used = sum(size for _, size, _ in files)
    limit, total = min(MAX_FOLDER_BYTES, used + shutil.disk_usage(folder).free), used + needed
    idle = [file for file in files if file[2] not in keep and file[0] < time.time() - BUSY_SECONDS]
    for _, size, path in sorted(idle):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total <= limit


class Sweeper(threading.Thread):
    """Thread that limits the age and total size of the files in a folder.

    It cleans the folder at intervals of a tenth of `seconds`, and before each upload.

    Args:
        folder: folder to clean. Files that it initially contains are kept.
        seconds: maximum age of files.
    """

    def __init__(self, folder: Path, seconds: float):
        super().__init__(daemon=True)
        self.folder, self.seconds, self.keep = folder, seconds, set(folder.rglob("*"))
        self._reserved, self._reserving = 0, threading.Lock()
        self.start()

    def run(self) -> None:
        while True:
            time.sleep(self.seconds / 10)
            sweep(self.folder, 1.1 * self.seconds, self.keep)  # after gradio, which only forgets files it deletes
            make_room(self.folder, 0, self.keep)

    def reserve(self, size: int) -> bool:
        """Reserve space for an upload until `release` is called.

        Args:
            size: size of the upload, in bytes.

        Returns:
            Whether there is enough space.
        """
        with self._reserving:
            fits = make_room(self.folder, self._reserved + size, self.keep)
            self._reserved += size if fits else 0
            return fits

    def release(self, size: int) -> None:
        """Release the reserved space after the upload has been saved or has failed."""
        with self._reserving:
            self._reserved -= size
