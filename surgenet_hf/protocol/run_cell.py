"""Process of one cell: `python run_cell.py FOLDER GPUS COMMAND...`, where GPUS is CUDA_VISIBLE_DEVICES or "inherit".

It imports nothing from the package, because importing it takes seconds and the command does so anyway.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

RESULTS, FAILED, LOG = "results.json", "failed.json", "log.txt"
MESSAGE_LINES = 5  # lines of a failed cell's output that its record contains


def run_cell(folder: Path, command: Sequence[str], signals: Sequence[int] = ()) -> bool:
    """Compute a cell, unless it is done. A second process of the same cell waits for the first.

    What the command prints is appended to log.txt next to the folder. When the cell is done, its checkpoints are
    removed.

    Args:
        folder: output folder of the command.
        command: command.
        signals: signals that end the command. The cell then continues in a later call.

    Returns:
        Whether the cell is done. If the command failed, failed.json has its exit status and last lines.
    """
    log, lock = (folder.with_name(f"{folder.name}{end}") for end in (f"-{LOG}", ".lock"))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if (folder / RESULTS).is_file():
            return True
        (folder / FAILED).unlink(missing_ok=True)
        received = []
        with open(log, "ab") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:

            def end(number, frame) -> None:
                received.append(number)
                process.terminate()

            for number in signals:
                signal.signal(number, end)
            status = process.wait()
        if status == 0 and (folder / RESULTS).is_file():
            remove_checkpoints(folder)
            return True
        if received:
            return False
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{FAILED}.tmp"
        record = {"exit_status": status, "message": "\n".join(lines[-MESSAGE_LINES:])}
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / FAILED)
        return False


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a resumed training would need: checkpoints, and features of stage 2 of phase recognition."""
    for pattern in ("checkpoint-*", "stage[12]/checkpoint-*", "features"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


if __name__ == "__main__":
    if sys.argv[2] != "inherit":  # submitit numbers the GPUs of a machine from 0, whatever is visible
        os.environ["CUDA_VISIBLE_DEVICES"] = sys.argv[2]
    # Before the time limit, Slurm sends SIGUSR2 to all processes. Only that of submitit reacts, and ends this one with
    # SIGTERM. The command inherits that the signal is ignored.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    run_cell(Path(sys.argv[1]), sys.argv[3:], (signal.SIGTERM, signal.SIGINT))
