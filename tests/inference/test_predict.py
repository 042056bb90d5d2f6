"""Tests of predictions on files: the command, the Python function, and resuming."""

import csv
import json
import os
import struct
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, load_dataset
from PIL import Image as PILImage
from transformers import ResNetConfig

import surgenet_hf
from surgenet_hf.cli.predict import main
from surgenet_hf.data.annotations import read_label_file
from surgenet_hf.data.images import DecodeFrames
from surgenet_hf.data.video import iter_frames
from surgenet_hf.errors import MissingFileError, UserError
from surgenet_hf.inference import output, sources
from surgenet_hf.inference.job import predict_to_folder
from surgenet_hf.inference.prediction import check_classes, is_single_label, predict_segmentation
from surgenet_hf.inference.sources import divide, find_sources, share_jobs
from surgenet_hf.tasks import load_predictor
from tests.data.videos import av, write_video
from tests.inference.models import PROCESSOR
from tests.inference.running import predict_in_parts, rows_of
from tests.processes import SERVER, run_group


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Return a folder of 7 images, of which one is damaged."""
    root = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for i in range(7):
        path = root / ("a" if i < 3 else "b/c") / f"frame_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(rng.integers(0, 255, (30 + i, 40, 3), np.uint8)).save(path)
    damaged = root / "b" / "c" / "frame_4.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, without those that depend on the call."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.yaml", ".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.suffix != ".partial"}


def test_masks_of_a_folder(models, frames, tmp_path, capsys):
    argv = [
        "--model_name_or_path",
        str(models / "masks"),
        "--input",
        str(frames),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    with pytest.raises(
        SystemExit, match=r"error: 1 files .*:\nb/c/frame_4\.png: .*frame_4\.png cannot be read"
    ) as end:
        main([*argv, "--overlays", "frames", "--per_device_eval_batch_size", "4"])
    assert end.value.code != 0
    assert "semantic-segmentation: 6 frames of 7 files" in capsys.readouterr().out
    read = [i for i in range(7) if i != 4]
    names = [f"{'a' if i < 3 else 'b/c'}/frame_{i}" for i in read]
    rows = load_dataset("parquet", data_dir=str(tmp_path / "out" / "predictions"), cache_dir=str(tmp_path))["train"]
    assert rows["file"] == [f"{name}.png" for name in names]
    assert rows["video"] == ["a"] * 3 + ["b/c"] * 3
    assert rows["frame"] == read
    assert rows["seconds"] == [None] * 6
    images = [{"image": PILImage.open(frames / name)} for name in rows["file"]]
    model = load_predictor(str(models / "masks")).model
    for row, (_, expected) in zip(rows, predict_segmentation(model, PROCESSOR, images), strict=True):
        mask = np.asarray(PILImage.open(tmp_path / "out" / row["mask"]))
        assert row["mask"] == f"masks/{row['file']}"
        assert (mask == expected).mean() > 0.999  # another batch size can round differently
        assert [row[f"pixels_{name}"] for name in ("background", "liver", "tool")] == [
            (mask == i).sum() for i in range(3)
        ]
        overlay = PILImage.open(tmp_path / "out" / "overlays" / f"{os.path.splitext(row['file'])[0]}.jpg")
        assert overlay.size == mask.shape[::-1] == (row["width"], row["height"])


def test_rows_in_python(models, frames):
    iterator = surgenet_hf.predict(str(models / "masks"), frames / "a", batch_size=2)
    first = next(iterator)
    assert (first["file"], first["video"], first["frame"], first["seconds"]) == ("frame_0.png", "", 0, None)
    assert first["mask"].shape == first["image"].size[::-1] == (30, 40)
    assert first["pixels"] == {
        name: (first["mask"] == i).sum() for i, name in enumerate(("background", "liver", "tool"))
    }
    assert [row["file"] for row in iterator] == ["frame_1.png", "frame_2.png"]

    (row,) = surgenet_hf.predict(str(models / "criteria"), frames / "a" / "frame_0.png")
    assert list(row["score"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert "label" not in row
    (row,) = surgenet_hf.predict(str(models / "classes"), [str(frames / "a" / "frame_0.*")])
    assert row["label"] == max(row["score"], key=row["score"].get)
    assert sum(row["score"].values()) == pytest.approx(1)
    files = {"image": [str(frames / "a" / f"frame_{i}.png") for i in range(3)]}
    data = Dataset.from_dict(files).cast_column("image", Image()).with_transform(DecodeFrames())  # as in `load_data`
    rows = list(surgenet_hf.predict(str(models / "backbone"), data, batch_size=2))
    assert [row["frame"] for row in rows] == [0, 1, 2]
    single = [next(surgenet_hf.predict(str(models / "backbone"), path))["embedding"] for path in files["image"]]
    np.testing.assert_allclose(np.stack([row["embedding"] for row in rows]), np.stack(single), atol=1e-5)


def test_unsuitable_inputs_are_refused(models, frames, tmp_path):
    with pytest.raises(UserError, match=r"a phase model needs videos.*frame_0\.png is an image"):
        surgenet_hf.predict(str(models / "phases"), frames)
    with pytest.raises(UserError, match=r"trained at 2 frames per second .* --fps is 5"):
        surgenet_hf.predict(str(models / "phases"), write_video(tmp_path / "a.mp4", 5), fps=5)
    for wrong in ("nowhere", "no*where", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(MissingFileError, match="check the p"):
            find_sources(tmp_path / wrong)
    (tmp_path / "a.mkv").touch()
    with pytest.raises(UserError, match=r"a\.\w+ and .*a\.\w+ have the same name without suffix"):
        find_sources(tmp_path)
    (tmp_path / "a.mkv").unlink()
    (tmp_path / "a").mkdir()
    PILImage.new("RGB", (8, 8)).save(tmp_path / "a" / "000003.png")  # masks/a/000003.png is also that of the video
    with pytest.raises(UserError, match=r"a\.mp4 would have the names of those of .*000003\.png"):
        find_sources(tmp_path)
    with pytest.raises(UserError, match="--fps must be finite"):
        surgenet_hf.predict(str(models / "masks"), frames, fps=float("inf"))


def test_names_of_several_inputs_are_relative_to_their_common_folder(frames, monkeypatch):
    names = lambda *items: [source.name for source in find_sources(list(items))]  # noqa: E731
    assert names(frames / "a" / "frame_0.png", frames / "b" / "c") == [
        "a/frame_0.png",
        *(f"b/c/frame_{i}.png" for i in range(3, 7)),
    ]
    expected = ["a/frame_0.png", "a/frame_1.png", "a/frame_2.png", "b/c/frame_3.png"]
    assert names(f"{frames}/**/frame_[0-3].png") == expected
    assert names(frames / "a", frames / "a" / "frame_1.png") == ["frame_0.png", "frame_1.png", "frame_2.png"]
    monkeypatch.chdir(frames / "a")
    assert names("frame_1.png", ".") == names(".") == ["frame_0.png", "frame_1.png", "frame_2.png"]


def write_videos(root: Path) -> None:
    write_video(root / "a_constant.mp4", 75)
    write_video(root / "b_variable.mkv", 75, times=[*range(25), *range(50, 100)])
    path = write_video(root / "c_turned.mp4", 25)
    content = path.read_bytes()
    matrix = content.find(b"tkhd") + 44
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    path = write_video(root / "d_truncated.mp4", 250, movflags="faststart")
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[100]])
    with av.open(str(root / "e_audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    write_video(root / "f" / "short.avi", 25)


def test_videos_are_sampled_by_time_and_problems_are_reported(models, tmp_path):
    write_videos(tmp_path / "videos")
    predictor = load_predictor(str(models / "backbone"))
    report = predict_to_folder(predictor, tmp_path / "videos", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    found = {}
    for row in rows:
        found.setdefault(row["video"], []).append((row["seconds"], row["frame"]))
    assert list(found) == ["a_constant", "b_variable", "c_turned", "d_truncated", "f/short"]
    assert found["a_constant"] == [(0, 0), (1, 25), (2, 50)]
    assert found["b_variable"] == [(0, 0), (1, 24), (2, 25), (3, 50)]  # nothing is new from 1 s to 2 s
    assert found["d_truncated"][:3] == [(0, 0), (1, 25), (2, 50)]
    assert found["f/short"] == [(0, 0)]
    assert report["frames"] == len(rows)
    assert [error["file"] for error in report["errors"]] == ["d_truncated.mp4", "e_audio.mp4"]
    assert "is truncated after" in report["errors"][0]["message"]
    assert "no video stream" in report["errors"][1]["message"]
    assert {note["file"]: note["message"] for note in report["notes"]} == {
        "b_variable.mkv": "variable frame rate, 0.040 to 1.040 s between pictures",
        "c_turned.mp4": "rotated by 270 degrees",
    }
    (turned,) = surgenet_hf.predict(str(models / "masks"), tmp_path / "videos" / "c_turned.mp4")
    assert turned["mask"].shape == (48, 32)
    every = list(surgenet_hf.predict(str(models / "backbone"), tmp_path / "videos" / "b_variable.mkv", fps=0))
    assert [row["frame"] for row in every] == list(range(75))
    assert [round(row["seconds"] * 25) for row in every] == [*range(25), *range(50, 100)]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(sources, "PART_FRAMES", 4)


def moving_video(path: Path, seconds: int) -> Path:
    """Write a video at 25 frames per second with another picture in each half second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seconds)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(25 * seconds):
            if i % 12 == 0:
                picture = np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_phases_of_videos(models, tmp_path, small_parts, rendered_figures):
    """Test that the streamed phases, in parts of 4 frames, are those of the model on the whole video."""
    lengths = {"long": 9, "other/short": 1}
    for name, seconds in lengths.items():
        moving_video(tmp_path / "videos" / f"{name}.mp4", seconds)
    predictor = load_predictor(str(models / "phases"))
    predict_to_folder(predictor, tmp_path / "videos", tmp_path / "out", batch_size=3)
    rows = rows_of(tmp_path / "out")
    assert len(list((tmp_path / "out" / "predictions").iterdir())) == 6
    for name, seconds in lengths.items():
        images = [image for _, image in iter_frames(tmp_path / "videos" / f"{name}.mp4", 2.0)]
        with torch.inference_mode():
            inputs = PROCESSOR(images, return_tensors="pt").pixel_values
            expected = predictor.model.eval()(inputs[None]).logits[0].softmax(-1)
        own = [row for row in rows if row["video"] == name]
        assert [row["seconds"] for row in own] == [i / 2 for i in range(2 * seconds)]
        scores = np.array([[row[f"score_LABEL_{i}"] for i in range(3)] for row in own])
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        labels = read_label_file(tmp_path / "out" / "phases" / f"{name}.txt")
        assert list(labels.values) == [(row["phase"],) for row in own]
        assert labels.frames == tuple(range(2 * seconds))
        with open(tmp_path / "out" / "phases" / f"{name}.csv", newline="") as file:
            segments = list(csv.DictReader(file))
        assert (float(segments[0]["start"]), float(segments[-1]["end"])) == (0, seconds)
        assert all(one["phase"] != two["phase"] for one, two in pairwise(segments))
        assert PILImage.open(tmp_path / "out" / "phases" / f"{name}.png").width > 500


