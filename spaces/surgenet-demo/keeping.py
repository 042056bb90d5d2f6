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


class Sweeper(threading.Thread):
    """Sweeps a folder every tenth of `seconds`; what it holds now is kept."""

    def __init__(self, folder: Path, seconds: float):
        super().__init__(daemon=True)
        self.folder, self.seconds, self.keep = folder, seconds, set(folder.rglob("*"))
        self.start()

    def run(self) -> None:
        while True:
            time.sleep(self.seconds / 10)
            sweep(self.folder, 1.1 * self.seconds, self.keep)  # gradio first: it forgets only what it deletes itself
