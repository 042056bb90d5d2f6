import multiprocessing
import os
import pickle
import zipfile

import pytest
from transformers import HfArgumentParser

from surgenet_hf.pretraining.arguments import FrameArguments
from surgenet_hf.pretraining.frames.sources import open_source, open_sources
from tests.pretraining import pictures

FRAMES = {f"video{i // 4}/{i:02d}.jpg": pictures.encode(i) for i in range(10)}
FIRST, SECOND = (dict(list(FRAMES.items())[part]) for part in (slice(0, 4), slice(4, None)))


def write(kind: str, root):
    """Write the same ten frames, in two shards where the kind has shards.

    Returns:
        Tuple of the name of the dataset and data_dir.
    """
    if kind == "folder":
        pictures.write_folder(root, FRAMES)
    elif kind == "parquet":
        pictures.write_parquet(root / "train-0.parquet", FIRST)
        pictures.write_parquet(root / "deep" / "train-1.parquet", SECOND, as_images=True)
    elif kind == "bytes":
        pictures.write_parquet(root / "a.parquet", FRAMES, as_images=False)
    elif kind == "by name":
        pictures.write_parquet(root / "train.parquet", FRAMES)
        return str(root), None
    elif kind == "tar":
        pictures.write_tar(root / "a.tar", FIRST)
        pictures.write_tar(root / "b" / "b.tar", SECOND)
    else:
        compression = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        pictures.write_zip(root / "a.zip", FIRST, compression)
        pictures.write_zip(root / "b" / "b.zip", SECOND, compression)
    return {"folder": "folder", "parquet": "parquet", "bytes": "parquet"}.get(kind, "shards"), str(root)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["folder", "zip", "deflated", "tar", "parquet", "bytes", "by name"])
def source(request, tmp_path):
    return open_source(*write(request.param, tmp_path / "data"))


def test_every_source_gives_the_bytes_of_every_frame(source):
    read = [source.read(i) for i in range(len(source))]
    assert sorted(read) == sorted(FRAMES.values())
    names = [source.frame_name(i) for i in range(len(source))]
    assert len(set(names)) == len(FRAMES)
    assert all(read[i] == FRAMES[frame] for i in range(len(names)) for frame in FRAMES if frame in names[i])


def test_every_source_goes_through_pickle(source):
    source.read(3)  # files are now open
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.read(i) for i in range(10)] == [source.read(i) for i in range(10)]
    assert copy.frame_name(9) == source.frame_name(9)


def read_often(source, first):
    """Read frames many times; in a separate process, a failed assertion is exit code 1."""
    assert all(source.read(i) in FRAMES.values() for i in (first, 9 - first) * 300)


