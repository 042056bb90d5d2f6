import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from tests.data.videos import second_of, write_video


def _image(root, name, value=100):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (value, 60, 50)).save(path)


def _column(split, name):
    return split.select_columns([name])[:][name]


@pytest.fixture
def table(tmp_path):
    """Return a function `table(header, rows)` that writes labels.csv and the frames that it names."""

    def write(header, rows, encoding="utf-8"):
        (tmp_path / "labels.csv").write_bytes("\n".join([header, *rows, ""]).encode(encoding))
        for row in rows:
            _image(tmp_path, row.replace(";", ",").split(",")[0].strip().strip('"'))
        return tmp_path

    return write


ROWS = [f"frames/{video}_{i}.jpg,{video},{'ab'[i % 2]}" for video in "pqrst" for i in (10, 9, 2)]


def test_a_table_with_one_label_for_each_frame(table):
    root = table("image,video,label", ROWS)
    data = load_data("csv", root)
    assert data.split_protocol == "by video name, one fifth validates"
    assert data.name == "csv"
    assert data.problem_type == "single_label_classification"
    assert data.labels == ("a", "b")
    train, validation = data.splits["train"], data.splits["validation"]
    assert (train.num_rows, validation.num_rows) == (12, 3)
    assert _column(train, "frame")[:3] == [2, 9, 10]  # in temporal order, not in row or alphabetical order
    assert _column(train, "labels")[:3] == [0, 1, 0]
    assert train[0]["image"].size == (24, 16)
    assert isinstance(train[0]["labels"], int)
    assert set(_column(validation, "video")) == {"s"}  # the first video by SHA-256 of the names
    found, no_test = data.notes
    assert found == "Found frames: 12 of 4 videos (train), 3 of 1 videos (validation), 0 of 0 videos (test)."
    assert "There is no test split" in no_test
    assert "D/labels.csv" in no_test


def test_a_table_with_a_column_for_each_class(table):
    data = load_data("csv", table("image;video;smoke;blood", ["1.jpg;p;0;1", "2.jpg;q;0.5;0.25"]))
    assert data.problem_type == "multi_label_classification"
    assert data.labels == ("smoke", "blood")
    (row,) = [row for split in data.splits.values() for row in split if row["video"] == "q"]
    assert row["labels"].dtype == np.float32
    assert row["labels"].tolist() == [0.5, 0.25]


def test_split_and_frame_columns(table):
    rows = ["z.jpg,p,a,train,5", "y.jpg,p,b,train,3", "x.jpg,q,a,validation,0", "w.jpg,r,b,test,0"]
    data = load_data("csv", table("image,video,label,split,frame", rows, "utf-8-sig"))
    assert data.split_protocol == "by the column split of labels.csv"
    assert [split.num_rows for split in data.splits.values()] == [2, 1, 1]
    assert _column(data.splits["train"], "frame") == [3, 5]
    assert _column(data.splits["train"], "labels") == [1, 0]


def test_without_any_number_the_order_of_the_rows_counts(table):
    data = load_data("csv", table("image,video,label", ["z.jpg,p,a", "y.jpg,p,b", "x.jpg,q,b", "w.jpg,r,a"]))
    assert [row["image"].size for row in data.splits["train"]]
    labels = {row["video"]: [] for split in data.splits.values() for row in split}
    for split in data.splits.values():
        for video, label in zip(_column(split, "video"), _column(split, "labels"), strict=True):
            labels[video].append(label)
    assert labels == {"p": [0, 1], "q": [1], "r": [0]}


def test_classes_txt_gives_the_order_and_rare_classes(table):
    root = table("image,video,label", ROWS)
    (root / "classes.txt").write_text("b\na\nrare\n")
    data = load_data("csv", root)
    assert data.labels == ("b", "a", "rare")
    assert _column(data.splits["train"], "labels")[:3] == [1, 0, 1]
    assert data.notes[1] == "No training frame has the class rare: it cannot be learned."
    (root / "classes.txt").write_text("b\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 2: 'a' is not in classes\.txt"):
        load_data("csv", root)


