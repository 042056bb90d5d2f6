"""Pretraining shards from videos: a few large tar or zip files of JPEG frames, and an index of the frames.

`prepare_frames` works in two stages, so that it can be interrupted at any time and resumed:

1. Videos are processed in parallel, each into its own part (`surgenet_hf.preparation.extraction`).
2. `parts/plan.json` records which frames belong in which shard. The shards are written one after the other. The frames
   of a part are deleted once all of them are in shards. The index follows, and the report comes last.

Every file gets its final name only when it is complete. The plan follows from the names of the videos. The result is
therefore identical, byte for byte, for any number of workers and interruptions.

The required disk space is that of the frames (about 110 kB each at 854x480), plus one shard and the longest video. It
is not more, because parts are deleted as shards are written.
"""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..checkpointing import check_output_dir
from ..errors import UserError
from .extraction import NOTHING, FrameOptions, Video, extract_parts, new_file, scan_videos, write_json
from .frame_list import FrameList, listed_name

INDEX, REPORT, UNMATCHED = "index.parquet", "report.json", "unmatched.txt"
COUNTS = ("sampled", "kept", "black", "duplicate")
SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # file name of the shard
        ("name", pa.string()),  # of the JPEG in the shard: <procedure>/<video>_<number>.jpg, made valid and unique
        ("video", pa.string()),  # path relative to the folder of videos
        ("procedure", pa.string()),
        ("number", pa.int32()),  # of the frame in its video: index of the sample, or n of the frame list
        ("second", pa.float64()),  # relative to the video's first frame
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the JPEG
    ]
)


def prepare_frames(
    videos_dir: str | Path,
    output_dir: str | Path,
    options: FrameOptions | None = None,
    frame_list: str | Path | None = None,
    num_workers: int = 0,
) -> dict:
    """Write frames of all videos below a folder to shards `<procedure>-<number>.<tar|zip>`, and return the report.

    The procedure of a video is the first folder below `videos_dir` on its path (`<procedure>/<video>.mp4`,
    `<procedure>/<video>/<file>.mp4`). A video directly in `videos_dir` has the name of `videos_dir` as its procedure.
    `output_dir` also gets these files:

    - `index.parquet`: a row for each frame, see `SCHEMA`, in the order of the shards.
    - `report.json`: the settings, the `totals` of sampled, kept, and dropped frames by reason, and the same counts for
      each of `videos`. A video that could not be read has an `error` and contributes no frames.
    - `unmatched.txt` (only with a frame list): entries without a frame and videos without an entry, with the reason.

    Another call resumes an interrupted run. It also retries broken videos, unless shard writing has started. It does
    not change a complete output.

    Args:
        videos_dir: folder of the videos.
        output_dir: folder for the shards.
        options: choice and storage of the frames. None means the defaults.
        frame_list: frame list of the authors, see `surgenet_hf.preparation.frame_list`. If given, only its frames are
            extracted, by their numbers.
        num_workers: number of videos to decode in parallel, or 0 for one per processor core.

    Raises:
        MissingFileError: the folder or the frame list does not exist.
        UserError: there are no videos or no frames, or the frame list matches no video. Also if `output_dir` holds
            other files, or shards of other videos or settings. Also if another run uses `output_dir`, or a worker
            process died.
        UnavailableError: a file cannot be written. No partial file is left under a final name.
    """
    if num_workers < 0:
        raise UserError(f"num_workers must be at least 0 (0: one per core), got {num_workers}")
    options, output_dir = options or FrameOptions(), Path(output_dir)
    parts = output_dir / "parts"
    settings = {**asdict(options), "frame_list": None}
    videos, listed = scan_videos(Path(videos_dir)), None
    if frame_list is not None:
        if options.frames_per_second != 1:
            raise UserError("a frame list selects frames by number; leave frames_per_second at 1")
        listed = FrameList(frame_list)
        settings["frame_list"] = hashlib.sha256(Path(frame_list).read_bytes()).hexdigest()
        videos = _restrict(videos, listed)
    if (output_dir / REPORT).exists():
        report = _read(output_dir / REPORT)
        _check_settings(output_dir, settings, report["settings"])
        _check_videos(output_dir, videos, {name: row["bytes"] for name, row in report["videos"].items()})
        shutil.rmtree(parts, ignore_errors=True)
        return report
    if output_dir.is_dir() and not parts.exists() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir} contains files from another source; choose a new folder")
    check_output_dir(output_dir)
    parts.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(parts / ".lock", timeout=10):
            if (output_dir / REPORT).exists():  # another run finished while this one waited for the lock
                return prepare_frames(videos_dir, output_dir, options, frame_list, num_workers)
            report = _prepare(videos, output_dir, options, settings, listed, num_workers)
    except Timeout as error:
        raise UserError(f"another run is writing to {output_dir}; wait until it has finished") from error
    shutil.rmtree(parts)
    return report


