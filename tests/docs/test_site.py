"""Tests that the site builds and that the notebooks run."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > 20
    assert not any("fonts.googleapis" in page for page in pages)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), f"clear the outputs of {path.name}"
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_notebooks_run(tmp_path, monkeypatch):
    """Test the notebooks in one kernel, since each new one imports torch and transformers again."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    assert len(NOTEBOOKS) == 2
    together = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        folder = tmp_path / path.stem
        folder.mkdir()
        together.cells += [nbformat.v4.new_code_cell(f"%reset -f\n%cd {folder}")]  # no variables of the other notebook
        together.cells += nbformat.read(path, as_version=4).cells
    NotebookClient(together, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
