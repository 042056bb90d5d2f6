"""Output folder of `surgenet predict`.

    predict.json             model, options, and inputs. A run with others is refused
    predictions/00000.parquet    rows of part 0; all parts have the same columns
    masks/                   class ids of segmentation models as PNG (8-bit gray)
    overlays/                frames with painted classes as JPEG, or one MP4 per video
    phases/                  per video: segments (.csv), phase of each frame (.txt), ribbon (.png)
    parts/00000.json         marks part 0 as done, with its reports
    parts/00000.safetensors  state of a phase model after part 0, until its video is done
    report.json              at the end: totals, and files with errors or notes

A part is written completely or not at all: its marker comes last.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.torch import load_file, save_file

from ..atomic import atomic_write
from ..data.colors import palette
from ..data.frame_folders import writing
from ..data.video import JPEG_QUALITY
from ..errors import UserError
from ..figures import phase_figure, save_figure
from ..figures.overlays import paint
from .dense import DenseTable
from .overlay_video import write_overlay_video
from .predictors import EMBEDDINGS, Predictor
from .sources import Part, Report, Source

RECORD, REPORT = "predict.json", "report.json"
OTHERS = ("run.yaml", "config.json", "results.json")  # files of other commands, some of which would be replaced
WRITERS = 2  # threads that compress pictures
WAITING = 16  # maximum number of pictures that wait for them


def check_record(folder: Path, record: dict) -> None:
    """Check that an output folder is new, or of a run with the same record.

    Raises:
        UserError: the folder contains predictions of another model, of other options, or of other inputs, or the
            output of another command.
    """
    path = folder / RECORD
    if not path.exists():
        if other := next((name for name in OTHERS if (folder / name).exists()), None):
            raise UserError(f"{folder} contains {other} of another command; choose another --output_dir")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); choose another --output_dir") from error
    differing = [key for key in record if before.get(key) != record[key]]
    if not differing:
        return
    names = {"model": "weights or image processor", "input": "names, sizes, or times of the input files"}
    found = [f"{key} is {before.get(key)!r}, now {record[key]!r}" for key in differing if key not in names]
    found += [f"the {names[key]} have changed" for key in differing if key in names]
    raise UserError(f"{folder} contains predictions of another run: {'; '.join(found)}. Choose another --output_dir")


def read_record(folder: Path) -> dict | None:
    """Return the record of the run in a folder that `check_record` has accepted, or None in a new folder."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, content: dict) -> None:
    """Write JSON atomically."""
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


