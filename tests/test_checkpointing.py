import json
import logging
import os
import signal
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgenet_hf.checkpointing import (
    Termination,
    check_complete,
    check_output_dir,
    compare_records,
    delete_later_checkpoints,
    delete_old_checkpoints,
    list_checkpoints,
    lock_run,
    read_record,
    resume_point,
    write_record,
)
from surgenet_hf.errors import UserError


def make(output_dir, *steps):
    for step in steps:
        folder = output_dir / f"checkpoint-{step}"
        (folder / "states").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights of step %d" % step * 50)
        (folder / "states" / "optimizer.bin").write_bytes(b"moments")
        (folder / "trainer_state.json").write_text("{}")
        write_record(folder, {"learning_rate": 1e-4})
    return output_dir


def names(output_dir):
    return [path.name for path in list_checkpoints(output_dir)]


def test_checkpoints_are_sorted_by_step_and_others_do_not_count(tmp_path):
    make(tmp_path, 100, 20, 3)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".checkpoint-7").mkdir()
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


@pytest.mark.parametrize("below", ["file", "file/new", "file/new/newer"])
def test_an_output_folder_that_is_a_file_or_below_one_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output_dir .* cannot be written to \(.*/file is a file\)"):
        check_output_dir(tmp_path / below)
    assert not check_output_dir(tmp_path / "new" / "folder").exists()


def test_an_earlier_run_is_not_continued_by_accident(tmp_path):
    make(tmp_path / "run", 3)
    (tmp_path / "run" / "checkpoint-20").mkdir()  # the run was killed while saving it
    with pytest.raises(
        UserError, match=r"checkpoint-3 is from an earlier run: resume it with --resume_from_checkpoint"
    ):
        resume_point(tmp_path / "run", None)
    assert resume_point(tmp_path / "run", "true") == tmp_path / "run" / "checkpoint-3"
    assert resume_point(tmp_path / "run", True) == tmp_path / "run" / "checkpoint-3"
    assert resume_point(tmp_path / "new", "true") is None
    assert resume_point(tmp_path / "new", None) is None
    with pytest.raises(UserError, match="checkpoint-3 of another run"):
        resume_point(tmp_path / "run", str(make(tmp_path / "other", 5) / "checkpoint-5"))
    with pytest.raises(UserError, match="no such file or folder"):
        resume_point(tmp_path / "run", str(tmp_path / "nothing"))


def truncate(folder):
    os.truncate(folder / "model.safetensors", 10)


def remove(folder):
    (folder / "states" / "optimizer.bin").unlink()


def overwrite(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)


def empty_record(folder):
    (folder / "run.json").write_text("")


def unmark(folder):
    (folder / "run.json").unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncate, "model.safetensors is damaged"),
        (remove, "optimizer.bin is missing"),
        (overwrite, "model.safetensors is damaged"),
        (empty_record, "run.json is damaged"),
        (unmark, "checkpoint-20 has no run.json"),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used_and_reported(tmp_path, caplog, damage, named):
    make(tmp_path, 3, 20)
    damage(tmp_path / "checkpoint-20")
    with caplog.at_level(logging.WARNING):
        assert resume_point(tmp_path, "true") == tmp_path / "checkpoint-3"
    assert "Skipping checkpoint-20" in caplog.text
    assert named in caplog.text
    with pytest.raises(UserError, match=named):  # a requested checkpoint has no substitute
        resume_point(tmp_path, str(tmp_path / "checkpoint-20"))
    damage(tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match=r"no complete checkpoint.* Delete checkpoint-3, checkpoint-20 to start"):
        resume_point(tmp_path, "true")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_damaged_byte_is_noticed(tmp_path_factory, data):
    folder = make(tmp_path_factory.mktemp("run"), 7) / "checkpoint-7"
    path = folder / data.draw(st.sampled_from(["model.safetensors", "states/optimizer.bin"]))
    content = path.read_bytes()
    where = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "insert"]))
    changed = bytes([content[where] ^ data.draw(st.integers(1, 255))])
    path.write_bytes(content[:where] + {"cut": b"", "flip": changed + content[where + 1 :], "insert": b"x"}[kind])
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        check_complete(folder)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    record=st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_record_is_read_or_refused(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("checkpoint-1")
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        read_record(folder)


def test_other_options_are_listed():
    recorded = {"learning_rate": 1e-4, "sizes": [1, 2], "seed": 0}
    compare_records(recorded, {"learning_rate": 1e-4, "sizes": (1, 2)}, "checkpoint-3", "Advice")
    with pytest.raises(
        UserError, match=r"(?s)another run:\n- learning_rate: 0.0001 in .*, 0.1 now\n- new: None in .*Advice"
    ):
        compare_records(recorded, {"learning_rate": 0.1, "seed": 0, "new": 1}, "checkpoint-3", "Advice")


def test_old_and_later_checkpoints_are_deleted(tmp_path):
    make(tmp_path, 1, 2, 3, 4, 5)
    delete_later_checkpoints(tmp_path, 4)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"]
    delete_old_checkpoints(tmp_path, 3, [tmp_path / "checkpoint-1"])
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    delete_old_checkpoints(tmp_path, 1, [tmp_path / "checkpoint-1"])  # keep the best and the last
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    delete_old_checkpoints(tmp_path, None)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_one_run_at_a_time(tmp_path):
    with lock_run(tmp_path / "run"):
        with pytest.raises(UserError, match="another run is writing to"), lock_run(tmp_path / "run"):
            pass
        with lock_run(tmp_path / "run", is_main=False):  # another process of the same run
            pass
    with lock_run(tmp_path / "run"):
        pass


def test_termination_restores_the_handler_and_spares_other_threads():
    before = signal.getsignal(signal.SIGTERM)
    with Termination() as termination:
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.received
    assert signal.getsignal(signal.SIGTERM) == before
    thread = threading.Thread(target=lambda: Termination().__enter__().__exit__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