@pytest.mark.parametrize("kind", ["masks", "phases"])
def test_an_interrupted_run_resumes_with_the_same_files(models, tmp_path, small_parts, monkeypatch, kind):
    for name in "ab":
        moving_video(tmp_path / "videos" / f"{name}.mp4", 6 if kind == "phases" else 10)
    call = lambda folder: predict_to_folder(load_predictor(str(models / kind)), tmp_path / "videos", tmp_path / folder)  # noqa: E731
    call("whole")
    finish, done = output.PredictionWriter.finish, []

    def stop(self, part):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part)
        finish(self, part)

    monkeypatch.setattr(output.PredictionWriter, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        call("broken")
    assert len(list((tmp_path / "broken" / "parts").glob("*.json"))) == 2
    monkeypatch.setattr(output.PredictionWriter, "finish", finish)
    call("broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").rglob("*.parquet")}
    call("broken")  # nothing is left to do
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").rglob("*.parquet")}


def test_a_folder_of_another_run_is_refused(models, frames, tmp_path):
    predict_to_folder(load_predictor(str(models / "backbone")), frames / "a", tmp_path)
    for model, changes, reason in (
        ("backbone", {"batch_size": 2}, "batch_size is 8, now 2"),
        ("backbone", {"fps": 2}, r"frames_per_second is 1\.0, now 2"),
        ("criteria", {}, "the weights or image processor have changed"),
    ):
        with pytest.raises(UserError, match=rf"predictions of another run: .*{reason}.* Choose another --output_dir"):
            predict_to_folder(load_predictor(str(models / model)), frames / "a", tmp_path, **changes)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.yaml").touch()
    with pytest.raises(UserError, match=r"training contains run\.yaml of another command"):
        predict_to_folder(load_predictor(str(models / "backbone")), frames / "a", tmp_path / "training")
    with pytest.raises(UserError, match="files is 3, now 4; the names, sizes, or times of the input files"):
        predict_to_folder(load_predictor(str(models / "backbone")), frames / "b", tmp_path)


