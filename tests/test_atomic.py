import os

import pytest

from surgenet_hf import atomic as files
from surgenet_hf.atomic import atomic_write, sync_folder


@pytest.mark.parametrize("durable", [False, True])
def test_appears_whole(tmp_path, durable):
    path = tmp_path / "new" / "results.json"
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "results.json"):
        pass


def test_in_another_folder(tmp_path):
    (tmp_path / "parts").mkdir()
    with atomic_write(tmp_path / "shard.tar", tmp_path / "parts") as temporary:
        assert temporary.parent.name == "parts"
        temporary.write_bytes(b"frames")
    assert (tmp_path / "shard.tar").read_bytes() == b"frames"


def test_what_a_killed_process_leaves_is_not_taken_for_a_picture(tmp_path):
    with atomic_write(tmp_path / "000001.jpg") as temporary:
        temporary.touch()
        assert not list(tmp_path.glob("*.jpg"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux alone tells the name of an open file")
def test_durable_files_are_on_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    events = []
    name_of = lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: E731
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: events.append(name_of(descriptor)))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    path = tmp_path / "model.safetensors"
    with atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(b"weights")
    assert events == [str(temporary), "replace", str(tmp_path)]
    events.clear()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    sync_folder(tmp_path)
    assert sorted(events) == sorted(map(str, [tmp_path, path, tmp_path / "a", tmp_path / "a" / "b"]))
