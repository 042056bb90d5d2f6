"""Tests of the record of type errors. `python tests/check_types.py` compares it with mypy."""

import json
import re

from tests.check_types import RECORD, ROOT, compare

# clean for good: no count of these can be recorded
CLEAN = re.compile(
    r"surgenet_hf/((metrics|figures)/.*|data/(base|__init__|custom|labels)|evaluation/results"
    r"|__init__|api|atomic|distributed|errors|models|options|rng|tasks)\.py"
)


def test_counts_may_only_decrease():
    recorded = {"a.py": 2, "b.py": 2, "c.py": 2, "d.py": 2}
    lines = compare({"a.py": 2, "b.py": 3, "c.py": 1, "e.py": 1}, recorded)
    assert [line[:5] for line in lines] == ["b.py ", "c.py ", "d.py ", "e.py "]
    assert "at most 2" in lines[0]
    assert "lower the count to 1" in lines[1]
    assert "remove the entry" in lines[2]
    assert "at most 0" in lines[3]


def test_the_record_has_only_files_that_may_have_errors():
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert list(recorded) == sorted(recorded)
    assert all(count > 0 for count in recorded.values())
    assert [file for file in recorded if CLEAN.fullmatch(file) or not (ROOT / file).is_file()] == []
