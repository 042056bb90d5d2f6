"""First stage of `surgenet_hf.preparation.shards`: parallel extraction of frames from many videos.

The frames of a video are written to `<id>.frames` as concatenated JPEG images. Their description is then written to
`<id>.json`, which marks the video as done.

Each decoder uses one thread, which is equally fast for many videos. Repaired pictures then do not depend on the thread
scheduling of FFmpeg.
"""

import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..atomic import atomic_write
from ..data.frame_folders import writing
from ..data.names import printable
from ..data.video import JPEG_QUALITY, VIDEO_SUFFIXES, iter_frames, iter_listed_frames, video_seconds
from ..errors import MissingFileError, UnavailableError, UserError
from ..options import option

THUMBNAIL = (32, 32)
NOTHING: dict[str, Any] = {"sampled": 0, "black": 0, "duplicate": 0, "error": None, "missing": [], "frames": []}


@dataclass
class FrameOptions:
    """Options for the choice of frames and their storage."""

    frames_per_second: float = option(
        1.0, "Number of frames per second of video, by timestamp (1: as in SurgeNet's pretraining)."
    )
    max_side: int = option(
        0, "Maximum length of a frame's longer side in pixels; larger frames are downscaled. 0: no limit."
    )
    jpeg_quality: int = option(JPEG_QUALITY, "JPEG quality of the frames, 1 to 95.")
    drop_black: bool = option(False, "Whether to leave out black frames.")
    black_threshold: float = option(10.0, "Mean gray level, 0 to 255, below which a frame is black.")
    drop_duplicates: bool = option(False, "Whether to leave out frames that look like the last one kept.")
    duplicate_threshold: float = option(
        1.0,
        "Mean difference of 32x32 thumbnails in gray levels, 0 to 255, below which two frames look alike.",
    )
    frames_per_shard: int = option(10_000, "Maximum number of frames per shard (10,000: about 1 GB at 480p).")
    shard_format: str = option("tar", "File format of the shards: tar (WebDataset) or zip.", choices=["tar", "zip"])

    def __post_init__(self):
        limits = {"max_side": 0, "black_threshold": 0, "duplicate_threshold": 0, "frames_per_shard": 1}
        for name, least in limits.items():
            if not getattr(self, name) >= least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.frames_per_second > 0:
            raise UserError(f"frames_per_second must be above 0, got {self.frames_per_second}")
        if not 1 <= self.jpeg_quality <= 95:
            raise UserError(f"jpeg_quality must be from 1 to 95, got {self.jpeg_quality}")
        if self.shard_format not in ("tar", "zip"):
            raise UserError(f"shard_format must be tar or zip, got {self.shard_format!r}")


@dataclass(frozen=True)
class Video:
    """Video below the folder of videos.

    Attributes:
        path: path of the file.
        name: path relative to the folder of videos.
        procedure: name of the procedure.
        key: prefix of the names of its frames: `<procedure>/<video>` with letters, digits, `_`, and `-` only.
        bytes: size of the file in bytes.
        wanted: numbers of the frames to extract from a frame list, or None for all frames.
    """

    path: Path
    name: str
    procedure: str
    key: str
    bytes: int
    wanted: tuple[int, ...] | None = None

    @property
    def id(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:24]


def scan_videos(videos_dir: Path) -> list[Video]:
    """Find all videos below a folder by suffix, sorted by procedure and path.

    Hidden files are left out. Links are followed, but a folder that is reachable in two ways is used once.

    Raises:
        MissingFileError: the folder does not exist.
        UserError: the path is a file, or the folder contains no video.
        UnavailableError: a folder cannot be read.
    """
    if videos_dir.is_file():
        raise UserError(f"{videos_dir} is a file; expected a folder of videos. Pass the folder that contains it")
    if not videos_dir.is_dir():
        raise MissingFileError(f"there is no folder {videos_dir}; check the path")

    def refuse(error: OSError):
        raise UnavailableError(f"{error.filename} cannot be read ({error}); check its permissions") from error

    others: Counter[str] = Counter()
    found, seen = [], set()
    for folder, folders, names in os.walk(videos_dir, onerror=refuse, followlinks=True):
        folders.sort()  # makes the choice between two links to a folder deterministic
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        for path in (Path(folder, name) for name in names):
            below = path.relative_to(videos_dir)
            if any(part.startswith(".") for part in below.parts):
                continue
            if path.suffix.lower() not in VIDEO_SUFFIXES:
                others[path.suffix] += 1
                continue
            # file names need not be valid Unicode, but the index must be
            parts = [printable(part) for part in below.parts]
            procedure = parts[0] if len(parts) > 1 else printable(videos_dir.resolve().name)
            found.append((procedure, "/".join(parts), path))
    if not found:
        there = ", ".join(f"{number} *{suffix}" for suffix, number in others.most_common(5)) or "no files"
        raise UserError(
            f"{videos_dir} contains {there}; expected videos ({', '.join(VIDEO_SUFFIXES)}) at any depth. "
            "Check the path"
        )
    videos: list[Video] = []
    procedures: set[str] = set()
    for procedure, group in groupby(sorted(found), key=lambda row: row[0]):
        folder = _unique(procedure, procedures)
        taken: set[str] = set()
        for _, name, path in group:
            stem = Path(name.removeprefix(f"{procedure}/")).with_suffix("")
            key = f"{folder}/{_unique(str(stem), taken)}"
            videos.append(Video(path, name, procedure, key, path.stat().st_size))
    return videos