def _prepare(
    videos: list[Video],
    output_dir: Path,
    options: FrameOptions,
    settings: dict,
    listed: FrameList | None,
    num_workers: int,
) -> dict:
    parts = output_dir / "parts"
    for leftover in parts.glob(".*.partial"):
        leftover.unlink()
    if (parts / "settings.json").exists():
        _check_settings(output_dir, settings, _read(parts / "settings.json"))
    else:
        write_json(parts / "settings.json", parts, settings)
    if not (parts / "plan.json").exists():
        extract_parts([video for video in videos if video.wanted != ()], parts, options, num_workers)
        rows = _rows(videos, parts)
        shards = _plan(videos, rows, options)
        write_json(parts / "plan.json", parts, {"videos": {v.name: v.bytes for v in videos}, "shards": shards})
    plan = _read(parts / "plan.json")
    _check_videos(output_dir, videos, plan["videos"])

    rows, by_id = _rows(videos, parts), {video.id: video for video in videos}
    for shard in tqdm(plan["shards"], desc="Writing shards"):
        if not (output_dir / shard["file"]).exists():
            _write_shard(output_dir / shard["file"], parts, by_id, shard["pieces"])
        for id, _, stop in shard["pieces"]:
            if stop == rows[by_id[id].name]["kept"]:
                (parts / f"{id}.frames").unlink(missing_ok=True)
    with new_file(output_dir / INDEX, parts) as file, pq.ParquetWriter(file, SCHEMA) as index:
        for shard in plan["shards"]:
            index.write_table(pa.Table.from_pylist(list(_index(shard, parts, by_id)), SCHEMA))

    totals = {"videos": len(videos), "shards": len(plan["shards"])}
    totals |= {key: sum(row[key] for row in rows.values()) for key in COUNTS}
    totals["broken"] = sum(row["error"] is not None for row in rows.values())
    if listed is not None:
        lines = _unmatched(videos, rows, listed)
        with new_file(output_dir / UNMATCHED, parts) as file:
            file.writelines(f"{line}\n".encode() for line in lines)
        totals |= {"unmatched": len(lines), "listed": len(listed)}
    for row in rows.values():
        del row["missing"]
    report = {"totals": totals, "settings": settings, "videos": rows}
    write_json(output_dir / REPORT, parts, report, indent=1)
    return report


def _restrict(videos: list[Video], listed: FrameList) -> list[Video]:
    matched = listed.match((video.path.name, video.procedure) for video in videos)
    if not any(matched):
        raise UserError(
            f"no video matches the frame list: the list has names such as {next(iter(listed.frames))!r}, but the "
            f"videos have names such as {listed_name(videos[0].path.name)!r}"
        )
    return [
        replace(video, wanted=tuple(sorted(set().union(*lines.values()))))
        for video, lines in zip(videos, matched, strict=True)
    ]


def _rows(videos: list[Video], parts: Path) -> dict[str, dict]:
    """Return the outcome for each video, by name.

    It includes only the number of a video's frames, because all frame records together could fill the memory.
    """
    rows = {}
    for video in videos:
        part = NOTHING if video.wanted == () else _read(parts / f"{video.id}.json")
        rows[video.name] = {"procedure": video.procedure, "bytes": video.bytes, **part, "kept": len(part["frames"])}
        del rows[video.name]["frames"]
    return rows


