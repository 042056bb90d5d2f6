"""Tests of overlay videos, feature maps, datasets on the Hub, and videos without a length."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array3D, Dataset, DatasetDict, Image, load_dataset
from PIL import Image as PILImage

import surgenet_hf
from surgenet_hf.data.video import expected_frames
from surgenet_hf.errors import UserError
from surgenet_hf.inference import dense, output, sources
from surgenet_hf.inference.hub_dataset import load_hub_dataset
from surgenet_hf.inference.job import predict_to_folder
from surgenet_hf.inference.sources import divide, find_sources
from surgenet_hf.tasks import load_predictor
from tests.data.videos import av, gray, write_video
from tests.inference.running import measure_memory
from tests.processes import exit_code


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(sources, "PART_FRAMES", 4)


def pictures(path: Path) -> list[tuple[float, PILImage.Image]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_image()) for frame in container.decode(video=0)]


def test_overlay_videos_of_a_run_that_was_killed(models, tmp_path, small_parts, monkeypatch):
    write_video(tmp_path / "in" / "a" / "long.mp4", 25 * 10, size=(33, 48))
    write_video(tmp_path / "in" / "short.mp4", 25 * 2)
    PILImage.new("RGB", (40, 30)).save(tmp_path / "in" / "image.png")
    call = lambda folder, **options: predict_to_folder(  # noqa: E731
        load_predictor(str(models / "masks")), tmp_path / "in", tmp_path / folder, **options
    )
    write, writes = output.write_json, []

    def fail(path, content):  # before and after the marker of the last part of the long video, which has 3
        if path.parent.name == "parts":
            writes.append(path)
            if len(writes) == 3:
                raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(output, "write_json", fail)
    for _ in range(2):
        writes.clear()
        try:
            call("out", overlays="video")
        except KeyboardInterrupt:
            monkeypatch.setattr(output.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        call("out", overlays="video")
    monkeypatch.undo()
    monkeypatch.setattr(sources, "PART_FRAMES", 4)
    call("out", overlays="video")
    found = {
        path.relative_to(tmp_path / "out" / "overlays").as_posix()
        for path in (tmp_path / "out").rglob("*.*")
        if "overlays" in path.parts
    }
    assert found == {"a/long.mp4", "short.mp4", "image.jpg"}
    call("frames", overlays="frames")
    shown = pictures(tmp_path / "out" / "overlays" / "a" / "long.mp4")
    assert [round(seconds, 3) for seconds, _ in shown] == list(range(10))
    for second, picture in shown:
        frame = PILImage.open(tmp_path / "frames" / "overlays" / "a" / "long" / f"{25 * second:06.0f}.jpg")
        assert frame.size == (48, 33)
        assert picture.size == (48, 32)  # H.264 needs even numbers
        assert abs(np.asarray(frame).mean((0, 1)) - np.asarray(picture).mean((0, 1))).max() < 8


def test_feature_maps(models, tmp_path):
    video = write_video(tmp_path / "a.mp4", 25 * 3)
    predictor = load_predictor(str(models / "masks"), "embeddings", dense=True)
    predict_to_folder(predictor, video, tmp_path / "out")
    data_dir = str(tmp_path / "out" / "predictions")
    rows = load_dataset("parquet", data_dir=data_dir, cache_dir=str(tmp_path / "cache"))["train"]
    expected = list(surgenet_hf.predict(str(models / "masks"), video, task="embeddings", dense=True))
    shape = expected[0]["features"].shape
    assert shape[1:] == (2, 2)
    assert rows.features["features"] == Array3D(shape, "float32")
    rows = rows.with_format("numpy")
    for name in ("features", "embedding"):
        np.testing.assert_array_equal(rows[:][name], [row[name] for row in expected])
    np.testing.assert_allclose(rows[0]["features"].mean((1, 2)), rows[0]["embedding"], atol=1e-5)
    with pytest.raises(UserError, match="--dense needs embeddings, and this model is for semantic-segmentation"):
        load_predictor(str(models / "masks"), dense=True)


def parquet(count: int) -> bytes:
    cells = []
    for i in range(count):
        file = io.BytesIO()
        PILImage.new("RGB", (40, 30), (i, 0, 0)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    content = io.BytesIO()
    Dataset.from_dict({"image": cells}).cast_column("image", Image()).to_parquet(content)
    return content.getvalue()


def test_datasets_with_splits(models, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "owner" / "frames"
    for split, count in (("train", 3), ("test", 2)):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / f"{split}-00000-of-00001.parquet").write_bytes(parquet(count))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for _ in range(2):  # the second run finds that nothing is left
        report = predict_to_folder(
            load_predictor(str(models / "masks")), ["hf://datasets/owner/frames"], tmp_path / "out"
        )
    assert f"reading the local folder {folder}, which takes precedence" in caplog.text
    assert report["frames"] == report["files"] == 5
    names = ["test/00000000", "test/00000001", "train/00000000", "train/00000001", "train/00000002"]
    assert all((tmp_path / "out" / "masks" / f"{name}.png").exists() for name in names)
    splits = load_hub_dataset("hf://datasets/owner/frames")
    assert isinstance(splits, DatasetDict)
    rows = list(surgenet_hf.predict(str(models / "masks"), splits))
    assert [(row["file"], row["video"], row["frame"]) for row in rows] == [
        (name, name.split("/")[0], int(name.split("/")[1])) for name in names
    ]
    assert rows[4]["image"].getpixel((0, 0)) == (2, 0, 0)
    with pytest.raises(UserError, match="expected hf://datasets/OWNER/NAME"):
        find_sources("hf://datasets/frames")
    with pytest.raises(UserError, match="the dataset owner/none cannot be downloaded"):
        find_sources("hf://datasets/owner/none")


def test_a_video_without_a_length_has_parts(tmp_path, small_parts):
    path = tmp_path / "a.webm"
    with av.open(str(path), "w", options={"live": "1"}) as container:  # as browsers record
        stream = container.add_stream("libvpx", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), gray(i // 5), np.uint8))))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert not container.duration
    assert expected_frames(path, 1.0) == 10
    assert expected_frames(path, None) in (49, 50)
    assert [len(job) for job in divide(find_sources(path))] == [3]


@pytest.mark.slow
def test_the_memory_does_not_depend_on_the_number_of_frames(models, tmp_path):
    """Test 5,000 frames after 1,200 in one process, which does not share the memory of this one."""
    size, counts = (120, 160), (1200, 5000)
    videos = [write_video(tmp_path / f"{count}.mp4", count, rate=250, size=size) for count in counts]
    assert exit_code(measure_memory, str(models / "backbone"), videos, tmp_path) == 0
    (few, before), (many, after) = json.loads((tmp_path / "memory.json").read_text())
    assert (few, many) == counts
    assert after - before < 1024 * 100  # KiB; the pixels of the other 3,800 frames have 209 MiB


def test_feature_maps_are_written_in_groups_of_bytes(tmp_path, monkeypatch):
    """Test that a table holds the rows of one group in memory, and that a broken run leaves no incomplete table."""
    monkeypatch.setattr(dense, "GROUP_BYTES", 2 * 4 * 3 * 5 * 5)
    path, schema = tmp_path / "a.parquet", pa.schema([("file", pa.string())])
    maps = [np.full((3, 5, 5), i, np.float32) for i in range(5)]
    (tmp_path / ".a.parquet.1-2.partial").touch()  # of a run that was killed
    table = dense.DenseTable(path, {"features": maps[0]}, schema)
    for i, each in enumerate(maps):
        table.add({"file": str(i), "features": each})
        assert len(table.group) < 2
    assert not path.exists()
    table.close()
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
    found = pq.ParquetFile(path)
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [2, 2, 1]
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).with_format("numpy")
    np.testing.assert_array_equal(rows[:]["features"], maps)
    assert list(rows["file"]) == list("01234")
    table = dense.DenseTable(tmp_path / "b.parquet", {"features": maps[0]}, schema)
    for _ in range(3):
        table.add({"file": "", "features": maps[0]})
    table.discard(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not list(tmp_path.glob("*b.parquet*"))
