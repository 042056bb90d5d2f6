import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import tarfile
import threading
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from datasets import load_dataset
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from surgenet_hf.errors import UserError
from surgenet_hf.preparation import extraction, shards
from surgenet_hf.preparation.extraction import FrameOptions, scan_videos
from surgenet_hf.preparation.shards import prepare_frames
from surgenet_hf.pretraining.arguments import FrameArguments
from surgenet_hf.pretraining.frames.sources import open_sources
from tests.data.videos import av, second_of, write_video


def paint_video(path: Path, grays: list[int], rate: int = 5, size: tuple[int, int] = (48, 64)) -> Path:
    """Write a video with one gray value per second, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i in range(rate * len(grays)):
            picture = np.full((*size, 3), grays[i // rate], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_frames(folder: Path) -> dict[tuple[str, str], bytes]:
    """Return {(shard, name): JPEG data} of all shards in a folder."""
    frames = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            frames |= {(path.name, member.name): archive.extractfile(member).read() for member in archive}
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            frames |= {(path.name, name): archive.read(name) for name in archive.namelist()}
    return frames


def read_index(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "index.parquet")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Return a folder of two procedures with videos of the same name, one video in a subfolder."""
    root = tmp_path_factory.mktemp("videos")
    for procedure, name, seconds in [("colectomy", "01", 4), ("colectomy", "02", 3), ("myomectomy", "01", 5)]:
        write_video(root / procedure / f"{name}.mp4", 25 * seconds)
    write_video(root / "myomectomy" / "case" / "part1.mkv", 50, size=(64, 32))
    (root / "myomectomy" / "notes.txt").write_text("no video")
    (root / "colectomy" / "._01.mp4").write_bytes(b"what macOS leaves")
    return root


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "shards"
    prepare_frames(videos, output, FrameOptions(frames_per_shard=6), num_workers=2)
    return output


def test_every_frame_is_in_a_shard_and_in_the_index(prepared):
    index, frames = read_index(prepared), read_frames(prepared)
    assert list(zip(index["shard"], index["name"], strict=True)) == list(frames)  # in the order of the shards
    assert index["sha256"].tolist() == [hashlib.sha256(jpeg).hexdigest() for jpeg in frames.values()]
    expected = {"colectomy/01.mp4": 4, "colectomy/02.mp4": 3, "myomectomy/01.mp4": 5, "myomectomy/case/part1.mkv": 2}
    assert index["video"].value_counts().to_dict() == expected
    assert (index["procedure"] == index["video"].str.split("/").str[0]).all()
    for row, jpeg in zip(index.itertuples(), frames.values(), strict=True):
        image = Image.open(io.BytesIO(jpeg))
        assert second_of(image) == row.number == row.second
        assert image.size == (row.width, row.height) == ((32, 64) if "part1" in row.video else (48, 32))
    assert index["name"][7] == "myomectomy/01_000000.jpg"


