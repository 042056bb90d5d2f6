"""The folder of uploads and results: each process has its own, swept while it runs and removed when it ends."""

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
MAX_FOLDER_BYTES = 4 * 2**30  # of uploads and results together
MIN_FILE_BYTES = 2**17  # that a file counts for at least, so that the number of small files has a bound, too
BUSY_SECONDS = 120  # a file that changed within this time may be in use


def claim_folder(parent: Path) -> Path:
    """Make a folder in `parent` that goes when this process ends; remove those of processes that were killed.

    A process holds the lock in its folder as long as it lives, whatever ends it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{PREFIX}*"):
        if left.is_symlink():
            continue
        try:
            with FileLock(left / LOCK, timeout=0):
                pass
        except (Timeout, OSError):  # its process lives, or is another user's
            continue
        shutil.rmtree(left, ignore_errors=True)  # another process that starts now may be at it too
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = FileLock(folder / LOCK)
    lock.acquire()

    def remove():
        lock.release()
        shutil.rmtree(folder)

    atexit.register(remove)
    return folder


def sweep(folder: Path, seconds: float, keep: set[Path]) -> None:
    """Delete what lies in a folder, at any depth, and has not changed for so many seconds, except what is to `keep`.

    gradio deletes only what it has handed out; an upload that breaks off, it forgets.
    """
    before = time.time() - seconds
    for parent, folders, files in os.walk(folder, topdown=False):
        for path in (Path(parent) / name for name in files + folders):
            try:
                if path in keep or path.lstat().st_ctime > before:  # not st_mtime, which a copy takes along
                    continue
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()
            except FileNotFoundError:  # gradio was faster
                continue
            except OSError:
                logger.exception("%s could not be deleted", path)


def make_room(folder: Path, needed: int, keep: set[Path]) -> bool:
    """Delete the oldest files of a folder until `needed` more bytes fit within `MAX_FOLDER_BYTES` and on the disk.

    Files to `keep` stay, and so do those that may be in use.

    Returns:
        whether the bytes fit.
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
    """Bounds the age and the total size of a folder's files; those that it holds at first are kept.

    It looks every tenth of `seconds`, and before each upload.
    """

    def __init__(self, folder: Path, seconds: float):
        super().__init__(daemon=True)
        self.folder, self.seconds, self.keep = folder, seconds, set(folder.rglob("*"))
        self._reserved, self._reserving = 0, threading.Lock()
        self.start()

    def run(self) -> None:
        while True:
            time.sleep(self.seconds / 10)
            sweep(self.folder, 1.1 * self.seconds, self.keep)  # gradio first: it forgets only what it deletes itself
            make_room(self.folder, 0, self.keep)

    def reserve(self, size: int) -> bool:
        """Make room for an upload of so many bytes; False if there is none. `release` ends it."""
        with self._reserving:
            fits = make_room(self.folder, self._reserved + size, self.keep)
            self._reserved += size if fits else 0
            return fits

    def release(self, size: int) -> None:
        """End a reservation: the upload is in the folder, or has failed."""
        with self._reserving:
            self._reserved -= size