def test_processes_that_fork_do_not_disturb_each_other(source):
    source.read(0)  # files are now open and inherited
    processes = [multiprocessing.get_context("fork").Process(target=read_often, args=(source, i)) for i in range(2)]
    for process in processes:
        process.start()
    read_often(source, 2)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_a_fork_leaves_the_position_in_open_files_alone(tmp_path):
    pictures.write_tar(tmp_path / "a.tar", {name: content + bytes(30_000) for name, content in FRAMES.items()})
    source = open_source("shards", str(tmp_path))
    source.read(0)
    descriptor = source._files.get(str(tmp_path / "a.tar")).fileno()
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    process = multiprocessing.get_context("fork").Process(target=source.read, args=(7,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == before


def test_shards_cover_all_frames(tmp_path):
    folder = open_source(*write("folder", tmp_path / "folder"))
    assert [folder.shard_of(i) for i in (0, 3, 4, 9)] == [range(4), range(4), range(4, 8), range(8, 10)]
    shards = open_source(*write("tar", tmp_path / "tar"))
    assert [shards.shard_of(i) for i in (0, 3, 4, 9)] == [range(4), range(4), range(4, 10), range(4, 10)]
    rows = open_source(*write("bytes", tmp_path / "bytes"))
    assert rows.shard_of(7) == range(10)


def test_folders_are_read_in_order_without_hidden_files(tmp_path):
    names = ["b/2.PNG", "b/10.jpg", "a/z.jpeg", "c.tif", ".hidden.jpg", "b/.thumbs/1.jpg", "b/notes.txt", "ä/ö.bmp"]
    pictures.write_folder(tmp_path, {name: name.encode() for name in names})
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    source = open_source("folder", str(tmp_path))
    found = [source.frame_name(i).removeprefix(f"{tmp_path}/") for i in range(len(source))]
    assert found == ["c.tif", "a/z.jpeg", "b/10.jpg", "b/2.PNG", "ä/ö.bmp"]
    assert [source.read(i).decode() for i in range(len(source))] == found


def test_shards_hold_other_things_than_frames(tmp_path):
    members = {"1.json": b"{}", "1.jpg": b"one", "1.seg.png": b"mask", "__MACOSX/._1.jpg": b"", "2.jpg": b"two"}
    pictures.write_tar(tmp_path / "a.tar", members)
    pictures.write_zip(tmp_path / "b.zip", members)
    source = open_source("shards", str(tmp_path), image_column="jpg")
    assert [source.read(i) for i in range(len(source))] == [b"one", b"two"] * 2
    assert len(open_source("shards", str(tmp_path))) == 6
    assert len(open_source("shards", str(tmp_path / "b.zip"))) == 3


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("surgenet_hf.pretraining.frames.files._OPEN_FILES", 2)
    for i, (name, content) in enumerate(FRAMES.items()):
        pictures.write_zip(tmp_path / f"{i:02d}.zip", {name: content})
    source = open_source("shards", str(tmp_path))
    assert [source.read(i) for i in (*range(10), 0, 9)] == [*FRAMES.values(), FRAMES["video0/00.jpg"],
                                                          FRAMES["video2/09.jpg"]]  # fmt: skip
    assert len(source._files.files) == 2


def test_damage_within_a_zip_is_found(tmp_path):
    pictures.write_zip(tmp_path / "a.zip", FRAMES)
    source = open_source("shards", str(tmp_path))
    content = (tmp_path / "a.zip").read_bytes()
    place = content.index(FRAMES["video0/02.jpg"]) + 300
    (tmp_path / "a.zip").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(OSError, match="checksum"):
        source.read(2)
    assert source.read(3) == FRAMES["video0/03.jpg"]


def empty(root):
    root.mkdir()


def zip_inside(root):
    pictures.write_zip(root / "sub" / "a.zip", FRAMES)


def images(root):
    pictures.write_folder(root, FRAMES)


def nothing(root):
    root.parent.mkdir(exist_ok=True)
    (root.parent / "dataset").mkdir()


def compressed(root):
    pictures.write_tar(root / "a.tar", FRAMES, "w:gz")


def no_frames(root):
    pictures.write_tar(root / "a.tar", {"1.txt": b"1"})


def cut(kind, where):
    def broken(root):
        getattr(pictures, f"write_{kind}")(root / f"a.{kind}", FRAMES)
        content = (root / f"a.{kind}").read_bytes()
        (root / f"a.{kind}").write_bytes(content[: len(content) // 2 + where])

    return broken


def scribbled(root):
    """Write a tar whose second header is overwritten."""
    pictures.write_tar(root / "a.tar", FRAMES)
    content = (root / "a.tar").read_bytes()
    header = content.index(b"video0/01.jpg")
    (root / "a.tar").write_bytes(content[:header] + b"\xff" * 512 + content[header + 512 :])


def latin_names(root):
    """Write a zip whose file names are marked as UTF-8 but are not."""
    pictures.write_zip(root / "a.zip", {"n\u00e4h.jpg": FRAMES["video0/00.jpg"]})
    content = (root / "a.zip").read_bytes()
    (root / "a.zip").write_bytes(content.replace("n\u00e4h".encode(), b"n\xe4\xe4h"))


def later_version(root):
    """Write a zip that requires version 9.9 of the format."""
    pictures.write_zip(root / "a.zip", FRAMES)
    content = (root / "a.zip").read_bytes()
    place = content.index(b"PK\1\2") + 6
    (root / "a.zip").write_bytes(content[:place] + b"\x63" + content[place + 1 :])


@pytest.mark.parametrize(
    ("dataset", "make", "message"),
    [
        ("folder", empty, "contains no images .*found nothing"),
        ("folder", nothing, "there is no folder .* contains dataset"),
        ("folder", zip_inside, "found 1 .zip; .*--dataset shards"),
        ("shards", images, "found 10 .jpg; .*--dataset folder"),
        ("shards", no_frames, "none of the 1 shards .* contains an image"),
        ("shards", compressed, "cannot be read as an uncompressed tar"),
        ("shards", cut("tar", 0), "cannot be read as an uncompressed tar"),
        ("shards", scribbled, "no header at byte"),
        ("shards", cut("zip", 0), "cannot be read .*copy it again"),
        ("shards", latin_names, r"a\.zip cannot be read .*utf-8"),
        ("shards", later_version, r"a\.zip cannot be read .*version 9\.9"),
        ("parquet", images, "found 10 .jpg; .*--dataset folder"),
    ],
)
def test_wrong_folders_are_described(tmp_path, dataset, make, message):
    make(tmp_path / "data")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_source(dataset, str(tmp_path / "data"))


def test_tables_say_which_columns_and_splits_they_have(tmp_path):
    pictures.write_parquet(tmp_path / "train-0.parquet", FIRST)
    pictures.write_parquet(tmp_path / "test-0.parquet", SECOND)
    assert len(open_source("parquet", str(tmp_path))) == 4
    assert len(open_source("parquet", str(tmp_path), split="test")) == 6
    assert len(open_source("parquet", str(tmp_path), split="test[:50%]")) == 3
    with pytest.raises(ValueError, match="split 'validation'; found splits: test, train"):
        open_source("parquet", str(tmp_path), split="validation")
    with pytest.raises(ValueError, match="no column 'image'; it has frame, video"):
        open_source("parquet", str(tmp_path), image_column="image")
    with pytest.raises(ValueError, match="expected images"):
        open_source("parquet", str(tmp_path), image_column="video")
    with pytest.raises(ValueError, match=r"cannot be read: .*validation"):
        open_source(str(tmp_path), split="validation")
    with pytest.raises(FileNotFoundError, match="'no/such' cannot be found"):
        open_source("no/such")


def test_several_columns_of_images_must_be_told_apart(tmp_path):
    from datasets import Dataset, Features, Image

    cells = [{"bytes": content, "path": None} for content in FRAMES.values()]
    masks = [{"bytes": b"mask", "path": None}] * 10
    features = Features({"left": Image(), "mask": Image()})
    Dataset.from_dict({"left": cells, "mask": masks}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="the image columns left, mask; choose one"):
        open_source("parquet", str(tmp_path))
    assert open_source("parquet", str(tmp_path), image_column="left").read(9) == FRAMES["video2/09.jpg"]


@pytest.mark.slow
def test_synthetic_scenes():
    source = open_source("synthetic:2")
    assert len(source) == 12
    assert source.read(0)[:2] == b"\xff\xd8"
    assert source.read(0) != source.read(1)


def parse(*arguments: str) -> FrameArguments:
    return HfArgumentParser(FrameArguments).parse_args_into_dataclasses(list(arguments))[0]


def test_folders_belong_to_data_sets_in_their_order(tmp_path):
    assert parse("--dataset", "folder", "shards", "--data_dir", "a", "b").data_dirs() == ["a", "b"]
    assert parse("--dataset", "folder", "shards", "--data_dir", "a").data_dirs() == ["a", "a"]
    assert parse("--dataset", "folder", "me/data", "shards", "--data_dir", "a", "b").data_dirs() == ["a", None, "b"]
    assert parse("--dataset", "me/data", "--data_dir", "sub").data_dirs() == ["sub"]
    assert parse("--dataset", "me/data", "synthetic").data_dirs() == [None, None]
    one, two = write("folder", tmp_path / "one")[1], write("zip", tmp_path / "two")[1]
    assert [len(s) for s in open_sources(parse("--dataset", "folder", "shards", "--data_dir", one, two))] == [10, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--dataset is missing"),
        ("--dataset folder folder folder --data_dir a b", "2 --data_dir for 3 datasets, of which 3"),
        ("--dataset folder", "0 --data_dir for 1 datasets"),
        ("--dataset a b --data_dir c", "1 --data_dir for 2 datasets, of which 0"),
        ("--dataset a b --dataset_weights 1", "1 --dataset_weights for 2"),
        ("--dataset a --dataset_weights 0", "must be positive"),
        ("--dataset a --streaming", "needs --frames_per_epoch"),
        ("--dataset a b --streaming --frames_per_epoch 9", "needs --dataset_weights"),
        ("--dataset a --max_unreadable_fraction 2", r"in \[0, 1\]"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(*arguments.split())
