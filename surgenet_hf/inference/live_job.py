"""The job of `surgenet predict` for live input: predictions of one stream or camera, written to a folder."""

import os
import signal
import time
from contextlib import closing

from tqdm.auto import tqdm

from ..checkpointing import Termination, check_output_dir, lock_run
from ..distributed import process_state
from ..errors import UserError
from .job import check_overlays, choose_rate, digest_sources
from .live import TIMEOUT, LiveReader, LiveSource, live_source, predict_live
from .output import RECORD, PredictionWriter, check_record, write_json, write_report
from .prediction import fingerprint
from .predictors import Predictor
from .selection import apply_live, check_live_precision
from .settings import RuntimeArguments
from .sources import PART_FRAMES, Part, Report

PART_SECONDS = 60.0  # a killed run loses the rows of at most this time


def predict_live_to_folder(
    predictor: Predictor,
    address: str,
    output_dir: str | os.PathLike,
    fps: float | None = None,
    overlays: str | None = None,
    timeout: float = TIMEOUT,
    runtime: RuntimeArguments | None = None,
) -> dict:
    """Predict live input and write the results, until it ends, or until SIGINT (Ctrl-C) or SIGTERM.

    Nothing is written before the first picture arrives.

    Args:
        predictor: model.
        address: URL or device, see `find_live`.
        output_dir: new output folder, see `surgenet_hf.inference.output`.
        fps: predictions per second as in `choose_rate`, 0 for as many as possible.
        overlays: frames with painted classes, see `PredictionWriter`.
        timeout: seconds without a picture after which the run ends.
        runtime: runtime and precision, not auto. The default is float32 in PyTorch.

    Returns:
        The content of report.json, with "live": the counts of `LiveReader` and the seconds of the run.

    Raises:
        UserError: no picture arrives, the folder is not new, several processes are running, or the precision is auto.
    """
    if (processes := process_state().num_processes) > 1:
        raise UserError(f"live input needs one process, but {processes} are running; start one without a launcher")
    arguments = runtime or RuntimeArguments()
    check_live_precision(arguments)
    check_overlays(predictor, overlays)
    rate = choose_rate(predictor, fps)
    live = LiveReader(address, timeout)
    folder = check_output_dir(output_dir)
    if (folder / RECORD).exists():
        raise UserError(f"{folder} contains predictions, and live input does not resume; choose another --output_dir")
    check_record(folder, {})
    source = live_source(address)
    record = {
        "task": predictor.task,
        "model": fingerprint(predictor.model, predictor.processor),
        "labels": predictor.labels,
        **vars(arguments.setting),
        "frames_per_second": rate,
        "overlays": overlays,
        "dense": predictor.dense,
        "live": source.name,
    }
    calibration = apply_live(predictor, arguments)  # after all checks, because int8 takes minutes
    record["calibration"] = digest_sources(calibration) if calibration else None
    with live as reader:  # connects last, because pictures are dropped meanwhile
        first = reader.first()
        with (
            lock_run(folder),
            PredictionWriter(folder, predictor, [], overlays, rate) as writer,
            Termination(signal.SIGINT, signal.SIGTERM) as termination,
        ):
            write_json(folder / RECORD, record)
            started = time.monotonic()
            parts = _write_rows(predictor, reader, rate, first, source, writer, lambda: termination.received)
            counts = reader.counts() | {"seconds": round(time.monotonic() - started, 1)}
            return write_report(folder, parts, 1, writer, live=counts)


def _write_rows(predictor, reader, rate, first, source: LiveSource, writer: PredictionWriter, stopped) -> list[Part]:
    """Write the rows in parts of at most `PART_SECONDS`, and return the parts."""
    parts: list[Part] = []
    done, size, started = 0, 0, time.monotonic()

    def finish(end: int | None) -> None:
        parts.append(Part(len(parts), ((source, done, end),)))
        writer.parts_of.setdefault(source.name, []).append(parts[-1])
        writer.finish(parts[-1])

    with (
        tqdm(desc="Predicting", unit="frame") as progress,
        closing(predict_live(predictor, reader, rate, first, stopped)) as rows,
    ):
        for row in rows:
            if size == PART_FRAMES or (size and time.monotonic() - started > PART_SECONDS):
                finish(done + size)
                done, size, started = done + size, 0, time.monotonic()
            writer.add(Part(len(parts), ((source, done, None),)), [row], [])
            size += 1
            progress.update()
            progress.set_postfix(dropped=reader.dropped, refresh=False)
    reports = []
    if not stopped():
        reports.append(Report(source.name, f"ended after {reader.timeout:g} s without a picture: {reader.reason}"))
    writer.add(Part(len(parts), ()), [], reports)
    finish(None)
    return parts
