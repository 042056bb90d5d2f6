"""Check that mypy finds no more errors in each file than tests/mypy_errors.json records: python tests/check_types.py.

The counts may only decrease. They depend on the versions of constraints.txt, so other versions are not checked.
"""

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "mypy_errors.json"
# the counts depend on these packages, whose types mypy reads
TYPED = ("huggingface_hub", "matplotlib", "mypy", "numpy", "pillow", "safetensors", "timm", "torch", "transformers")


def compare(found: dict[str, int], recorded: dict[str, int]) -> list[str]:
    """Return a line for each file whose number of errors is not the recorded one."""
    lines = []
    for file in sorted(found.keys() | recorded.keys()):
        now, before = found.get(file, 0), recorded.get(file, 0)
        if now > before:
            lines.append(f"{file} has {now} errors, at most {before} are allowed: correct the new ones")
        elif now < before:
            action = f"lower the count to {now}" if now else "remove the entry"
            lines.append(f"{file} has {now} errors, {before} are recorded: {action} in tests/{RECORD.name}")
    return lines


def main() -> str | None:
    """Run mypy and return a message if a count differs, otherwise None."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    other = [name for name in TYPED if version(name).split("+")[0] != pinned.get(name)]
    if other:
        print(f"types: not checked, because the versions of {', '.join(other)} are not those of constraints.txt")
        return None
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):  # mypy itself has failed
        return done.stdout + done.stderr
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    found = Counter(line.partition(":")[0].replace("\\", "/") for line in errors)
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    changed = compare(found, recorded)
    details = [line for line in errors if found[line.partition(":")[0]] > recorded.get(line.partition(":")[0], 0)]
    print(f"types: {len(errors)} errors in {len(found)} files, {sum(recorded.values())} recorded")
    return "\n".join([*changed, *details]) or None


if __name__ == "__main__":
    sys.exit(main())