def test_a_split_of_single_frames_is_refused_with_the_reason(table):
    rows = ["1.jpg,p,a,train", "2.jpg,p,b,validation", "3.jpg,q,a,train"]
    with pytest.raises(
        ValueError, match=r"'p' is in train and in validation, but splits must be by video: neighboring"
    ):
        load_data("csv", table("image,video,label,split", rows))
    with pytest.raises(
        ValueError, match=r"no column video \(splits must be by video.*; it has image.*expected labels\.csv"
    ):
        load_data("csv", table("image,label", ["1.jpg,a", "2.jpg,b"]))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("image,video", ["1.jpg,p"], "neither a column 'label' nor columns for classes"),
        ("image,video,label,smoke", ["1.jpg,p,a,1"], r"both a column 'label' and columns for classes \(smoke\)"),
        ("image,video,label", ["1.jpg,p,a", "2.jpg,q,a"], "contains a single class"),
        ("image,video,label", ["1.jpg,p,a", "2.jpg,p,b"], r"fewer than two videos \(p\)"),
        ("image,video,label", ["1.jpg,p"], "line 2: expected 3 values"),
        ("image,video,label", ["1.jpg,p,a,b"], "line 2: expected 3 values"),
        ("image,video,label", ["1.jpg,,a"], "line 2: video is empty"),
        ("image,video,label", [], "has no rows"),
        ("image,video,smoke,smoke", ["1.jpg,p,1,1"], "two columns with the same name"),
        ("image,video,smoke", ["1.jpg,p,1.5", "2.jpg,q,0"], r"line 2: smoke is 1\.5; expected a target from 0 to 1"),
        ("image,video,smoke", ["1.jpg,p,0", "2.jpg,q,nan"], r"line 3: smoke is nan"),
        ("image,video,smoke", ["1.jpg,p,yes", "2.jpg,q,0"], r"line 2: smoke is 'yes'; expected a number"),
        ("image,video,label,split", ["1.jpg,p,a,dev", "2.jpg,q,b,train"], r"the split of 'p' is 'dev'"),
        ("image,video,label,split", ["1.jpg,p,a,train", "2.jpg,q,b,train"], "no frames for the split 'validation'"),
        ("image,video,label,frame", ["1.jpg,p,a,x", "2.jpg,q,b,1"], "line 2: the frame number is 'x'"),
        ("image,video,label,frame", ["1.jpg,p,a,1", "2.jpg,p,b,1", "3.jpg,q,b,1"], "two frames with the number 1"),
    ],
)
def test_tables_that_are_none(table, header, rows, message):
    with pytest.raises(ValueError, match=message):
        load_data("csv", table(header, rows))


def test_frames_that_are_missing_or_broken(table):
    root = table("image,video,label", ROWS)
    (root / "frames" / "q_9.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"q_9\.jpg cannot be read"):
        load_data("csv", root)
    (root / "frames" / "q_9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 15 frames are missing: .*q_9\.jpg"):
        load_data("csv", root)
    (root / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*labels\.csv; expected"):
        load_data("csv", root)


def _phases(root, name, rows, header="Frame\tPhase", separator="\t"):
    path = root / "phases" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *(f"{i}{separator}{value}" for i, value in enumerate(rows)), ""]))


@pytest.fixture
def videos(tmp_path):
    """Return a folder with three videos.

    Video a has 30 frames per second and a label for every frame. Video b has a label for each second. Video c is
    a folder of frames.
    """
    write_video(tmp_path / "videos" / "a.mp4", 120, rate=30)
    _phases(tmp_path, "a", ["first cut"] * 60 + ["suture"] * 60)
    write_video(tmp_path / "videos" / "b.MOV", 100)
    _phases(tmp_path, "b", ["suture", "suture", "wash", "wash"], "Frame,Phase", ",")
    for i in range(4):
        _image(tmp_path, f"frames/c/{i:06d}.jpg", 20 + 10 * i)
    _phases(tmp_path, "c", ["first cut", "suture", "wash", "suture"])
    return tmp_path


