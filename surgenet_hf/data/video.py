"""Frames of videos, sampled by time stamps, with PyAV (`pip install av`).

A video is sampled at 0, 1/f, 2/f, ... seconds after its first frame, and each sample is the picture that is on screen
at that time. So frame k belongs to time k/f whatever the video's own frame rate is and even where it varies, and gaps
in a recording repeat a picture instead of shifting all labels behind them.
"""

import json
import os
from collections.abc import Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..atomic import atomic_write, write_file
from ..errors import MissingFileError, UserError
from .names import number_in_name

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".webm", ".wmv")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
# Hardly to be told from the video, at some 110 kB for a frame of 854x480: all of Cholec80 takes about 20 GB.
JPEG_QUALITY = 95
MARKER = "extraction.json"

_TOLERANCE = 1e-3  # seconds: some containers round time stamps to milliseconds
_JITTER = 1.0  # seconds: less backwards is how some containers keep B-frames, more is a recording joined to another
_LONGEST_GAP = 60.0  # seconds: more is a jump of the clock, as where recordings were joined


def iter_frames(
    path: str | Path,
    frames_per_second: float = 1.0,
    max_side: int | None = None,
    threads: int = 0,
    max_decoded_side: int | None = None,
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (index, upright RGB picture) of a video; picture `index` is that of time `index / frames_per_second`.

    Args:
        path: a video that FFmpeg can read.
        frames_per_second: how many to take, of whatever number the video has.
        max_side: shrink pictures whose longer side has more pixels than this.
        threads: of the decoder; 0: as many as there are cores.
        max_decoded_side: refuse a video of which a picture, before it is shrunk, has a side of more pixels than this.
            The sizes in a file's header bind nobody: any picture may be larger. None: no limit.

    Raises:
        MissingFileError: there is no such file.
        UserError: not a video, or one that breaks off or cannot be decoded to its end, or larger pictures than asked.
    """
    for index, frame in _sample(Path(path), frames_per_second, threads, max_decoded_side):
        yield index, _picture(frame, max_side)


def extract_frames(
    video_path: str | Path,
    out_dir: str | Path,
    frames_per_second: float = 1.0,
    max_side: int | None = None,
    progress: tqdm | None = None,
) -> list[Path]:
    """Write the frames of a video to `out_dir/000000.jpg`, `000001.jpg`, ... (JPEG of quality 95); the paths.

    A file appears under its name only when it is whole, and `extraction.json` says when all are there: an extraction
    that was killed goes on where it was, one that is complete does nothing.

    Args:
        video_path, frames_per_second, max_side: as in `iter_frames`.
        out_dir: a folder for this video alone.
        progress: a bar to move by one for each frame.

    Raises:
        MissingFileError: there is no such file.
        UserError: a broken video (what could be read is kept), or `out_dir` holds frames of another source, size or
            rate, or frames that were not written by this function.
    """
    video_path, out_dir = Path(video_path), Path(out_dir)
    settings = {
        "video": video_path.name,
        "bytes": _size(video_path),
        "frames_per_second": frames_per_second,
        "max_side": max_side,
        "jpeg_quality": JPEG_QUALITY,
    }
    marker = _read_marker(out_dir)
    there = _images(out_dir)
    if marker is None and there:
        raise UserError(f"{out_dir} holds frames from elsewhere ({there[0].name}, ...); give another folder")
    differing = [key for key in settings if marker is not None and marker.get(key) != settings[key]]
    if differing:
        raise UserError(
            f"{out_dir} holds frames extracted with {', '.join(f'{key}={marker.get(key)!r}' for key in differing)}, "
            f"now it is {', '.join(f'{key}={settings[key]!r}' for key in differing)}; remove that folder to extract "
            "them anew, or give another one"
        )
    if is_complete(out_dir):
        return there

    out_dir.mkdir(parents=True, exist_ok=True)
    write_file(out_dir / MARKER, json.dumps({**settings, "frames": None}).encode())
    paths = []
    try:
        for index, frame in _sample(video_path, frames_per_second):
            paths.append(out_dir / f"{index:06d}.jpg")
            if not paths[-1].exists():
                _save(_picture(frame, max_side), paths[-1])
            if progress is not None:
                progress.update()
    except ValueError as error:
        raise UserError(f"{error}; the {len(paths)} frames before that are in {out_dir}") from error
    write_file(out_dir / MARKER, json.dumps({**settings, "frames": len(paths)}).encode())
    return paths


def extract_videos(
    videos: Mapping[str, Path], out_dir: Path, frames_per_second: float = 1.0, max_side: int | None = None
) -> None:
    """Extract the frames of several videos into `out_dir/<name>/`, as many at a time as there are processor cores.

    All are tried before the first error, whose message names the others, is raised.
    """
    if not videos:
        return
    seconds = sum(_seconds(path) for path in videos.values())
    errors = []
    with (
        tqdm(desc=f"Extracting frames of {len(videos)} videos", total=round(seconds * frames_per_second)) as bar,
        ThreadPool(min(8, os.cpu_count() or 1, len(videos))) as pool,
    ):

        def extract(name: str) -> Exception | None:
            try:
                extract_frames(videos[name], out_dir / name, frames_per_second, max_side, bar)
            except (ValueError, FileNotFoundError) as error:
                return error

        # FFmpeg and JPEG work outside Python's lock, so threads run side by side.
        errors = [error for error in pool.imap(extract, videos) if error is not None]
    if errors:
        others = "".join(f"\nalso: {error}" for error in errors[1:])
        raise type(errors[0])(f"{errors[0]}{others}") from errors[0]


def find_frames(
    names: list[str], videos: Mapping[str, Path], frames_dir: Path, max_side: int | None = None
) -> dict[str, list[Path]]:
    """The frames, one per second, of each video that is there: those in `frames_dir/<name>/`, or else extracted there.

    Frames that were extracted by other means are taken as they are, in the order of the number at the end of their
    names; the numbers must be evenly spaced. Names with neither frames nor video are left out.

    Args:
        names: the videos that are looked for, in the order of the result.
        videos: the files of those that have one.

    Raises:
        UserError: a broken video, a gap in the numbers of frames, an empty file, an extraction that was not finished
            and whose video is gone.
    """
    todo = {}
    for name in names:
        folder = frames_dir / name
        if _read_marker(folder) is None and _images(folder):
            continue  # extracted by other means
        if name in videos:
            todo[name] = videos[name]
        elif _read_marker(folder) is not None and not is_complete(folder):
            raise UserError(f"{folder}: the extraction was not finished and its video is not there; put it back")
    unfinished = {name: path for name, path in todo.items() if not _is_done(path, frames_dir / name, max_side)}
    extract_videos(unfinished, frames_dir, max_side=max_side)
    found = {name: _images(frames_dir / name) for name in names}
    for name, paths in found.items():
        if paths and _read_marker(frames_dir / name) is None:
            _check_numbers(paths)
    return {name: paths for name, paths in found.items() if paths}


def find_videos(folder: Path) -> dict[str, Path]:
    """The videos in a folder, by their names without suffix; none if there is no such folder."""
    videos: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in videos:
            raise UserError(f"{videos[path.stem]} and {path} have the same name; rename or remove one")
        videos[path.stem] = path
    return videos


def frame_rate(path: Path) -> float:
    """The average number of frames per second of a video."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            return float(_stream(container, path).average_rate)
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be read as a video ({error}); replace or remove it") from error


def is_complete(folder: Path) -> bool:
    """Whether `extract_frames` has written all frames of a video to this folder, and they still are there."""
    marker = _read_marker(folder)
    return marker is not None and marker["frames"] == len(_images(folder))


def _av():
    try:
        import av
    except ImportError as error:
        raise ImportError("reading videos needs PyAV: pip install av") from error
    return av


def _stream(container, path: Path):
    stream = container.streams.best("video")
    if stream is None:
        raise UserError(f"{path} holds no video; replace or remove it")
    return stream


def _size(path: Path) -> int:
    if not path.is_file():
        raise MissingFileError(f"there is no video {path}")
    return path.stat().st_size


def _seconds(path: Path) -> float:
    """What the header says, for the progress bar; 0 where it says nothing. Broken files are reported later."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / av.time_base
    except av.FFmpegError:
        return 0.0


def _sample(
    path: Path, frames_per_second: float, threads: int = 0, max_decoded_side: int | None = None
) -> Iterator[tuple[int, object]]:
    """Yield (index, PyAV frame): the frame on screen at time index / frames_per_second after the first one."""
    if not frames_per_second > 0:
        raise UserError(f"frames_per_second must be above 0, got {frames_per_second}")
    _size(path)
    av = _av()
    index, start, time, shown = 0, None, 0.0, None
    repair = "replace it, or try to repair it (ffmpeg -i broken.mp4 -c copy repaired.mp4)"
    too_large, options = "", {}
    if max_decoded_side is not None:
        too_large = f"pictures of more than {max_decoded_side} x {max_decoded_side} pixels"
        # for the decoder, which would fill the memory; with room for the edges that it adds
        options = {"max_pixels": str((max_decoded_side + 256) ** 2)}
    try:
        with av.open(str(path), options=options) as container:
            stream = _stream(container, path)
            stream.codec_context.options = options
            stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
            for frame in container.decode(stream):
                if frame.time is None:
                    raise UserError(f"{path}: its frames have no time stamps; {repair}")
                if max_decoded_side is not None and max(frame.width, frame.height) > max_decoded_side:
                    raise UserError(f"{path} holds {too_large}: {frame.width} x {frame.height} after {time:.1f} s")
                start = frame.time if start is None else start
                before, time = time, frame.time - start
                if not -_JITTER < time - before <= _LONGEST_GAP:
                    raise UserError(f"{path}: its time stamps jump from {before:.2f} s to {time:.2f} s; {repair}")
                time = max(before, time)
                while shown is not None and index / frames_per_second < time - _TOLERANCE:
                    yield index, shown
                    index += 1
                shown = frame
            if shown is None:
                raise UserError(f"{path} holds not a single frame; {repair}")
            end = time + float((shown.duration or 0) * shown.time_base or 1 / (stream.average_rate or 25))
            while index / frames_per_second < end - _TOLERANCE:
                yield index, shown
                index += 1
            declared = float((stream.duration or 0) * stream.time_base)
            if not declared and len(container.streams) == 1:  # a whole file's length may be that of its sound
                declared = (container.duration or 0) / av.time_base - start
            if end < declared - 1:
                raise UserError(f"{path} breaks off after {end:.1f} of {declared:.1f} s; {repair}")
    except av.FFmpegError as error:
        reason = f"{error}, or {too_large}" if too_large else error
        raise UserError(f"{path} cannot be read beyond {time:.1f} s ({reason}); {repair}") from error


def _picture(frame, max_side: int | None) -> Image.Image:
    """The upright RGB picture of a PyAV frame."""
    image = frame.to_image()
    turn = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    if frame.rotation % 360 in turn:  # counterclockwise, as PIL's
        image = image.transpose(turn[frame.rotation % 360])
    if max_side is not None and max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    return image


def _save(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, "JPEG", quality=JPEG_QUALITY)


def _read_marker(folder: Path) -> dict | None:
    path = folder / MARKER
    if not path.exists():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove its folder, so that the frames are extracted again"
        ) from error


def _is_done(video: Path, folder: Path, max_side: int | None) -> bool:
    """Whether nothing is left to do, so that no progress bar needs to be shown."""
    marker = _read_marker(folder)
    same = marker is not None and marker["bytes"] == _size(video) and marker["max_side"] == max_side
    return same and is_complete(folder)


def _images(folder: Path) -> list[Path]:
    """Frames of a folder, in the order of the number at the end of their names."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    names = [name for name in names if name.lower().endswith(FRAME_SUFFIXES)]
    return [folder / name for _, name in sorted((_number(folder / name), name) for name in names)]


def _number(path: Path) -> int:
    number = number_in_name(path)
    if number is None:
        raise UserError(f"{path}: a frame's name must end in its number, as 000012.jpg does")
    return number


def _check_numbers(paths: list[Path]) -> None:
    numbers = [_number(path) for path in paths]
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    for path, number, following in zip(paths, numbers, numbers[1:], strict=False):
        if following - number != step or step < 1:
            raise UserError(
                f"{path.parent}: after frame {path.name} comes {following}, but its frames are {step} apart; one "
                "picture for each second is needed, or labels would shift: extract them again"
            )
    if numbers[0] not in (0, 1, step):
        raise UserError(f"{paths[0]}: the first frame must have number 0, 1 or {step}; extract the frames again")
    for path in paths:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty; extract the frames again")