def _plan(videos: list[Video], rows: dict[str, dict], options: FrameOptions) -> list[dict]:
    """Plan the shards of each procedure and the frame ranges of each shard.

    The shards of a procedure differ in size by at most one frame.
    """
    shards = []
    for folder, group in groupby(videos, key=lambda video: video.key.split("/")[0]):
        counts = [(video.id, rows[video.name]["kept"]) for video in group]
        total = sum(kept for _, kept in counts)
        number = -(-total // options.frames_per_shard)
        for i in range(number):
            first, last, start, pieces = total * i // number, total * (i + 1) // number, 0, []
            for id, kept in counts:
                piece = [id, max(first - start, 0), min(last - start, kept)]
                pieces += [piece] if piece[1] < piece[2] else []
                start += kept
            shards.append({"file": f"{folder}-{i:05d}.{options.shard_format}", "pieces": pieces})
    if not shards:
        errors = "".join(f"\n{row['error']}" for row in rows.values() if row["error"])
        raise UserError(f"no frames were found in {len(videos)} videos{errors}")
    return shards


def _write_shard(path: Path, parts: Path, by_id: dict[str, Video], pieces: list[list]) -> None:
    tar = path.suffix == ".tar"
    with (
        new_file(path, parts) as file,
        tarfile.open(fileobj=file, mode="w") if tar else zipfile.ZipFile(file, "w") as archive,
    ):
        for id, start, stop in pieces:
            frames = _read(parts / f"{id}.json")["frames"]
            with open(parts / f"{id}.frames", "rb") as part:
                part.seek(sum(frame[4] for frame in frames[:start]))
                for number, *_, size, _ in frames[start:stop]:
                    name, jpeg = _name(by_id[id], number), part.read(size)
                    # without times and owners, so that shards of the same frames are identical
                    if tar:
                        info = tarfile.TarInfo(name)
                        info.size = size
                        archive.addfile(info, io.BytesIO(jpeg))
                    else:
                        archive.writestr(zipfile.ZipInfo(name), jpeg)


def _name(video: Video, number: int) -> str:
    return f"{video.key}_{number:06d}.jpg"


def _index(shard: dict, parts: Path, by_id: dict[str, Video]) -> Iterator[dict]:
    for id, start, stop in shard["pieces"]:
        video = by_id[id]
        for number, second, width, height, _, digest in _read(parts / f"{id}.json")["frames"][start:stop]:
            yield {
                "shard": shard["file"],
                "name": _name(video, number),
                "video": video.name,
                "procedure": video.procedure,
                "number": number,
                "second": second,
                "width": width,
                "height": height,
                "sha256": digest,
            }


def _unmatched(videos: list[Video], rows: dict[str, dict], listed: FrameList) -> list[str]:
    """Return the lines of `unmatched.txt`, each with the reason, a tab, and the item.

    The items are entries without a frame, malformed lines, and videos without an entry.
    """
    left: dict[tuple[str, str | None], tuple[str, set[int]]] = {}
    matched = listed.match((video.path.name, video.procedure) for video in videos)
    lines = []
    for video, entries in zip(videos, matched, strict=True):
        if not entries:
            lines.append(f"the list does not name this video\t{video.name}")
        reason = "the video is broken" if rows[video.name]["error"] else "the video has no such frame"
        for procedure, numbers in entries.items():
            key = (listed_name(video.path.name), procedure)
            missing = numbers & set(rows[video.name]["missing"])
            left[key] = (reason, left[key][1] & missing if key in left else missing)
    for name, entries in listed.frames.items():
        for procedure, numbers in entries.items():
            reason, missing = left.get((name, procedure), ("there is no such video", numbers))
            folder = f"{procedure}/" if procedure else ""
            lines += [f"{reason}\t{folder}{name}_frame_{n}" for n in sorted(missing)]
    return lines + [f"this line does not name a frame\t{line}" for line in listed.malformed]


def _read(path: Path) -> dict:
    return json.loads(path.read_bytes())


def _check_settings(output_dir: Path, settings: dict, before: dict) -> None:
    differing = [key for key in settings if before.get(key) != settings[key]]
    if differing:
        raise UserError(
            f"{output_dir} was created with {', '.join(f'{key}={before.get(key)!r}' for key in differing)}, but the "
            f"current settings are {', '.join(f'{key}={settings[key]!r}' for key in differing)}; use the same "
            "settings or another folder"
        )


def _check_videos(output_dir: Path, videos: list[Video], before: dict[str, int]) -> None:
    """Check that the videos are those of an earlier plan.

    Shards are planned for all videos at once, so new or repaired videos would change all shards.

    Raises:
        UserError: videos are new, missing, or changed.
    """
    now = {video.name: video.bytes for video in videos}
    differing = sorted(dict(now.items() ^ before.items()))
    if differing:
        raise UserError(
            f"{output_dir} contains shards of other videos: {len(differing)} are new, missing or changed, such as "
            f"{', '.join(differing[:3])}. Put new and repaired videos into a separate --videos_dir and prepare it "
            f"into another folder. To train on both: --dataset shards shards --data_dir {output_dir} OTHER"
        )
