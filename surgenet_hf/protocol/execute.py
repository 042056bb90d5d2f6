"""Execution of cells with submitit: on this machine, or on a Slurm cluster."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel

from ..checkpointing import Termination
from ..checkpoints.catalog import RANDOM_WEIGHTS
from ..data.identity import digest
from ..errors import UserError
from ..image_processing import IMAGE_SIZE, build_image_processor
from ..models import resolve_model
from .cells import Cell, cell_command, cell_folder, cell_state
from .definition import ModelEntry, Protocol
from .storage import start_cell

POLL_SECONDS = 1.0
GRACE_SECONDS = 60  # for the checkpoint of a cell that is ended
RUNNER = str(Path(__file__).with_name("run_cell.py"))
NO_TIMEOUT = 60 * 24 * 365  # minutes; submitit ends local jobs after 2 minutes by default


@dataclass(frozen=True)
class Resources:
    """Where cells run.

    Attributes:
        cluster: "local" or "slurm".
        jobs: number of cells at a time. None: the number of GPUs divided by `gpus`, at least 1; on Slurm all.
        gpus: GPUs of a cell, which torchrun uses if there are several.
        slurm: further options of submitit without the prefix slurm_, e.g. {"partition": "gpu", "time": 1440}.
    """

    cluster: str = "local"
    jobs: int | None = None
    gpus: int | None = None
    slurm: Mapping[str, Any] | None = None


def check_resources(resources: Resources) -> None:
    """Check the numbers of cells and GPUs, and that the packages of the extra `protocol` are installed.

    Raises:
        UserError: a number is too small, or a package is missing.
    """
    if resources.jobs is not None and resources.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {resources.jobs}")
    if resources.gpus is not None and resources.gpus < 0:
        raise UserError(f"--gpus must be at least 0, got {resources.gpus}")
    if missing := [name for name in ("submitit", "cloudpickle") if find_spec(name) is None]:
        raise UserError(f"{missing[0]} is not installed; run pip install 'surgenet_hf[protocol]'")


def prepare_model(entry: ModelEntry, output_dir: Path) -> str:
    """Return initial weights as in `--model_name_or_path`. Random weights are saved once, with seed 0."""
    if entry.model is not None:
        return entry.model
    config: Any
    if entry.config is not None:
        config = AutoConfig.for_model(**entry.config)
    else:
        config = resolve_model(None, str(entry.backbone))
    size = entry.options.get("image_size") or getattr(config, "image_size", None) or IMAGE_SIZE
    folder = output_dir / "models" / f"{entry.name}-{digest([config.to_json_string(), size])}"
    if not (folder / "preprocessor_config.json").is_file():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModel.from_config(config)
        model.config.pretraining = {"name": RANDOM_WEIGHTS}
        model.save_pretrained(folder)
        build_image_processor(image_size=size).save_pretrained(folder)  # last: marks the folder as complete
    return str(folder)


def commands_of(
    cells: Sequence[Cell], protocol: Protocol, data_root: Path, output_dir: Path, gpus: int
) -> dict[str, list[str]]:
    """Return the command of each cell by its name. Models with random weights are written first."""
    entries = {cell.model.name: cell.model for cell in cells}
    models = {name: prepare_model(entry, output_dir) for name, entry in entries.items()}
    return {
        cell.name: cell_command(cell, protocol, data_root, output_dir, models[cell.model.name], gpus) for cell in cells
    }


def execute(
    protocol: Protocol,
    cells: Sequence[Cell],
    data_root: Path,
    output_dir: Path,
    resources: Resources,
    report: Callable[[Cell, str], None],
) -> None:
    """Compute cells. A failed cell does not stop the others. SIGTERM and Ctrl-C end the running cells.

    Args:
        protocol: protocol of the cells.
        cells: cells to compute.
        data_root: folder with the folders of the datasets.
        output_dir: output folder of the protocol.
        resources: where the cells run.
        report: function that is called with each cell and "done" or "failed", when it has ended.

    The definition of a cell is recorded when it starts. A failed cell starts from the beginning if its definition has
    changed.
    """
    import cloudpickle
    import submitit

    from . import job as job_module

    cloudpickle.register_pickle_by_value(job_module)
    is_local = resources.cluster == "local"
    visible = visible_gpus()
    gpus = resources.gpus
    if gpus is None:
        gpus = 1 if visible or not is_local else 0
    if is_local and gpus > len(visible):
        raise UserError(f"--gpus {gpus}, but this machine has {len(visible)}; choose fewer")
    if not is_local and not {"time", "timeout_min"} & set(resources.slurm or {}):
        raise UserError("--cluster slurm needs the time limit of a cell in minutes, e.g. --slurm time=1440")
    commands = commands_of(cells, protocol, data_root, output_dir, gpus)
    available = len(visible) // gpus if gpus and is_local else 1
    limit = resources.jobs or (available if is_local else len(cells))
    executor = submitit.AutoExecutor(folder=output_dir / "jobs" / "%j", cluster=resources.cluster)
    executor.update_parameters(name=f"protocol-{protocol.name}", tasks_per_node=1)
    executor.update_parameters(**({"timeout_min": NO_TIMEOUT} if is_local else {"gpus_per_node": gpus}))
    executor.update_parameters(**{f"slurm_{name}": value for name, value in (resources.slurm or {}).items()})
    slots = list(range(min(limit, len(cells))))
    waiting = list(cells)
    running: dict[str, tuple[Cell, Any, int]] = {}
    with (
        tqdm(total=len(cells), desc="Cells", unit="cell") as progress,
        Termination(signal.SIGTERM, signal.SIGINT) as termination,
    ):
        try:
            while (waiting or running) and not termination.received:
                while waiting and slots:
                    cell, slot = waiting.pop(0), slots.pop(0)
                    start_cell(cell, protocol, output_dir)
                    first = slot % available * gpus  # with more jobs than GPUs, they share them
                    own = ",".join(visible[first : first + gpus]) if is_local else "inherit"
                    start = [sys.executable, RUNNER, str(cell_folder(output_dir, cell)), own, *commands[cell.name]]
                    with _without_interrupts():
                        job = executor.submit(job_module.CellJob(start, verbose=False))
                    running[cell.name] = (cell, job, slot)
                for cell, job, slot in list(running.values()):
                    if job.done():
                        del running[cell.name]
                        slots.append(slot)
                        report(cell, cell_state(output_dir, cell) if job.exception() is None else "failed")
                        progress.update()
                time.sleep(POLL_SECONDS if running else 0)
        finally:
            _end([job for _, job, _ in running.values()], is_local)


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine as in CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[:count] if names else [str(i) for i in range(count)]


def _end(jobs: Iterable, is_local: bool) -> None:
    """End jobs, and wait until the local ones have saved their checkpoints.

    `cancel` of a local job would only end the first of its processes, and print a traceback. Only `run_cell.py` gets a
    signal, which it forwards to its command. A training whose data loading processes got one could not save.
    """
    if not is_local:
        for job in jobs:
            job.cancel()
        return
    processes = []
    for job in jobs:
        try:
            processes += psutil.Process(int(job.job_id)).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
    for process in processes:
        try:
            if RUNNER in process.cmdline()[:2]:
                process.terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=GRACE_SECONDS)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let processes that are started ignore Ctrl-C, which a terminal sends to all processes. `_end` ends them."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
