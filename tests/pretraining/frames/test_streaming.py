import pytest
import torch

from surgenet_hf.pretraining.arguments import CropConfig, FrameArguments
from surgenet_hf.pretraining.frames.loader import PretrainingLoader
from surgenet_hf.pretraining.frames.ordering import FrameDataset, collate, unpack_images
from surgenet_hf.pretraining.frames.sources import open_source
from surgenet_hf.pretraining.frames.streaming import StreamLoader, open_stream
from tests.pretraining import pictures
from tests.pretraining.frames.test_ordering import assert_same, numbers

CONFIG = CropConfig(global_crops_size=24, local_crops_size=8, local_crops_number=2)
FRAMES = {f"{i:02d}.jpg": pictures.encode(i) for i in range(24)}


def part(start: int, stop: int, content: dict | None = None) -> dict[str, bytes]:
    return dict(list((content or FRAMES).items())[start:stop])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)  # instead of 5 s after each pass


@pytest.fixture
def parquet(tmp_path):
    """Return a folder with 24 frames in four files."""
    for i in range(4):
        pictures.write_parquet(tmp_path / "data" / f"train-{i}.parquet", part(6 * i, 6 * i + 6))
    return str(tmp_path / "data")


def arguments(data_dir, dataset="parquet", frames_per_epoch=24, **changes) -> FrameArguments:
    return FrameArguments(
        [dataset], [data_dir], streaming=True, frames_per_epoch=frames_per_epoch, shuffle_buffer=8, **changes
    )


def read(loader: StreamLoader) -> list[int]:
    return [number for batch in loader for number in numbers(batch)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "shards", "by name"])
def test_a_pass_of_two_processes_of_two_workers_has_every_frame_once(parquet, tmp_path, kind):
    if kind == "shards":
        for i in range(4):
            pictures.write_tar(tmp_path / "tars" / f"{i}.tar", part(6 * i, 6 * i + 6))
    args = arguments(str(tmp_path / "tars") if kind == "shards" else parquet, "parquet" if kind == "by name" else kind)
    if kind == "by name":
        args = FrameArguments([parquet], streaming=True, frames_per_epoch=24, shuffle_buffer=8)
    streams = [open_stream(args, CONFIG, 0, 3, rank=rank, world_size=2, on_device=True) for rank in range(2)]
    loaders = [StreamLoader(stream, num_workers=2) for stream in streams]
    passes = []
    for epoch in range(2):
        seen = []
        for stream, loader in zip(streams, loaders, strict=True):
            stream.set_epoch(epoch)
            batches = list(loader)
            assert len(batches) == len(loader) == stream.num_steps == 4
            seen += [number for batch in batches for number in numbers(batch)]
        assert sorted(seen) == list(range(24))
        passes.append(seen)
    assert passes[0] != passes[1]
    assert passes[0] != sorted(passes[0])


def test_a_local_folder_is_named_by_its_last_part(parquet):
    """Test that a local folder is named by the last part of its path.

    The names are stored in the model and its card, and the full path would identify the user.
    """
    args = FrameArguments([parquet], streaming=True, frames_per_epoch=24, shuffle_buffer=8)
    assert PretrainingLoader(args, CONFIG, seed=0, batch_size=4).names == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("on_device", [False, True])
def test_starting_in_mid_epoch_is_running_through(parquet, num_workers, on_device):
    stream = open_stream(arguments(parquet, frames_per_epoch=41), CONFIG, 5, 4, on_device=on_device)
    loader = StreamLoader(stream, num_workers)
    stream.set_epoch(2)
    whole = list(loader)
    assert len(whole) == 10
    for start in (1, 5, 10):
        stream.set_epoch(2, start)
        rest = list(loader)
        assert len(rest) == len(loader) == 10 - start
        for a, b in zip(whole[start:], rest, strict=True):
            assert_same(a, b)


def test_samples_are_those_of_random_access(parquet):
    """Test that streaming and random access give the same crops for a frame at a position."""
    stream = open_stream(arguments(parquet), CONFIG, 5, 4, rank=1, world_size=2, on_device=False)
    stream.set_epoch(3)
    names = numbers_of_stream(parquet, epoch=3)
    dataset = FrameDataset([open_source("parquet", parquet)], CONFIG, 5)
    for step, batch in enumerate(StreamLoader(stream)):
        keys = [(3, 8 * step + 4 + j, names[4 * step + j]) for j in range(4)]
        assert_same(batch, collate([dataset[key] for key in keys]))


