"""Log of a run as JSON lines."""

import json
import math
from pathlib import Path

from ..atomic import atomic_write


class History:
    """Entries {"step", ...} of `history.jsonl`, ordered by step.

    Args:
        folder: folder of the file. It is created if it does not exist.
        step: step after which the run resumes. Later entries, from a run that was killed, are deleted.
        write: whether this process writes the file. Exactly one process does.
    """

    def __init__(self, folder: Path, step: int, write: bool = True):
        self.path = folder / "history.jsonl"
        self.write = write
        self.entries: list[dict] = []
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            entries = [json.loads(line) for line in lines if line.endswith("\n")]  # the last line may be incomplete
            self.entries = [entry for entry in entries if entry["step"] <= step]
        if write:
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(map(_line, self.entries)), encoding="utf-8")

    def add(self, entry: dict) -> None:
        """Append an entry. Values that are not finite become null."""
        entry = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        self.entries.append(entry)
        if self.write:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(entry))


def _line(entry: dict) -> str:
    return json.dumps(entry) + "\n"
