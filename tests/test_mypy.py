"""Type errors: none in the modules that are clean, and no more than recorded in the others."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORD = "tests/mypy_errors.json"
# The counts depend on these packages, whose types mypy reads. A job with other versions skips the test.
TYPED = ("huggingface_hub", "matplotlib", "mypy", "numpy", "pillow", "safetensors", "timm", "torch", "transformers")
# clean for good: no count of these can be recorded
CLEAN = re.compile(
    r"surgenet_hf/((metrics|figures)/.*|data/(base|__init__|custom|labels)|evaluation/results"
    r"|__init__|api|atomic|distributed|errors|models|options|rng|tasks)\.py"
)


def compare(found: dict[str, int], recorded: dict[str, int]) -> list[str]:
    """Return a line for each file whose number of errors is not the recorded one."""
    lines = []
    for file in sorted(found.keys() | recorded.keys()):
        now, before = found.get(file, 0), recorded.get(file, 0)
        if now > before:
            lines.append(f"{file} has {now} errors, at most {before} are allowed: correct the new ones")
        elif now < before:
            action = f"lower the count to {now}" if now else "remove the entry"
            lines.append(f"{file} has {now} errors, {before} are recorded: {action} in {RECORD}")
    return lines


def test_counts_may_only_decrease():
    recorded = {"a.py": 2, "b.py": 2, "c.py": 2, "d.py": 2}
    lines = compare({"a.py": 2, "b.py": 3, "c.py": 1, "e.py": 1}, recorded)
    assert [line[:5] for line in lines] == ["b.py ", "c.py ", "d.py ", "e.py "]
    assert "at most 2" in lines[0]
    assert "lower the count to 1" in lines[1]
    assert "remove the entry" in lines[2]
    assert "at most 0" in lines[3]


def test_the_record_has_only_files_that_may_have_errors():
    recorded = json.loads((ROOT / RECORD).read_text(encoding="utf-8"))
    assert list(recorded) == sorted(recorded)
    assert all(count > 0 for count in recorded.values())
    assert [file for file in recorded if CLEAN.fullmatch(file) or not (ROOT / file).is_file()] == []


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a minute without a cache, but many on a busy machine
def test_mypy_finds_only_the_recorded_errors():
    pytest.importorskip("mypy")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    other = [name for name in TYPED if version(name).split("+")[0] != pinned.get(name)]
    if other:
        pytest.skip(f"the counts are for the versions of constraints.txt, not for this {', '.join(other)}")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary"], cwd=ROOT, capture_output=True, text=True, timeout=1400
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 2: mypy itself has failed
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    found = Counter(line.partition(":")[0].replace("\\", "/") for line in errors)
    recorded = json.loads((ROOT / RECORD).read_text(encoding="utf-8"))
    changed = compare(found, recorded)
    details = [line for line in errors if found[line.partition(":")[0]] > recorded.get(line.partition(":")[0], 0)]
    assert not changed, "\n".join([*changed, *details])