def test_the_output_folder_is_not_an_input(models, frames, tmp_path):
    PILImage.open(frames / "a" / "frame_0.png").save(tmp_path / "x.png")
    for _ in range(2):
        report = predict_to_folder(load_predictor(str(models / "masks")), tmp_path, tmp_path / "out")
        assert report["files"] == 1


def test_parts_cover_each_frame_once_and_are_shared_evenly(tmp_path, small_parts):
    paths = [sources.Source(f"{i}.png", tmp_path / f"{i}.png") for i in range(10)]
    videos = [sources.Source(f"{n}.mp4", tmp_path / f"{n}.mp4", n) for n in (3, 11, 2)]
    jobs = divide([*paths, *videos])
    parts = [part for job in jobs for part in job]
    assert [part.index for part in parts] == list(range(len(parts)))
    covered = sorted((source.name, start) for part in parts for source, start, _ in part.sections)
    assert covered == sorted(
        [(path.name, 0) for path in paths] + [("3.mp4", 0), ("2.mp4", 0)] + [("11.mp4", start) for start in (0, 4, 8)]
    )
    assert len([job for job in jobs if len(job) > 1]) == 1  # the long video stays in one process
    shares = [share_jobs(jobs, process, 2) for process in range(2)]
    assert sorted(part.index for share in shares for job in share for part in job) == [part.index for part in parts]
    loads = [sum(part.frames for job in share for part in job) for share in shares]
    assert abs(loads[0] - loads[1]) <= 4


