"""The job of `surgenet predict`: predictions for many files, written to a folder."""

import hashlib
import logging
import os
import time
from contextlib import closing
from pathlib import Path

from tqdm.auto import tqdm

from ..checkpointing import check_output_dir, lock_run
from ..distributed import broadcast, is_main_process, process_state, wait_for_everyone
from ..errors import UserError
from .output import RECORD, PredictionWriter, check_record, read_record, write_json, write_report
from .prediction import fingerprint
from .predictors import Predictor, predict_parts
from .selection import BATCHES, Runtimes, read_images, resume
from .settings import RuntimeArguments
from .sources import Source, divide, find_sources, share_jobs

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
PHASES_NEED_VIDEOS = (
    "a phase model needs videos, because it uses the order and the rate of the frames; {name} is an image. Give "
    "videos, or use --task embeddings"
)


def choose_rate(predictor: Predictor, fps: float | None) -> float | None:
    """Return the sampling rate of videos, or None for every picture.

    Args:
        predictor: model.
        fps: frames per second, 0 for every picture, or None for the default of the model.

    Raises:
        UserError: the rate is negative, or differs from that of a phase model's training.
    """
    if fps is None:
        return predictor.frames_per_second
    if not 0 <= fps < float("inf"):
        raise UserError(f"--fps must be finite and at least 0, got {fps}; 0 means every frame")
    if predictor.task == "phase-recognition" and fps != predictor.frames_per_second:
        raise UserError(
            f"the phase model was trained at {predictor.frames_per_second:g} frames per second and needs this rate, "
            f"but --fps is {fps:g}; omit --fps"
        )
    return fps or None


def check_sources(predictor: Predictor, sources: list[Source]) -> None:
    """Check that a model can be applied to the sources.

    Raises:
        UserError: the model recognizes phases, and a source is an image.
    """
    image = next((source for source in sources if not source.is_video), None)
    if predictor.task == "phase-recognition" and image is not None:
        raise UserError(PHASES_NEED_VIDEOS.format(name=image.name))


def check_batch_size(batch_size: int, num_workers: int | None) -> None:
    """Check the numbers of frames and threads.

    Raises:
        UserError: a number is too small.
    """
    if batch_size < 1:
        raise UserError(f"--per_device_eval_batch_size must be at least 1 frame, got {batch_size}")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"--dataloader_num_workers must be at least 0, got {num_workers}")


def check_overlays(predictor: Predictor, overlays: str | None) -> None:
    """Check that a model gives masks if overlays are requested.

    Raises:
        UserError: it is for another task, or `overlays` is unknown.
    """
    if overlays not in (None, "frames", "video"):
        raise UserError(f"--overlays is {overlays!r}; expected 'frames' or 'video'")
    if overlays and predictor.task != "semantic-segmentation":
        raise UserError(f"--overlays needs a segmentation model; this model is for {predictor.task}. Omit --overlays")


def predict_to_folder(
    predictor: Predictor,
    source,
    output_dir: str | os.PathLike,
    fps: float | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    overlays: str | None = None,
    runtime: RuntimeArguments | None = None,
) -> dict | None:
    """Predict images and videos and write the results. All processes must call it, and share the files.

    A run that was killed resumes with the same call. Its files are then the same as those of a run without a break.

    Args:
        predictor: model in float32.
        source: input as in `find_sources`.
        output_dir: output folder, see `surgenet_hf.inference.output`.
        fps: sampling rate of videos as in `choose_rate`.
        batch_size: number of frames per forward pass.
        num_workers: number of threads that read ahead. None: chosen by the number of cores.
        overlays: frames with painted classes, see `PredictionWriter`.
        runtime: runtime and precision. The default is float32 in PyTorch.

    Returns:
        The content of report.json. None in other processes than the first, which waits for them.

    Raises:
        UserError: the input does not exist or does not fit the model, or the folder contains other predictions.
    """
    check_batch_size(batch_size, num_workers)
    check_overlays(predictor, overlays)
    runtimes = Runtimes(predictor, runtime or RuntimeArguments(), batch_size)
    folder = check_output_dir(output_dir)
    rate = choose_rate(predictor, fps)
    sources = find_sources(source, rate, exclude=folder)
    check_sources(predictor, sources)
    jobs = divide(sources)
    parts = [part for job in jobs for part in job]
    record = {
        "task": predictor.task,
        "model": fingerprint(predictor.model, predictor.processor),
        "labels": predictor.labels,
        "batch_size": batch_size,
        "frames_per_second": rate,
        "overlays": overlays,
        "dense": predictor.dense,
        "files": len(sources),
        "input": digest_sources(sources),
    }
    check_record(folder, record)  # before the settings are measured
    before = read_record(folder)
    first = read_images(sources, rate, BATCHES * batch_size) if runtimes.needs_frames else []
    setting = resume(runtimes.arguments, before)
    if setting is None:
        setting = broadcast(runtimes.choose(first) if is_main_process() else None)
    record |= vars(setting)
    record["calibration"] = digest_sources(runtimes.calibration) if setting.precision == "int8" else None
    if measured := (before or {}).get("measured") or [each.record() for each in runtimes.measured]:
        record["measured"] = measured
    state = process_state()
    with lock_run(folder, is_main_process()), PredictionWriter(folder, predictor, jobs, overlays, rate) as writer:
        check_record(folder, record)
        wait_for_everyone()  # all processes have checked the folder before one writes to it
        runtimes.apply(setting, first)  # before the record: after an error, another setting can be given
        if is_main_process():
            write_json(folder / RECORD, record)
        own = share_jobs(jobs, state.process_index, state.num_processes)
        left = [writer.remaining(job) for job in own]
        total = sum(part.frames for job in own for part in job)
        done = total - sum(part.frames for job in left for part in job)
        with (
            tqdm(
                total=total, initial=done, desc="Predicting", unit="frame", disable=not state.is_local_main_process
            ) as progress,
            closing(predict_parts(predictor, left, rate, batch_size, num_workers)) as found,
        ):
            for each in found:
                progress.update(len(each.rows))
                writer.add(each.part, each.rows, each.reports)
                for report in each.reports:
                    logger.log(
                        logging.WARNING if report.is_error else logging.INFO, f"{report.file}: {report.message}"
                    )
                if each.is_last:
                    writer.finish(each.part)
        if not is_main_process():
            return None
        # No barrier: it would time out if the other processes still need more than a few minutes.
        while not all(writer.marker(part).exists() for part in parts):
            time.sleep(POLL_SECONDS)
        return write_report(folder, parts, len(sources), writer)


def digest_sources(sources: list[Source]) -> str:
    """Return a fingerprint of the names, sizes, and times of the sources with 16 hexadecimal digits."""
    found = hashlib.sha256()
    for source in sources:
        found.update(repr((source.name, source.stamp, source.frames)).encode())
        if not isinstance(source.content, Path):  # rows of a dataset, which has its own fingerprint
            found.update(source.content[0]._fingerprint.encode())
    return found.hexdigest()[:16]
