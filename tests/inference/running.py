"""Runs of `surgenet predict` in other processes, see `tests.processes`, and the rows that a run has written."""

import json
import resource
from pathlib import Path

import pyarrow.parquet as pq

from surgenet_hf.cli.predict import main
from surgenet_hf.inference import live_job, sources
from surgenet_hf.inference.job import predict_to_folder
from surgenet_hf.tasks import load_predictor


def predict_in_parts(argv: list[str], part_frames: int) -> None:
    """Run the command with parts of a number of frames."""
    sources.PART_FRAMES = part_frames
    main(argv)


def predict_live(argv: list[str], part_seconds: float) -> None:
    """Run the command with a live input and parts of a number of seconds."""
    live_job.PART_SECONDS = part_seconds
    main(argv)


def measure_memory(model: str, videos: list[Path], folder: Path) -> None:
    """Predict every frame of each video, and write `memory.json`: (frames, peak memory in KiB) after each."""
    found = []
    for number, video in enumerate(videos):
        report = predict_to_folder(load_predictor(model), video, folder / str(number), batch_size=32, fps=0)
        found.append((report["frames"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    (folder / "memory.json").write_text(json.dumps(found))


def rows_of(folder: Path) -> list[dict]:
    tables = [pq.read_table(path) for path in sorted((folder / "predictions").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]