def extract_parts(videos: list[Video], parts: Path, options: FrameOptions, num_workers: int = 0) -> None:
    """Extract the frames of each unfinished video, and retry videos that could not be read before.

    Raises:
        UnavailableError: a file cannot be written.
        UserError: a worker process died.
    """
    todo = [video for video in videos if not _is_done(video, parts)]
    if not todo:
        return
    # longest first, so that no worker is still busy with a long video at the end
    seconds = {video.id: video_seconds(video.path) for video in tqdm(todo, desc="Reading headers")}
    todo.sort(key=lambda video: -seconds[video.id])
    total = sum(
        round(seconds[video.id] * options.frames_per_second) if video.wanted is None else len(video.wanted)
        for video in todo
    )
    progress, stop = multiprocessing.Value("L"), multiprocessing.Event()
    workers = min(num_workers or _num_cores(), len(todo))
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(progress, stop)) as pool:
        pending = {pool.submit(_extract, video, parts, options) for video in todo}
        try:
            with tqdm(desc=f"Extracting frames of {len(todo)} videos", total=total, unit="frame") as bar:
                while pending:
                    done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    bar.update(progress.value - bar.n)
                    for future in done:
                        future.result()
                    bar.set_postfix(videos_left=len(pending))
        except BrokenProcessPool as error:
            at_work = [video.name for video in todo if list(parts.glob(f".{video.id}.*"))]
            raise UserError(
                "a worker process died. If it ran out of memory, restart with a smaller --num_workers. If that does "
                f"not help, one of these videos crashes the decoder and must be removed: {', '.join(at_work)}"
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def new_file(path: Path, parts: Path) -> Iterator[BinaryIO]:
    """Open a file in `parts` for writing, and move it to `path` if the block ends without an error."""
    with writing(path), atomic_write(path, parts, durable=True) as temporary, open(temporary, "wb") as file:
        yield file


def write_json(path: Path, parts: Path, content: dict, indent: int | None = None) -> None:
    with new_file(path, parts) as file:
        file.write(json.dumps(content, indent=indent, ensure_ascii=False).encode())


def _unique(name: str, taken: set[str]) -> str:
    """Return a unique name that is valid on any file system, and add it to `taken`.

    The name has no dots, because a WebDataset key ends at the first dot.
    """
    name = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", name))
    name = name.encode()[:200].decode(errors="ignore")  # file systems allow 255 bytes
    names = chain([name], (f"{name}-{i}" for i in count(2)))
    unique = next(name for name in names if name.casefold() not in taken)
    taken.add(unique.casefold())
    return unique


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_done(video: Video, parts: Path) -> bool:
    path = parts / f"{video.id}.json"
    if not path.exists():
        return False
    record = json.loads(path.read_bytes())
    return record["bytes"] == video.bytes and record["error"] is None


# shared with the main process; set by `_start_worker`
_progress: Any = None
_stop: Any = None


def _start_worker(progress, stop) -> None:
    global _progress, _stop
    _progress, _stop = progress, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which sets `stop`

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _extract(video: Video, parts: Path, options: FrameOptions) -> None:
    record = {"bytes": video.bytes, **NOTHING}
    try:
        with new_file(parts / f"{video.id}.frames", parts) as file:
            record |= _write_frames(video, file, options)
    except UnavailableError:  # a problem of the disk, not of the video
        raise
    except UserError as error:
        record |= {"error": printable(str(error)), "missing": video.wanted or []}
    write_json(parts / f"{video.id}.json", parts, record)


def _write_frames(video: Video, file: BinaryIO, options: FrameOptions) -> dict:
    counts: Counter[str] = Counter()
    frames, numbers, last = [], set(), None
    for number, second, image in _samples(video, options):
        if _stop.is_set():
            raise CancelledError
        with _progress.get_lock():
            _progress.value += 1
        numbers.add(number)
        thumbnail = _thumbnail(image) if options.drop_black or options.drop_duplicates else None
        if options.drop_black and thumbnail.mean() < options.black_threshold:
            counts["black"] += 1
        elif (
            options.drop_duplicates and last is not None and _difference(thumbnail, last) < options.duplicate_threshold
        ):
            counts["duplicate"] += 1
        else:
            last = thumbnail
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=options.jpeg_quality)
            digest = hashlib.sha256(jpeg.getbuffer()).hexdigest()
            frames.append([number, second, *image.size, len(jpeg.getbuffer()), digest])
            file.write(jpeg.getbuffer())
    missing = sorted(set(video.wanted or ()) - numbers)
    return {**counts, "sampled": len(numbers), "missing": missing, "frames": frames}


def _samples(video: Video, options: FrameOptions) -> Iterator[tuple[int, float | None, Image.Image]]:
    max_side = options.max_side or None
    if video.wanted is not None:
        yield from iter_listed_frames(video.path, video.wanted, max_side, threads=1)
        return
    for number, image in iter_frames(video.path, options.frames_per_second, max_side, threads=1):
        yield number, number / options.frames_per_second, image


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize(THUMBNAIL, Image.Resampling.BOX).convert("L"), np.float32)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())