def numbers_of_stream(parquet, epoch: int) -> list[int]:
    stream = open_stream(arguments(parquet), CONFIG, 5, 4, rank=1, world_size=2, on_device=True)
    stream.set_epoch(epoch)
    return read(StreamLoader(stream))


def test_a_stream_that_ends_early_begins_again_in_another_order(parquet):
    stream = open_stream(arguments(parquet, frames_per_epoch=72), CONFIG, 0, 4, on_device=True)
    seen = read(StreamLoader(stream))
    passes = [seen[:24], seen[24:48], seen[48:]]
    assert all(sorted(one) == list(range(24)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_broken_frames_are_replaced_by_the_next_and_named(tmp_path):
    content = {name: b"nothing" if name in ("03.jpg", "04.jpg") else frame for name, frame in FRAMES.items()}
    for i in range(2):
        pictures.write_parquet(tmp_path / "broken" / f"{i}.parquet", part(12 * i, 12 * i + 12, content))
    stream = open_stream(arguments(str(tmp_path / "broken")), CONFIG, 0, 4, on_device=True)
    whole = list(StreamLoader(stream, num_workers=2))
    bad = [name for batch in whole for name in batch["unreadable"]]
    assert set(bad) == {"03.jpg", "04.jpg"}
    seen = [number for batch in whole for number in numbers(batch)]
    assert len(seen) == 24
    assert set(seen) == set(range(24)) - {3, 4}  # substitutes also appear in their own turn
    stream.set_epoch(0, 3)
    for a, b in zip(whole[3:], StreamLoader(stream, num_workers=2), strict=True):
        assert_same(a, b)


def test_a_stream_of_broken_frames_stops(tmp_path):
    pictures.write_parquet(tmp_path / "broken" / "a.parquet", dict.fromkeys(FRAMES, b"nothing"))
    stream = open_stream(arguments(str(tmp_path / "broken")), CONFIG, 0, 4)
    with pytest.raises(OSError, match="100 consecutive frames"):
        next(iter(StreamLoader(stream)))


@pytest.mark.slow
def test_several_streams_are_mixed_by_weight(parquet, tmp_path):
    for i in range(2):
        pictures.write_tar(tmp_path / "tars" / f"{i}.tar", {f"{j}.jpg": pictures.encode(40 + j) for j in range(4)})
    args = FrameArguments(
        ["parquet", "shards"],
        [parquet, str(tmp_path / "tars")],
        dataset_weights=[1, 3],
        streaming=True,
        frames_per_epoch=160,
        shuffle_buffer=8,
    )
    stream = open_stream(args, CONFIG, 0, 10, on_device=True)
    seen = read(StreamLoader(stream, num_workers=2))
    assert set(seen) == {*range(24), *range(40, 44)}
    assert 0.65 < sum(number >= 40 for number in seen) / 160 < 0.85
    stream.set_epoch(0, 9)
    assert read(StreamLoader(stream, num_workers=2)) == seen[90:]


def test_more_workers_than_parts_are_not_started(parquet):
    stream = open_stream(arguments(parquet), CONFIG, 0, 3, on_device=True)
    loader = StreamLoader(stream, num_workers=6)
    assert loader.num_workers == 4
    assert sorted(read(loader)) == list(range(24))


def test_what_cannot_be_streamed(parquet, tmp_path):
    pictures.write_folder(tmp_path / "folder", part(0, 2))
    with pytest.raises(ValueError, match="omit --streaming"):
        open_stream(arguments(str(tmp_path / "folder"), "folder"), CONFIG, 0, 4)
    with pytest.raises(FileNotFoundError, match=r"contains no \.tar files"):
        open_stream(arguments(str(tmp_path / "folder"), "shards"), CONFIG, 0, 4)
    with pytest.raises(ValueError, match="24 frames, but one step of 7 processes takes 4 x 7"):
        open_stream(arguments(parquet), CONFIG, 0, 4, world_size=7)


def test_the_batch_unpacks(parquet):
    stream = open_stream(arguments(parquet), CONFIG, 0, 4, on_device=True)
    batch = next(iter(StreamLoader(stream)))
    assert batch["crops"].dtype == torch.float32
    assert [image.shape for image in unpack_images(batch["pixels"], batch["sizes"])] == [(3, 40, 48)] * 4