def test_videos_and_frame_folders(videos):
    data = load_data("videos", videos)
    assert data.name == "videos"
    assert data.labels == ("first cut", "suture", "wash")  # in order of appearance
    assert data.frames_per_second == 1
    rows = {}
    for split in data.splits.values():
        for row in split:
            rows.setdefault(row["video"], []).append(row)
    assert {name: [row["labels"] for row in video] for name, video in rows.items()} == {
        "a": [0, 0, 1, 1],
        "b": [1, 1, 2, 2],
        "c": [0, 1, 2, 1],
    }
    assert [second_of(row["image"]) for row in rows["a"]] == [0, 1, 2, 3]
    assert [row["frame"] for row in rows["c"]] == [0, 1, 2, 3]
    assert len(set(_column(data.splits["validation"], "video"))) == 1
    assert "Videos in which at least one class never occurs: a (wash), b (first cut)." in data.notes


def test_numbers_for_phases(videos):
    for name in "abc":
        _phases(videos, name, [0, 0, 2, 2])
    data = load_data("videos", videos)
    assert data.labels == ("phase_0", "phase_1", "phase_2")
    (videos / "classes.txt").write_text("a\nb\nc\nd\n")
    data = load_data("videos", videos)
    assert data.labels == ("a", "b", "c", "d")
    assert _column(data.splits["train"], "labels")[:4] == [0, 0, 2, 2]
    _phases(videos, "b", [0, 0, 4, 4])
    with pytest.raises(
        ValueError, match=r"b\.txt: '4' is not a class; expected one of a, b, c, d, or a number from 0 to 3"
    ):
        load_data("videos", videos)


def test_names_and_numbers_are_not_mixed(videos):
    _phases(videos, "b", [0, 0, 1, 1])
    with pytest.raises(ValueError, match="phases must be names or numbers, found both"):
        load_data("videos", videos)


def test_splits_csv(videos):
    (videos / "splits.csv").write_text("video,split\na,test\nb,train\nc,validation\n")
    data = load_data("videos", videos)
    assert {name: set(_column(split, "video")) for name, split in data.splits.items()} == {
        "train": {"b"},
        "validation": {"c"},
        "test": {"a"},
    }
    (videos / "splits.csv").write_text("video,split\na,test\nb,train\nc,validation\nc,train\n")
    with pytest.raises(ValueError, match=r"'c' is in train and in validation"):
        load_data("videos", videos)
    (videos / "splits.csv").write_text("video,split\nb,train\nc,validation\n")
    with pytest.raises(ValueError, match=r"splits\.csv assigns no split to a"):
        load_data("videos", videos)


def test_labels_of_another_rate_must_be_declared(videos):
    """Test that labels at another rate must be declared.

    A frame folder does not record the frame rate of the video to which its labels refer.
    """
    _phases(videos, "c", ["first cut"] * 40 + ["suture"] * 40)
    with pytest.raises(ValueError, match=r"c\.txt labels 80 s .*there are 4 frames"):
        load_data("videos", videos)
    for name in "ab":
        (videos / "phases" / f"{name}.txt").unlink()
    (videos / "videos" / "a.mp4").unlink()
    (videos / "videos" / "b.MOV").unlink()
    (videos / "frames" / "c").rename(videos / "frames" / "d")
    (videos / "phases" / "c.txt").rename(videos / "phases" / "d.txt")
    for i in range(4):
        _image(videos, f"frames/e/{i:06d}.jpg")
    _phases(videos, "e", ["first cut"] * 40 + ["suture"] * 40)
    data = load_data("videos", videos, labels_per_second=20)
    assert _column(data.splits["train"], "labels") == [0, 0, 1, 1]


def test_labels_without_video_and_videos_without_labels(videos):
    _phases(videos, "d", ["wash"] * 4)
    with pytest.raises(FileNotFoundError, match=r"labels but no frames for d: expected .*d\.mp4 or .*d.000000\.jpg"):
        load_data("videos", videos)
    (videos / "phases" / "d.txt").unlink()
    (videos / "phases" / "b.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no labels for b: expected .*b\.txt"):
        load_data("videos", videos)


def test_a_broken_video_is_named(videos):
    (videos / "videos" / "b.MOV").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.MOV cannot be read"):
        load_data("videos", videos)