def test_shards_are_of_one_procedure_equally_large_and_nothing_else_is_left(prepared):
    assert sorted(path.name for path in prepared.iterdir()) == [
        "colectomy-00000.tar",
        "colectomy-00001.tar",
        "index.parquet",
        "myomectomy-00000.tar",
        "myomectomy-00001.tar",
        "report.json",
    ]
    assert read_index(prepared)["shard"].value_counts(sort=False).tolist() == [3, 4, 3, 4]
    report = json.loads((prepared / "report.json").read_text())
    assert report["totals"] == {
        "videos": 4, "shards": 4, "sampled": 14, "kept": 14, "black": 0, "duplicate": 0, "broken": 0,
    }  # fmt: skip
    assert report["videos"]["colectomy/01.mp4"]["kept"] == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_shards_and_index(prepared, tmp_path, streaming):
    paths = [str(path) for path in sorted(prepared.glob("*.tar"))]
    data = load_dataset(
        "webdataset", data_files=paths, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    rows = list(data)
    index = read_index(prepared)
    assert [row["__key__"] + ".jpg" for row in rows] == index["name"].tolist()
    assert [second_of(row["jpg"]) for row in rows] == index["number"].tolist()
    table = load_dataset(
        "parquet", data_files=str(prepared / "index.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table["name"][:] == index["name"].tolist()


def test_zip_shards_hold_the_same(videos, prepared, tmp_path):
    prepare_frames(videos, tmp_path / "zip", FrameOptions(frames_per_shard=6, shard_format="zip"))
    expected = {(shard.replace(".tar", ".zip"), name): jpeg for (shard, name), jpeg in read_frames(prepared).items()}
    assert read_frames(tmp_path / "zip") == expected


def test_the_number_of_workers_changes_nothing(videos, prepared, tmp_path):
    prepare_frames(videos, tmp_path / "out", FrameOptions(frames_per_shard=6), num_workers=1)
    assert files(tmp_path / "out") == files(prepared)


def test_a_complete_result_is_left_alone(videos, prepared):
    times = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    assert prepare_frames(videos, prepared, FrameOptions(frames_per_shard=6))["totals"]["kept"] == 14
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == times


def in_a_process(function, *args) -> multiprocessing.Process:
    def target():
        # tqdm's lock is shared with child processes, and a killed process may hold it forever
        tqdm.set_lock(threading.RLock())
        function(*args)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def parts_done(output: Path) -> dict[str, int]:
    found = {path.name: path.stat().st_mtime_ns for path in (output / "parts").glob("*.json")}
    return {name: when for name, when in found.items() if name not in ("settings.json", "plan.json")}


@pytest.mark.slow
def test_killed_while_extracting_it_goes_on_with_the_videos_that_are_not_done(tmp_path, monkeypatch):
    for i in range(4):
        write_video(tmp_path / "videos" / "p" / f"{i}.mp4", 25 * 15, size=(240, 320))
    options = FrameOptions(frames_per_shard=25)
    prepare_frames(tmp_path / "videos", tmp_path / "whole", options)

    output, write_json = tmp_path / "killed", extraction.write_json

    def waiting(path, *args):
        if len(parts_done(output)) > 1:
            time.sleep(60)  # ensure that the kill precedes the end
        write_json(path, *args)

    monkeypatch.setattr(extraction, "write_json", waiting)
    process = in_a_process(prepare_frames, tmp_path / "videos", output, options, None, 2)
    while not parts_done(output):
        assert process.is_alive()
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.undo()
    assert workers
    assert not psutil.wait_procs(workers, timeout=20)[1]  # no worker keeps running and writing
    before = parts_done(output)
    assert 0 < len(before) < 4
    assert not list(output.glob("*.*"))

    at_plan, plan = {}, shards._plan
    monkeypatch.setattr(shards, "_plan", lambda *args: (at_plan.update(parts_done(output)), plan(*args))[1])
    prepare_frames(tmp_path / "videos", output, options, num_workers=1)
    assert len(at_plan) == 4
    assert before.items() <= at_plan.items()
    assert files(output) == files(tmp_path / "whole")


def test_killed_while_writing_shards_it_goes_on_with_the_next_one(videos, prepared, tmp_path, monkeypatch):
    output, names = tmp_path / "out", []
    name = shards._name

    def dying(video, number):
        names.append(name(video, number))
        if len(names) == 9:  # in the third shard
            os.kill(os.getpid(), signal.SIGKILL)
        return names[-1]

    monkeypatch.setattr(shards, "_name", dying)
    process = in_a_process(prepare_frames, videos, output, FrameOptions(frames_per_shard=6))
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert sorted(path.name for path in done) == ["colectomy-00000.tar", "colectomy-00001.tar"]
    # the parts of colectomy are deleted, so that no frame takes space twice
    assert len(list((output / "parts").glob("*.frames"))) == 2
    assert len(list((output / "parts").glob(".*.partial"))) == 1

    monkeypatch.setattr(extraction, "_extract", None)
    prepare_frames(videos, output, FrameOptions(frames_per_shard=6))
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert files(output) == files(prepared)


@pytest.mark.parametrize("limit", [1500, 4500])  # bytes: no part fits, or parts fit but shards do not
def test_a_full_disk_leaves_no_half_file(videos, prepared, tmp_path, limit):
    output = tmp_path / "out"

    def run(pipe):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            prepare_frames(videos, output, FrameOptions(frames_per_shard=6))
        except OSError as error:
            pipe.send(str(error))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    in_a_process(run, sender).join()
    assert receiver.poll()
    assert "File too large" in receiver.recv()
    assert not list(output.glob("*.*"))
    assert not list((output / "parts").glob(".*.partial"))
    assert (output / "parts" / "plan.json").exists() == (limit > 1500)
    prepare_frames(videos, output, FrameOptions(frames_per_shard=6))
    assert files(output) == files(prepared)


def test_black_frames_and_duplicates(tmp_path):
    paint_video(tmp_path / "v" / "a.mp4", [0, 0, 100, 100, 100, 150, 0, 150])
    options = FrameOptions(drop_black=True, drop_duplicates=True)
    totals = prepare_frames(tmp_path / "v", tmp_path / "both", options)["totals"]
    assert (totals["sampled"], totals["black"], totals["duplicate"], totals["kept"]) == (8, 3, 3, 2)
    assert read_index(tmp_path / "both")["number"].tolist() == [2, 5]
    prepare_frames(tmp_path / "v", tmp_path / "black", FrameOptions(drop_black=True))
    assert read_index(tmp_path / "black")["number"].tolist() == [2, 3, 4, 5, 7]
    prepare_frames(tmp_path / "v", tmp_path / "alike", FrameOptions(drop_duplicates=True, duplicate_threshold=60))
    assert read_index(tmp_path / "alike")["number"].tolist() == [0, 2, 6, 7]  # 150 is 50 above 100


def test_slow_change_is_no_duplicate_for_ever(tmp_path):
    """Test that slow changes do not remain duplicates.

    Each frame resembles the previous one, so a frame is compared with the last kept one.
    """
    paint_video(tmp_path / "v" / "a.mp4", [100, 104, 108, 112, 116, 120, 124])
    prepare_frames(tmp_path / "v", tmp_path / "out", FrameOptions(drop_duplicates=True, duplicate_threshold=10))
    assert read_index(tmp_path / "out")["number"].tolist() == [0, 3, 6]


def test_size_rate_and_quality(videos, tmp_path):
    prepare_frames(videos, tmp_path / "out", FrameOptions(frames_per_second=2, max_side=24, jpeg_quality=50))
    index = read_index(tmp_path / "out")
    assert len(index) == 28
    assert index["second"].tolist()[:4] == [0, 0.5, 1, 1.5]
    assert set(zip(index["width"], index["height"], strict=True)) == {(24, 16), (12, 24)}


def test_broken_videos_are_reported_and_the_others_done(videos, tmp_path):
    root = tmp_path / "v" / "p"
    write_video(root / "good.mp4", 50)
    (root / "empty.mp4").write_bytes(b"")
    (root / "page.mp4").write_bytes(b"<html>not found</html>")
    cut = write_video(root / "cut.mp4", 500, movflags="faststart")
    cut.write_bytes(cut.read_bytes()[:-3000])
    report = prepare_frames(tmp_path / "v", tmp_path / "out")
    assert report["totals"]["broken"] == 3
    for name in ("empty", "page", "cut"):
        row = report["videos"][f"p/{name}.mp4"]
        assert re.search(rf"{name}\.mp4 (cannot be read|is truncated after)", row["error"])
        assert row["kept"] == 0
    assert set(read_index(tmp_path / "out")["video"]) == {"p/good.mp4"}


def test_nothing_but_broken_videos_is_an_error_and_they_may_be_repaired(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no frames were found in 1 videos\n.*a\.mp4 cannot be read"):
        prepare_frames(tmp_path / "v", tmp_path / "out")
    write_video(tmp_path / "v" / "a.mp4", 50)
    assert prepare_frames(tmp_path / "v", tmp_path / "out")["totals"]["kept"] == 2
    assert read_index(tmp_path / "out")["procedure"].tolist() == ["v", "v"]  # the name of the folder itself


def test_a_worker_that_dies_is_named(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "iter_frames", lambda path, *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"a worker process died.*one of these videos crashes the decoder.*/\w+\.m"):
        prepare_frames(videos, tmp_path / "out")


WEIRD = [
    "a.b #1 é.mp4",
    "a_b_1_é.mp4",
    "a b 1 É.mp4",
    unicodedata.normalize("NFD", "a-é.mp4"),
    "日本語 手術.mp4",
    "-x.MP4",
    "z case.mp4",
    "z_CASE.mp4",
    "a.mp4.mkv",
    "x" * 240 + ".mp4",
    "手" * 80 + ".mp4",
    os.fsdecode(b"latin-\xe9.mp4"),
]


def test_names_of_all_kinds(tmp_path):
    source = write_video(tmp_path / "source.mp4", 25).read_bytes()
    for name in WEIRD:
        path = tmp_path / "v" / "p #1.x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    prepare_frames(tmp_path / "v", tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert len(index) == len(WEIRD)
    assert index["video"].is_unique
    assert index["name"].str.casefold().is_unique
    assert index["name"].str.fullmatch(r"p_1_x/[\w-]+\.jpg").all()
    assert set(index["shard"]) == {"p_1_x-00000.tar"}
    paths = str(tmp_path / "out" / "*.tar")
    data = load_dataset("webdataset", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"))
    assert [key + ".jpg" for key in data["__key__"]] == index["name"].tolist()
    with tarfile.open(tmp_path / "out" / "p_1_x-00000.tar") as archive:
        archive.extractall(tmp_path / "extracted", filter="data")  # no name is too long for a file system


def test_procedures_that_become_the_same_name_stay_apart(tmp_path):
    for procedure in ("p 1", "p_1"):
        write_video(tmp_path / "v" / procedure / "a.mp4", 25)
    prepare_frames(tmp_path / "v", tmp_path / "out")
    assert read_index(tmp_path / "out")["shard"].tolist() == ["p_1-00000.tar", "p_1-2-00000.tar"]


def test_links_are_followed_and_no_folder_is_read_twice(videos, tmp_path):
    (tmp_path / "v" / "own").mkdir(parents=True)
    (tmp_path / "v" / "linked").symlink_to(videos / "colectomy")
    (tmp_path / "v" / "linked again").symlink_to(videos / "colectomy")
    (tmp_path / "v" / "own" / "round").symlink_to(tmp_path / "v")
    assert [video.name for video in scan_videos(tmp_path / "v")] == ["linked/01.mp4", "linked/02.mp4"]


def test_what_is_refused(videos, prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        prepare_frames(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"contains 1 \*\.txt; expected videos \(\.mp4, .*\)"):
        prepare_frames(tmp_path / "texts", tmp_path / "out")
    with pytest.raises(ValueError, match="texts contains files from another source"):
        prepare_frames(videos, tmp_path / "texts")
    with pytest.raises(
        ValueError, match=r"created with frames_per_shard=6, but the current settings are frames_per_shard=7"
    ):
        prepare_frames(videos, prepared, FrameOptions(frames_per_shard=7))
    write_video(tmp_path / "more" / "p" / "a.mp4", 25)
    message = r"contains shards of other videos: 5 are new, missing or changed, such as colec.* separate --videos_dir"
    with pytest.raises(ValueError, match=message) as refused:
        prepare_frames(tmp_path / "more", prepared, FrameOptions(frames_per_shard=6))
    prepare_frames(tmp_path / "more", tmp_path / "other")  # follow the message, then train on both
    said = str(refused.value).split("train on both: ")[1].replace("OTHER", str(tmp_path / "other")).split()
    assert [len(source) for source in open_sources(FrameArguments(said[1:3], said[4:]))] == [14, 1]
    with pytest.raises(ValueError, match=r"num_workers must be at least 0 \(0: one per core\), got -1"):
        prepare_frames(videos, tmp_path / "out", num_workers=-1)
    with pytest.raises(UserError):
        prepare_frames(videos, tmp_path / "texts" / "a.txt" / "out")


def test_two_runs_do_not_share_a_folder(videos, tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    monkeypatch.setattr(shards, "FileLock", lambda path, timeout: FileLock(path, timeout=0.1))
    with FileLock(tmp_path / "parts" / ".lock"), pytest.raises(UserError, match="another run is writing to"):
        prepare_frames(videos, tmp_path)


def test_a_run_that_waited_for_another_takes_its_result(videos, prepared, tmp_path, monkeypatch):
    def wait(path, timeout):
        shutil.copytree(prepared, tmp_path / "out", dirs_exist_ok=True)
        return FileLock(path, timeout=timeout)

    monkeypatch.setattr(shards, "FileLock", wait)
    monkeypatch.setattr(shards, "_prepare", None)
    assert prepare_frames(videos, tmp_path / "out", FrameOptions(frames_per_shard=6))["totals"]["kept"] == 14


@pytest.mark.parametrize(
    "options",
    [
        {"frames_per_second": 0},
        {"max_side": -1},
        {"jpeg_quality": 100},
        {"black_threshold": -1},
        {"duplicate_threshold": float("nan")},
        {"frames_per_shard": 0},
        {"shard_format": "rar"},
    ],
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        FrameOptions(**options)
