"""Output folders and the checkpoints in them.

Fine-tuning and pretraining share this module. It checks that an output folder is writable, and locks it during a run.
It also verifies checkpoints, adds their records, and deletes them. A checkpoint is a folder `checkpoint-STEP`. Its
record, `run.json`, is written last and contains:

    files     the SHA-256 of every other file; a checkpoint with a missing record or changed files is not used
    ...       the options and data of the run, which must be the same in a resumed run
"""

import json
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .atomic import atomic_write, sync_folder
from .checkpoints.reading import file_sha256
from .errors import UnavailableError, UserError

logger = logging.getLogger(__name__)

RECORD = "run.json"
LOCK = ".lock"
RESUME = "resume it with --resume_from_checkpoint true, or choose another --output_dir"


class TrainingStopped(UserError):
    """Error for a run that cannot continue. The message states the reason and what to do."""


def check_output_dir(path: str | os.PathLike, option: str = "--output_dir") -> Path:
    """Check that an output folder is writable or can be created, without creating it.

    Args:
        path: output folder.
        option: name of the option in the error message.

    Returns:
        The folder.

    Raises:
        UnavailableError: the path or one of its parents is a file, or the folder cannot be created or written to.
    """
    path = Path(path)
    try:
        found = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if found.is_dir():
            with tempfile.TemporaryFile(dir=found):
                return path
        reason = f"{found} is a file"
    except OSError as error:
        reason = error.strerror or str(error)
    raise UnavailableError(
        f"{option} {path} cannot be written to ({reason}): give a folder that exists or can be created"
    )


@contextmanager
def lock_run(output_dir: str | os.PathLike, is_main: bool = True) -> Iterator[None]:
    """Prevent other runs from writing to a folder while the block runs.

    Args:
        output_dir: output folder, created if it does not exist.
        is_main: whether this is the main process of the run. Only the main process takes the lock.

    Raises:
        UserError: another run is writing to the folder.
        UnavailableError: the folder cannot be written to.
    """
    lock = FileLock(Path(output_dir) / LOCK, timeout=0)
    if is_main:
        output_dir = check_output_dir(output_dir)
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another run is writing to {output_dir}: wait until it ends, or choose another --output_dir"
            ) from error
        except OSError as error:
            raise UnavailableError(f"--output_dir {output_dir} cannot be written to: {error}") from error
    try:
        yield
    finally:
        lock.release()


