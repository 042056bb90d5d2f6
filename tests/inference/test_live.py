"""Tests of predictions on streams. No test depends on the speed of the machine."""

import json
import os
import signal
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

import surgenet_hf
from surgenet_hf.cli.predict import main
from surgenet_hf.errors import UserError
from surgenet_hf.inference.live import LiveReader, find_live, live_name
from surgenet_hf.inference.live_job import predict_live_to_folder
from surgenet_hf.inference.prediction import stream_phases
from surgenet_hf.inference.sources import find_sources
from surgenet_hf.tasks import load_predictor
from tests.data.videos import av
from tests.inference.models import PROCESSOR
from tests.inference.running import predict_live
from tests.inference.streams import free_port, serve
from tests.processes import SERVER

DEADLINE = 60.0  # seconds


def wait_for(condition) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def address(port: int) -> str:
    return f"tcp://user:secret@127.0.0.1:{port}"


def test_a_slow_consumer_gets_the_newest_picture():
    with serve("60+") as (port, _), LiveReader(address(port), timeout=DEADLINE) as reader:
        assert reader.first().number < 20
        for least in (20, 50):
            wait_for(lambda least=least: reader.received >= least)
            before = reader.received
            picture = reader.take()
            assert picture.number >= before - 1
            gray = picture.frame.to_rgb().to_ndarray().mean()
            assert abs(gray - (20 + 10 * (picture.number % 20))) < 5
        counts = reader.counts()
        waiting = reader.take() is not None
    # one picture may have arrived after the counts
    assert counts["received"] - counts["dropped"] in (3, 3 + waiting)
    assert counts["reconnections"] == counts["damaged_packets"] == 0


def test_a_source_that_comes_back():
    with serve("20", "20") as (port, _), LiveReader(address(port), timeout=DEADLINE) as reader:
        wait_for(lambda: reader.reconnections == 1)
        assert reader.received > 15  # the numbers continue
        assert reader.take().number > 15
        assert reader.reason == "connection closed"


