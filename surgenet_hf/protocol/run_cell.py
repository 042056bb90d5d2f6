"""Process of one cell: `python run_cell.py FOLDER COMMAND...`.

It imports nothing from the package, because importing it takes seconds and the command does so anyway.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

RESULTS, FAILED, LOG = "results.json", "failed.json", "log.txt"
MESSAGE_LINES = 5  # lines of a failed cell's output that its record contains


def run_cell(folder: Path, command: Sequence[str]) -> bool:
    """Compute a cell, unless it is done. A second process of the same cell waits for the first.

    What the command prints is appended to log.txt next to the folder.

    Args:
        folder: output folder of the command.
        command: command.

    Returns:
        Whether the cell is done. Otherwise, failed.json in the folder contains the exit status and the last lines.
    """
    log, lock = (folder.with_name(f"{folder.name}{end}") for end in (f"-{LOG}", ".lock"))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if (folder / RESULTS).is_file():
            return True
        (folder / FAILED).unlink(missing_ok=True)
        with open(log, "ab") as output:
            status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if status == 0 and (folder / RESULTS).is_file():
            return True
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{FAILED}.tmp"
        record = {"exit_status": status, "message": "\n".join(lines[-MESSAGE_LINES:])}
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / FAILED)
        return False


if __name__ == "__main__":
    run_cell(Path(sys.argv[1]), sys.argv[2:])