class Termination:
    """Context manager that records SIGTERM, or other signals, instead of exiting.

    Slurm and Kubernetes send SIGTERM before they kill a process. Outside the main thread, where Python does not allow
    signal handlers, the context manager has no effect.

    Args:
        signals: signals to record. Default: SIGTERM.

    Attributes:
        received: whether a signal arrived.
    """

    received = False

    def __init__(self, *signals: signal.Signals):
        self.signals = signals or (signal.SIGTERM,)

    def __enter__(self):
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {each: signal.signal(each, self._receive) for each in self.signals}
        return self

    def __exit__(self, *error):
        for each, previous in self.previous.items():
            signal.signal(each, previous)

    def _receive(self, number, frame):
        self.received = True


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders `checkpoint-STEP`, complete or incomplete, sorted by step."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output_dir.glob("checkpoint-*")}
    return sorted(filter(steps.get, steps), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def write_record(checkpoint: Path, record: Mapping) -> None:
    """Write the record that completes a checkpoint.

    All other files are on the disk before the record appears.

    Args:
        checkpoint: folder of the checkpoint.
        record: options and data of the run.
    """
    sync_folder(checkpoint)
    files = {
        path.relative_to(checkpoint).as_posix(): file_sha256(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    with atomic_write(checkpoint / RECORD, durable=True) as temporary:
        temporary.write_text(json.dumps({**record, "files": files}, indent=2) + "\n", encoding="utf-8")


def read_record(checkpoint: Path) -> dict:
    """Read the record of a checkpoint.

    Raises:
        UserError: the folder has no record, or the record is damaged.
    """
    path = Path(checkpoint) / RECORD
    if not path.is_file():
        raise UserError(
            f"{checkpoint} has no {RECORD}: the run was killed while saving it, or it is not a checkpoint of this "
            "package. Give a complete folder checkpoint-STEP"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["files"], dict):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is damaged: it does not contain the record of a checkpoint. Use an earlier checkpoint")


def check_complete(checkpoint: Path) -> dict:
    """Compare the files of a checkpoint with its record, and return the record.

    Raises:
        UserError: the record or a file is missing or damaged. The message names the file.
    """
    record = read_record(checkpoint)
    for name, sha256 in record["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise UserError(f"{path} is missing: {checkpoint} is not complete. Use an earlier checkpoint")
        if file_sha256(path) != sha256:
            raise UserError(f"{path} is damaged: its SHA-256 differs from the recorded one. Use an earlier checkpoint")
    return record


def resume_point(output_dir: Path, requested: str | bool | None) -> Path | None:
    """Return the checkpoint that a run resumes from, or None if the run starts from the beginning.

    A folder is verified. A file, such as a full DINO checkpoint, is not.

    Args:
        output_dir: output folder of the run.
        requested: value of `--resume_from_checkpoint`: a path, or "true" for the last complete checkpoint in
            `output_dir`. With "true", damaged checkpoints are skipped with a warning. With "false" or None, the run
            starts from the beginning.

    Raises:
        UserError: `output_dir` contains a checkpoint of another run, or only damaged checkpoints. Also raised if the
            requested path does not exist or is not a complete checkpoint.
    """
    checkpoints = list_checkpoints(output_dir)
    # a killed run can leave a folder without the files that are written last
    used = [path for path in checkpoints if (path / RECORD).exists() or (path / "trainer_state.json").exists()]
    choice = str(requested or False).lower()
    if choice == "false":
        if used:
            raise UserError(f"{used[-1]} is from an earlier run: {RESUME}")
        return None
    if choice == "true":
        for checkpoint in reversed(checkpoints):
            try:
                check_complete(checkpoint)
                return checkpoint
            except UserError as error:
                logger.warning(f"Skipping {checkpoint.name}: {error}")
        if used:
            raise UserError(
                f"{output_dir} contains no complete checkpoint to resume from; see the warnings above. Delete "
                f"{', '.join(path.name for path in used)} to start from the beginning, or choose another --output_dir"
            )
        return None
    path = Path(str(requested))
    if not path.exists():
        raise UserError(f"--resume_from_checkpoint {requested}: there is no such file or folder")
    if used and path.resolve() not in [checkpoint.resolve() for checkpoint in used]:
        raise UserError(f"{output_dir} contains {used[-1].name} of another run: {RESUME}")
    if path.is_dir():
        check_complete(path)
    return path


def compare_records(recorded: Mapping, current: Mapping, checkpoint: Path, advice: str) -> None:
    """Check that a resumed run has the options and data of the run that wrote the checkpoint.

    Args:
        recorded: {name: value} of the checkpoint.
        current: {name: value} of the resumed run. Only these names are compared.
        checkpoint: checkpoint that the error message names.
        advice: last sentence of the error message.

    Raises:
        UserError: values differ. The message lists them.
    """
    current = json.loads(json.dumps(current))  # tuples become lists, as in the record
    different = [name for name in current if current[name] != recorded.get(name)]
    if different:
        lines = [f"{name}: {recorded.get(name)} in the checkpoint, {current[name]} now" for name in different]
        raise UserError(f"{checkpoint} is from another run:\n- " + "\n- ".join(lines) + f"\n{advice}")


def delete_later_checkpoints(output_dir: Path, step: int) -> None:
    """Delete the checkpoints of later steps.

    They are damaged, or were written before the run was resumed from an earlier checkpoint.
    """
    for checkpoint in list_checkpoints(output_dir):
        if step_of(checkpoint) > step:
            delete_checkpoint(checkpoint)


def delete_old_checkpoints(output_dir: Path, keep: int | None, protected: Collection[Path] = ()) -> None:
    """Delete old checkpoints.

    Args:
        output_dir: output folder of the run.
        keep: number of the latest checkpoints to keep. None keeps all.
        protected: checkpoints that are always kept, as is the last checkpoint. All of these count toward `keep`.
    """
    if keep is None:
        return
    *others, last = list_checkpoints(output_dir)
    kept = {last, *protected}
    for checkpoint in reversed(others):
        if checkpoint not in kept and len(kept) >= keep:
            delete_checkpoint(checkpoint)
        kept.add(checkpoint)


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint.

    The folder is renamed first, so that a partly deleted folder is never used as a checkpoint.
    """
    renamed = checkpoint.with_name(f".{checkpoint.name}.deleted")
    for leftover in checkpoint.parent.glob(".checkpoint-*.deleted"):  # a run was killed during deletion
        shutil.rmtree(leftover)
    shutil.rmtree(checkpoint.replace(renamed))
