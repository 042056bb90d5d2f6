"""Folders with video frames: extraction of frames, and lookup of extracted frames in temporal order."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..atomic import atomic_write, write_file
from ..errors import UnavailableError, UserError
from .names import number_in_name
from .video import JPEG_QUALITY, VIDEO_SUFFIXES, require_video, sample_video, to_picture, video_seconds

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
MARKER = "extraction.json"


def extract_frames(
    video_path: str | Path,
    out_dir: str | Path,
    frames_per_second: float = 1.0,
    max_side: int | None = None,
    progress: tqdm | None = None,
) -> list[Path]:
    """Write the frames of a video to `out_dir/000000.jpg`, ... and return their paths.

    Frames are JPEG files of quality 95. Each file is written atomically, and `extraction.json` records when all frames
    are written. An interrupted extraction resumes at the next call. A complete extraction is not repeated.

    Args:
        video_path: path of the video.
        out_dir: folder for the frames of this video only.
        frames_per_second: as in `iter_frames`.
        max_side: as in `iter_frames`.
        progress: progress bar, advanced by one for each frame.

    Raises:
        MissingFileError: the video does not exist.
        UserError: the video is broken (the frames before the damage are kept). Also if `out_dir` holds frames that
            this function did not write, or frames of another source, size, or rate.
        UnavailableError: a file cannot be written.
    """
    video_path, out_dir = Path(video_path), Path(out_dir)
    settings = {
        "video": video_path.name,
        "bytes": require_video(video_path).stat().st_size,
        "frames_per_second": frames_per_second,
        "max_side": max_side,
        "jpeg_quality": JPEG_QUALITY,
    }
    marker = _read_marker(out_dir)
    there = _images(out_dir)
    if marker is None and there:
        raise UserError(f"{out_dir} contains frames from another source ({there[0].name}, ...); choose another folder")
    if marker is not None and (differing := [key for key in settings if marker.get(key) != settings[key]]):
        raise UserError(
            f"{out_dir} contains frames extracted with "
            f"{', '.join(f'{key}={marker.get(key)!r}' for key in differing)}, but the current settings are "
            f"{', '.join(f'{key}={settings[key]!r}' for key in differing)}; remove that folder to extract the frames "
            "again, or choose another folder"
        )
    if is_complete(out_dir):
        return there

    _write_marker(out_dir, {**settings, "frames": None})
    paths = []
    try:
        for index, frame in sample_video(video_path, frames_per_second):
            paths.append(out_dir / f"{index:06d}.jpg")
            if not paths[-1].exists():
                _save(to_picture(frame, max_side), paths[-1])
            if progress is not None:
                progress.update()
    except UnavailableError:
        raise
    except UserError as error:
        raise UserError(f"{error}; the {len(paths)} frames before the error are in {out_dir}") from error
    _write_marker(out_dir, {**settings, "frames": len(paths)})
    return paths


def extract_videos(
    videos: Mapping[str, Path], out_dir: Path, max_side: int | None = None, frames_per_second: float = 1.0
) -> None:
    """Extract frames at a given rate from several videos into `out_dir/<name>/`.

    Up to eight videos, but not more than there are processor cores, are extracted in parallel. An error in one video
    does not stop the others. The first error is raised at the end, and its message includes the other errors.
    """
    if not videos:
        return
    seconds = sum(video_seconds(path) for path in videos.values())
    errors = []
    with (
        tqdm(desc=f"Extracting frames of {len(videos)} videos", total=round(seconds * frames_per_second)) as bar,
        ThreadPool(min(8, os.cpu_count() or 1, len(videos))) as pool,
    ):

        def extract(name: str) -> Exception | None:
            try:
                extract_frames(videos[name], out_dir / name, frames_per_second, max_side, bar)
            except UnavailableError:  # no further frames can be written
                raise
            except UserError as error:
                return error
            return None

        # FFmpeg and the JPEG encoder release the GIL, so threads run in parallel.
        errors = [error for error in pool.imap(extract, videos) if error is not None]
    if errors:
        others = "".join(f"\nalso: {error}" for error in errors[1:])
        raise type(errors[0])(f"{errors[0]}{others}") from errors[0]


def find_frames(
    names: list[str],
    videos: Mapping[str, Path],
    frames_dir: Path,
    max_side: int | None = None,
    frames_per_second: float = 1.0,
) -> dict[str, list[Path]]:
    """Return the frames of each video at a given rate, and extract missing frames to `frames_dir/<name>/`.

    Frames that another tool extracted are used unchanged, ordered by the number at the end of their names. These
    numbers must be evenly spaced. Videos with neither frames nor a video file are left out.

    Args:
        names: names of the videos, in the order of the result.
        videos: video file by name, for the videos that have one.
        frames_dir: folder with one subfolder of frames per video.
        max_side: as in `iter_frames`, for frames that are extracted.
        frames_per_second: as in `iter_frames`, for frames that are extracted.

    Raises:
        UserError: a video is broken, frame numbers have a gap, or a frame file is empty. Also if an extraction is
            incomplete and its video is missing.
    """
    todo = {}
    for name in names:
        folder = frames_dir / name
        if _read_marker(folder) is None and _images(folder):
            continue  # another tool extracted these frames
        if name in videos:
            todo[name] = videos[name]
        elif _read_marker(folder) is not None and not is_complete(folder):
            raise UserError(f"{folder} contains an incomplete extraction, and its video is missing; restore the video")
    settings = {"max_side": max_side, "frames_per_second": frames_per_second}
    unfinished = {name: path for name, path in todo.items() if not _is_done(path, frames_dir / name, settings)}
    extract_videos(unfinished, frames_dir, max_side, frames_per_second)
    found = {name: _images(frames_dir / name) for name in names}
    for name, paths in found.items():
        if paths and _read_marker(frames_dir / name) is None:
            _check_numbers(paths)
    return {name: paths for name, paths in found.items() if paths}


def find_videos(folder: Path) -> dict[str, Path]:
    """Return the videos in a folder by name without suffix, or an empty dict if the folder does not exist.

    Raises:
        UserError: two videos have the same name without suffix.
    """
    videos: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in videos:
            raise UserError(f"{videos[path.stem]} and {path} have the same name; rename or remove one")
        videos[path.stem] = path
    return videos


def is_complete(folder: Path) -> bool:
    """Return whether `extract_frames` has written all frames of a video to this folder and none is missing."""
    marker = _read_marker(folder)
    return marker is not None and marker["frames"] == len(_images(folder))


def _save(image: Image.Image, path: Path) -> None:
    with writing(path), atomic_write(path) as temporary:
        image.save(temporary, "JPEG", quality=JPEG_QUALITY)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert file system errors in the block to `UnavailableError` with the path that is written."""
    try:
        yield
    except UserError:  # from reading the source, not from writing
        raise
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be written ({error}); check the free space and the permissions of its folder"
        ) from error


