"""Tests of the folder of uploads and results: its owner, its sweeping, and its deletion."""

import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.spaces.running import DEMO

import keeping  # isort: skip

CLAIM = "import sys, keeping; from pathlib import Path; print(keeping.claim_folder(Path(sys.argv[1])), flush=True)"


@pytest.fixture
def other(tmp_path):
    """Yield another process with its own folder in `tmp_path`, which waits for a line."""
    command = [sys.executable, "-c", f"{CLAIM}; input()", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=DEMO, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    process.folder = tmp_path / os.path.basename(process.stdout.readline().strip())
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("killed", [True, False])
def test_folders_go_with_their_processes(tmp_path, other, killed):
    """Test that folders are deleted with their processes.

    A process that ends normally deletes its folder. After a kill, the next process deletes it. Other folders remain.
    """
    (tmp_path / "gradio").mkdir()
    (other.folder / "patient.png").write_bytes(b"x")
    subprocess.run([sys.executable, "-c", CLAIM, str(tmp_path)], cwd=DEMO, check=True, capture_output=True)
    assert (other.folder / "patient.png").exists()  # the process is alive
    if killed:
        other.kill()
        other.wait()
        assert other.folder.exists()
        subprocess.run([sys.executable, "-c", CLAIM, str(tmp_path)], cwd=DEMO, check=True, capture_output=True)
    else:
        other.communicate("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["gradio"]


def test_room_is_made_from_the_oldest(tmp_path, monkeypatch):
    """Test that the oldest files are deleted until there is enough room.

    Files to keep and files that may be in use are never deleted.
    """
    monkeypatch.setattr(keeping, "MAX_FOLDER_BYTES", 4000)
    monkeypatch.setattr(keeping, "MIN_FILE_BYTES", 1000)
    names = ["example.png", "oldest.png", "older.png", "busy.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")  # counts as 1000 bytes
        time.sleep(0.05)
    busy = (tmp_path / "busy.png").lstat().st_ctime
    monkeypatch.setattr(keeping.time, "time", lambda: busy + keeping.BUSY_SECONDS - 0.01)
    keep = {tmp_path / "example.png"}

    def left():
        return [name for name in names if (tmp_path / name).exists()]

    assert keeping.make_room(tmp_path, 0, keep)
    assert left() == names
    assert keeping.make_room(tmp_path, 1000, keep)
    assert left() == ["example.png", "older.png", "busy.png"]
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert keeping.make_room(tmp_path, 0, keep)
    assert left() == ["example.png", "older.png", "busy.png"]
    assert keeping.make_room(tmp_path, 500, keep)  # others have filled the disk
    assert left() == ["example.png", "busy.png"]
    assert not keeping.make_room(tmp_path, 2001, keep)
    assert left() == ["example.png", "busy.png"]


def test_uploads_under_way_count(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "MAX_FOLDER_BYTES", 1000)
    sweeper = keeping.Sweeper(tmp_path, 1800)
    assert sweeper.reserve(600)
    assert not sweeper.reserve(600)
    sweeper.release(600)
    assert sweeper.reserve(600)


def test_sweeping(tmp_path, monkeypatch):
    def sweep_as_if(path):
        """Sweep as if a minute had passed since the last change of the file or folder."""
        time.sleep(0.05)  # give later changes a later time in the file system
        monkeypatch.setattr(keeping.time, "time", lambda: path.lstat().st_ctime + 60.01)
        keeping.sweep(tmp_path, 60, {example})

    example, old = tmp_path / "a" / "example.png", tmp_path / "b" / "patient.png"
    for path in (example, old):
        path.parent.mkdir()
        path.write_bytes(b"x")
    (tmp_path / "link").symlink_to(DEMO)
    time.sleep(0.05)
    young = tmp_path / "b" / "copy.png"
    shutil.copy2(old, young)  # with the modification time of the old file
    (tmp_path / "c").mkdir()
    sweep_as_if(tmp_path / "link")
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "c", "example.png", "copy.png"}
    sweep_as_if(tmp_path / "c")
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "example.png"}
    sweep_as_if(tmp_path / "b")  # a folder is deleted only if nothing has changed in it for the same time
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "example.png"}
    assert any(DEMO.iterdir())