@pytest.mark.slow
def test_a_killed_run_resumes_and_two_processes_give_the_same_rows(models, tmp_path, monkeypatch):
    for name in "ab":
        moving_video(tmp_path / "videos" / f"{name}.mp4", 20)
    argv = ["--model_name_or_path", str(models / "masks"), "--input", str(tmp_path / "videos"), "--fps", "5"]
    call = lambda folder: [*argv, "--output_dir", str(tmp_path / folder)]  # noqa: E731
    process = SERVER.Process(target=predict_in_parts, args=(call("killed"), 16), daemon=True)
    process.start()
    parts = tmp_path / "killed" / "parts"
    while len(list(parts.glob("*.json")) if parts.exists() else []) < 3:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (tmp_path / "killed" / "report.json").exists()
    monkeypatch.setattr(sources, "PART_FRAMES", 16)
    main(call("killed"))
    run_group(2, predict_in_parts, call("two"), 16)
    found = contents(tmp_path / "killed")
    assert json.loads(found["report.json"])["frames"] == 200
    assert found == contents(tmp_path / "two")
    rows = rows_of(tmp_path / "killed")
    assert [(row["video"], row["frame"]) for row in rows] == [(name, 5 * i) for name in "ab" for i in range(100)]


def test_states_of_phases_are_kept_until_the_last_part_is_done(models, tmp_path, small_parts, monkeypatch):
    video, write = write_video(tmp_path / "a.mp4", 150), output.write_json
    predict_to_folder(load_predictor(str(models / "phases")), video, tmp_path / "whole")
    last = sorted((tmp_path / "whole" / "parts").glob("*.json"))[-1].name

    def fail(path, content):
        if path.name == last:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(output, "write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        predict_to_folder(load_predictor(str(models / "phases")), video, tmp_path / "broken")
    monkeypatch.setattr(output, "write_json", write)
    predict_to_folder(load_predictor(str(models / "phases")), video, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_classes_of_scores_and_masks():
    config = ResNetConfig(num_labels=3)
    assert is_single_label(config)  # the default of Trainer
    config.problem_type = "multi_label_classification"
    assert not is_single_label(config)
    with pytest.raises(UserError, match="masks have at most 256 classes, the model has 300"):
        check_classes(ResNetConfig(num_labels=300))