def _write_marker(folder: Path, content: dict) -> None:
    with writing(folder / MARKER):
        write_file(folder / MARKER, json.dumps(content).encode())


def _read_marker(folder: Path) -> dict | None:
    path = folder / MARKER
    if not path.exists():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); remove its folder to extract the frames again") from error


def _is_done(video: Path, folder: Path, settings: dict) -> bool:
    """Return whether the extraction is complete, so that no progress bar is needed."""
    marker = _read_marker(folder)
    same = (
        marker is not None
        and marker["bytes"] == require_video(video).stat().st_size
        and all(marker[name] == value for name, value in settings.items())
    )
    return same and is_complete(folder)


def _images(folder: Path) -> list[Path]:
    """Return the frames in a folder, ordered by the number at the end of their names."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    names = [name for name in names if name.lower().endswith(FRAME_SUFFIXES)]
    return [folder / name for _, name in sorted((_number(folder / name), name) for name in names)]


def _number(path: Path) -> int:
    number = number_in_name(path)
    if number is None:
        raise UserError(f"{path}: a frame's name must end with its number, for example 000012.jpg")
    return number


def _check_numbers(paths: list[Path]) -> None:
    numbers = [_number(path) for path in paths]
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    for path, number, following in zip(paths, numbers, numbers[1:], strict=False):
        if following - number != step or step < 1:
            raise UserError(
                f"{path.parent}: frame {path.name} is followed by frame {following}, but the first frames are {step} "
                "apart. Labels need exactly one frame per second; extract the frames again"
            )
    if numbers[0] not in (0, 1, step):
        raise UserError(f"{paths[0]}: the first frame must have number 0, 1 or {step}; extract the frames again")
    for path in paths:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty; extract the frames again")
