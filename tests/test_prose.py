"""Tests that texts avoid phrases that readers had to read twice. codespell checks the spelling."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("surgenet_hf", "scripts", "spaces", "docs", "hub_cards", "benchmarks", "tests")
FILES = [
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*.py"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*")))
    if path.suffix in {".md", ".py", ".ipynb"} and path != Path(__file__)
]
INSTEAD = {
    r"go(es)? on": "continue",
    r"anew": "again",
    r"lies? in": "is in",
    r"stands? in": "is in, replaces",
    r"beside": "next to, in addition to",
    r"whole or not at all": "completely, or fails",
    r"mend(ed|s)?": "correct, fix",
    r"is said of": "is stated about",
    r"be had": "available, downloaded",
    r"nobody": "no one, or name the part that does not",
    r"pretraining of \S+ saw these": "was pretrained on",
    r"data sets?": "dataset",
}


@pytest.mark.parametrize("phrase", INSTEAD)
def test_phrase_is_not_used(phrase):
    pattern = re.compile(rf"\b(?:{phrase})\b".replace(" ", r"\s+"), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in FILES
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"write {INSTEAD[phrase]!r} instead"