@pytest.mark.slow
def test_the_files_of_a_stream(models, tmp_path, capsys):
    """Test a command whose source becomes silent: all rows are written, and no file has the password."""
    argv = ["--model_name_or_path", str(models / "masks"), "--output_dir", str(tmp_path), "--fps", "0"]
    with serve("40+") as (port, _):
        main([*argv, "--input", address(port), "--live_timeout", "3", "--overlays", "video"])
    report = json.loads((tmp_path / "report.json").read_text())
    (table,) = (tmp_path / "predictions").iterdir()
    rows = pq.read_table(table).to_pylist()
    counts = report["live"]
    assert 30 < counts["received"] <= 40  # the decoder keeps the last ones
    assert report["frames"] == len(rows) == counts["received"] - counts["dropped"]
    numbers = [row["frame"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == counts["received"] - 1
    assert (rows[0]["seconds"] == 0) == (numbers[0] == 0)  # a busy machine drops the first picture
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert {row["file"] for row in rows} == {f"127.0.0.1:{port}"}
    assert all((tmp_path / row["mask"]).exists() for row in rows)
    with av.open(str(tmp_path / "overlays" / f"127.0.0.1_{port}.mp4")) as container:
        assert len(list(container.decode(video=0))) == len(rows)
    assert [note["message"] for note in report["notes"]] == ["ended after 3 s without a picture: silent source"]
    printed = capsys.readouterr()
    assert f"{counts['received']} pictures received, {counts['dropped']} dropped, 0 reconnections" in printed.out
    texts = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("secret" in text for text in (*texts, printed.out, printed.err))
    assert f"tcp://127.0.0.1:{port}\n" in (tmp_path / "run.yaml").read_text()
    with pytest.raises(SystemExit, match="contains predictions, and live input does not resume"):
        main([*argv, "--input", address(port)])


@pytest.mark.slow
def test_phases_by_the_clock(models):
    """Test that a source with 10 frames per second gives a phase model the 20 per second that it needs."""
    with serve("10", rate=10) as (port, _):
        found = surgenet_hf.predict(str(models / "live_phases"), address(port), live_timeout=DEADLINE)
        rows = list(islice(found, 40))
        found.close()
    assert [row["seconds"] for row in rows] == [k / 20 for k in range(len(rows))]
    assert len(rows) == 40  # also while nothing arrives
    changed = [two["frame"] != one["frame"] for one, two in pairwise(rows)]
    assert [not row["repeated"] for row in rows] == [True, *changed]
    assert any(row["repeated"] for row in rows)
    predictor = load_predictor(str(models / "live_phases"))
    expected = list(stream_phases(predictor.model, PROCESSOR, (row["image"] for row in rows)))
    np.testing.assert_allclose([list(row["score"].values()) for row in rows], expected, atol=1e-5)


def test_a_source_that_does_not_exist(models, tmp_path):
    port = free_port()
    with pytest.raises(UserError) as error:
        next(surgenet_hf.predict(str(models / "backbone"), address(port), live_timeout=0.2))
    assert str(error.value).startswith(f"no picture from 127.0.0.1:{port} within 0.2 s (Connection refused)")
    assert error.value.__cause__ is error.value.__context__ is None  # a traceback would show the address
    argv = ["--model_name_or_path", str(models / "backbone"), "--input", address(port), "--live_timeout", "0.2"]
    with pytest.raises(SystemExit, match="error: no picture"):
        main([*argv, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_unsuitable_live_input(models, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"2 items, and host:554/a is live") as error:
        find_live(["rtsp://user:secret@host:554/a", "video.mp4"])
    assert "secret" not in str(error.value)
    for unknown in ("http://user:secret@host/a", Path("rtsp://user:secret@host/a")):
        with pytest.raises(UserError, match=r"an input starts with \w+:/") as error:
            find_sources([unknown])
        assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="--live_timeout must be a finite number of seconds above 0, got 0"):
        surgenet_hf.predict(str(models / "backbone"), "tcp://host:1", live_timeout=0)
    monkeypatch.setattr("surgenet_hf.inference.live_job.process_state", lambda: type("", (), {"num_processes": 2}))
    with pytest.raises(UserError, match="live input needs one process, but 2 are running"):
        predict_live_to_folder(load_predictor(str(models / "backbone")), "tcp://host:1", tmp_path / "out")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://user:p%40ss@camera:554/room/1?token=abc#x", "camera:554/room/1"),
        ("rtsp://us:p@ss@camera/user=admin&password=x/../s", "camera/s"),
        ("tcp://[::1]:5000", "[::1]:5000"),
        ("/dev/video0", "video0"),
    ],
)
def test_names_have_no_credentials(url, name):
    assert find_live(url) == url
    assert live_name(url) == name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run(models, tmp_path, number):
    with serve("100000") as (port, _):
        model = str(models / "live_phases")
        argv = ["--model_name_or_path", model, "--input", address(port), "--output_dir", str(tmp_path)]
        process = SERVER.Process(target=predict_live, args=(argv, 0.2), daemon=True)
        process.start()
        wait_for(lambda: (tmp_path / "predictions" / "00001.parquet").exists())
        os.kill(process.pid, number)
        process.join(DEADLINE)
        assert process.exitcode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    tables = [pq.read_table(path) for path in sorted((tmp_path / "predictions").iterdir())]
    seconds = [row["seconds"] for table in tables for row in table.to_pylist()]
    assert seconds == [k / 20 for k in range(report["frames"])]
    assert report["live"]["received"] > 0
    assert report["notes"] == []
    lines = (tmp_path / "phases" / f"127.0.0.1_{port}.txt").read_text().splitlines()
    assert len(lines) == 1 + report["frames"]
    assert not list((tmp_path / "parts").glob("*.safetensors"))


def test_live_input_is_checked_before_settings_are_applied(models, tmp_path, monkeypatch):
    """Test that no quantization, which takes minutes, comes before an error."""
    monkeypatch.setattr(
        "surgenet_hf.inference.live_job.apply_live", lambda *args: pytest.fail("settings were applied")
    )
    predictor = load_predictor(str(models / "live_phases"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "predict.json").write_text("{}")
    for folder, options, message in (
        ("new", {"timeout": 0}, "--live_timeout must be"),
        ("new", {"fps": 3.0}, "trained at 20 frames per second"),
        ("new", {"overlays": "video"}, "--overlays needs a segmentation model"),
        ("old", {}, "live input does not resume"),
    ):
        with pytest.raises(UserError, match=message):
            predict_live_to_folder(predictor, "tcp://host:1", tmp_path / folder, **options)
    for options in ({"precision": "auto"}, {"live_timeout": 0}):
        with pytest.raises(UserError, match=r"--(precision auto compares|live_timeout must be)"):
            surgenet_hf.predict("nowhere", "tcp://host:1", **options)  # before the model is loaded


def test_the_record_of_live_input_has_the_calibration(models, tmp_path, monkeypatch):
    PILImage.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("surgenet_hf.inference.live_job.apply_live", lambda *args: find_sources([tmp_path / "a.png"]))
    monkeypatch.setattr("surgenet_hf.inference.live_job._write_rows", lambda *args: [])  # without a stream
    monkeypatch.setattr(LiveReader, "__enter__", lambda self: self)
    monkeypatch.setattr(LiveReader, "__exit__", lambda self, *error: None)
    monkeypatch.setattr(LiveReader, "first", lambda self: None)
    predict_live_to_folder(load_predictor(str(models / "backbone")), "tcp://host:1", tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "predict.json").read_text())["calibration"]) == 16