class PredictionWriter:
    """Writer of the predictions of parts, as a context manager.

    Args:
        folder: output folder.
        predictor: model.
        jobs: all jobs, also those of other processes.
        overlays: "frames" writes frames with painted classes. "video" replaces those of each video by an MP4 file at
            its end. None writes none.
        frames_per_second: sampling rate of videos. None: every picture.
    """

    def __init__(
        self,
        folder: Path,
        predictor: Predictor,
        jobs: list[list[Part]],
        overlays: str | None = None,
        frames_per_second: float | None = None,
    ):
        self.folder, self.predictor, self.overlays, self.rate = folder, predictor, overlays, frames_per_second
        self.rows: list[dict] = []  # of the current part, without those in `dense`
        self.dense: DenseTable | None = None
        self.count = 0  # rows of the current part
        self.reports: list[Report] = []
        self.parts_of: dict[str, list[Part]] = {}
        for part in (part for job in jobs for part in job):
            for source, *_ in part.sections:
                self.parts_of.setdefault(source.name, []).append(part)
        self.colors = palette(len(predictor.labels))

    def __enter__(self):
        self.pool = ThreadPoolExecutor(WRITERS, "surgenet-writer")
        self.pending: deque[Future] = deque()
        return self

    def __exit__(self, *error):
        self.pool.shutdown(cancel_futures=True)
        if self.dense is not None:  # an error
            self.dense.discard(*error)

    def marker(self, part: Part) -> Path:
        return self.folder / "parts" / f"{part.index:05d}.json"

    def table(self, part: Part) -> Path:
        return self.folder / "predictions" / f"{part.index:05d}.parquet"

    def remaining(self, job: list[Part]) -> list[Part]:
        """Return the parts of a job that are not done, and restore the state of a phase model before them."""
        done = next((i for i, part in enumerate(job) if not self.marker(part).exists()), len(job))
        for part in job[:done]:
            self._remove_frames(part)
        if 0 < done < len(job) and self.predictor.task == "phase-recognition":
            tensors = load_file(self._state(job[done - 1]), device=str(self.predictor.model.device))
            if tensors:  # none if the video ended earlier than its header says
                (source, *_) = job[done].sections[0]
                self.predictor.states[source.name] = tuple(tensors[name] for name in sorted(tensors))
        return job[done:]

    def add(self, part: Part, rows: list[dict], reports: list[Report]) -> None:
        """Add rows of a part and start to write their pictures, and their feature maps."""
        self.reports += reports
        for row in rows:
            image, mask = row.pop("image"), row.pop("mask", None)
            flat: dict[str, Any] = {}
            for name, value in row.items():
                flat |= (
                    {f"{name}_{key}": each for key, each in value.items()}
                    if isinstance(value, dict)
                    else {name: value}
                )
            if mask is not None:
                stem = _stem(row)
                flat |= {"mask": f"masks/{stem}.png", "height": mask.shape[0], "width": mask.shape[1]}
                self._start(_write_picture, Image.fromarray(mask), self.folder / flat["mask"])
                if self.overlays:
                    self._start(self._write_overlay, image, mask, self._overlay(row))
            self.count += 1
            if not self.predictor.dense:
                self.rows.append(flat)
                continue
            if self.dense is None:
                self.dense = DenseTable(self.table(part), flat, self._schema(flat))
            self.dense.add(flat)

    def finish(self, part: Part) -> None:
        """Write the table of a part and what its videos need, and mark it as done."""
        while self.pending:
            self.pending.popleft().result()
        if self.dense is not None:
            self.dense.close()
        if self.rows:
            path = self.table(part)
            with writing(path), atomic_write(path, durable=True) as temporary:
                pq.write_table(pa.Table.from_pylist(self.rows, self._schema(self.rows[0])), temporary)
        if self.predictor.task == "phase-recognition":
            self._finish_phases(part)
        for source in self._filmed(part):
            self._write_video(source)
        reports = [vars(report) for report in self.reports]
        write_json(self.marker(part), {"rows": self.count, "reports": reports})
        for source, _, end in part.sections if self.predictor.task == "phase-recognition" else ():
            for earlier in self.parts_of[source.name] if end is None else ():
                self._state(earlier).unlink(missing_ok=True)  # not before the marker: a resumed run needs them
        self._remove_frames(part)
        self.rows, self.dense, self.count, self.reports = [], None, 0, []

    def _start(self, function, *arguments) -> None:
        self.pending.append(self.pool.submit(function, *arguments))
        if len(self.pending) > WAITING:
            self.pending.popleft().result()

    def _write_overlay(self, image: Image.Image, mask: np.ndarray, path: Path) -> None:
        painted = paint(np.asarray(image), mask, self.predictor.labels, self.colors)
        _write_picture(Image.fromarray(painted), path, quality=JPEG_QUALITY)

    def _filmed(self, part: Part) -> list[Source]:
        """Return the videos that end in a part and get an overlay video."""
        return [
            source for source, _, end in part.sections if self.overlays == "video" and source.is_video and end is None
        ]

    def _write_video(self, source: Source) -> None:
        folder = self.folder / "overlays" / source.video
        rows = self._rows_of(source, ["frame", "seconds"])
        if first := next(rows, None):  # none if the video cannot be read
            frames = ((row["seconds"], self._overlay(row)) for row in chain([first], rows))
            write_overlay_video(folder.with_name(f"{folder.name}.mp4"), frames, self.rate)

    def _overlay(self, row: dict) -> Path:
        """Return the JPEG file of an overlay. Frames of an overlay video are in a folder of this video only."""
        if self.overlays == "video" and row["seconds"] is not None:
            return self._frames_of(row["file"]) / f"{row['frame']:06d}.jpg"
        return self.folder / "overlays" / f"{_stem(row)}.jpg"

    def _frames_of(self, file: str) -> Path:
        return self.folder / "parts" / f"overlay-{hashlib.sha256(file.encode()).hexdigest()[:16]}"

    def _remove_frames(self, part: Part) -> None:
        """Remove the frames of overlay videos, after the part is marked as done: a resumed run needs them before."""
        for source in self._filmed(part):
            if (folder := self._frames_of(source.name)).exists():
                shutil.rmtree(folder)

    def _rows_of(self, source: Source, columns: list[str]) -> Iterator[dict]:
        """Yield "file" and other columns of the rows of a video. One part is in memory at a time."""
        for part in self.parts_of[source.name]:
            if (path := self.table(part)).exists():
                rows = pq.read_table(path, columns=["file", *columns]).to_pylist()
                yield from (row for row in rows if row["file"] == source.name)

    def _schema(self, row: dict) -> pa.Schema:
        """Return the schema of a table without feature maps, from one of its rows."""
        columns = [("file", pa.string()), ("video", pa.string()), ("frame", pa.int64()), ("seconds", pa.float64())]
        task, labels = self.predictor.task, self.predictor.labels
        if task == EMBEDDINGS:
            columns.append(("embedding", pa.list_(pa.float32(), len(row["embedding"]))))
        elif task == "semantic-segmentation":
            columns += [(f"pixels_{label}", pa.int64()) for label in labels]
            columns += [("mask", pa.string()), ("height", pa.int32()), ("width", pa.int32())]
        else:
            columns += [(name, pa.string()) for name in ("label", "phase") if name in row]
            columns += [(f"score_{label}", pa.float32()) for label in labels]
            columns += [("repeated", pa.bool_())] if "repeated" in row else []
        return pa.schema(columns)

    def _state(self, part: Part) -> Path:
        return self.folder / "parts" / f"{part.index:05d}.safetensors"

    def _finish_phases(self, part: Part) -> None:
        for source, _, end in part.sections:
            if end is None:
                self._write_phases(source)
            else:
                state = self.predictor.states.get(source.name, ())
                path = self._state(part)
                with writing(path), atomic_write(path, durable=True) as temporary:
                    save_file({f"{i:03d}": tensor.contiguous() for i, tensor in enumerate(state)}, temporary)

    def _write_phases(self, source: Source) -> None:
        rows = list(self._rows_of(source, ["seconds", "phase"]))
        if not rows:  # the video cannot be read
            return
        step = rows[1]["seconds"] - rows[0]["seconds"] if len(rows) > 1 else 1 / self.predictor.frames_per_second
        base = self.folder / "phases" / source.video
        # sample k belongs to k / frames_per_second; numbers of pictures are uneven at most rates, which readers refuse
        frames = "".join(f"{k}\t{row['phase']}\n" for k, row in enumerate(rows))
        _write_text(base.with_name(f"{base.name}.txt"), f"Frame\tPhase\n{frames}")
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["start", "end", "phase"])
        groups = [list(group) for _, group in groupby(rows, lambda row: row["phase"])]
        starts = [group[0]["seconds"] for group in groups] + [rows[-1]["seconds"] + step]
        for group, start, end in zip(groups, starts, starts[1:], strict=False):
            table.writerow([f"{start:.3f}", f"{end:.3f}", group[0]["phase"]])
        _write_text(base.with_name(f"{base.name}.csv"), text.getvalue())
        ids = np.array([self.predictor.labels.index(row["phase"]) for row in rows])
        figure = phase_figure(None, {source.video: ids}, self.predictor.labels, step, self.predictor.name)
        save_figure(figure, base.with_name(f"{base.name}.png"))


def write_report(folder: Path, parts: list[Part], files: int, writer: PredictionWriter, **more) -> dict:
    """Combine the markers of all parts and `more` entries to report.json, and return its content."""
    rows, found = 0, {}
    for part in parts:
        content = json.loads(writer.marker(part).read_text(encoding="utf-8"))
        rows += content["rows"]
        for report in content["reports"]:
            found[report["file"], report["message"]] = report  # a video that was resumed may report twice
    entries = [{"file": each["file"], "message": each["message"]} for each in found.values() if each["is_error"]]
    notes = [{"file": each["file"], "message": each["message"]} for each in found.values() if not each["is_error"]]
    report = {"task": writer.predictor.task, "files": files, "frames": rows, "errors": entries, "notes": notes} | more
    write_json(folder / REPORT, report)
    return report


def _stem(row: dict) -> str:
    """Return the path of the pictures of a row without suffix."""
    if row["seconds"] is None:
        return os.path.splitext(row["file"])[0]
    return f"{row['video']}/{row['frame']:06d}"


def _write_text(path: Path, text: str) -> None:
    with writing(path), atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(text.encode())


def _write_picture(image: Image.Image, path: Path, **options) -> None:
    with writing(path), atomic_write(path) as temporary:
        image.save(temporary, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
