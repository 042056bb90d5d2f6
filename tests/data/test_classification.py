import pickle

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from surgenet_hf.data import load_classification, load_segmentation
from surgenet_hf.data.classification import (
    MULTI,
    SINGLE,
    FrameSample,
    build_splits,
    check_no_overlap,
    match_labels,
    read_label_file,
    split_by_name,
)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'cholec80'.*synthetic-phases, endoscapes-cvs, cholec80-phase, cholec80-t"):
        load_classification("cholec80")


@pytest.mark.parametrize("name", ["endoscapes-cvs", "cholec80-phase", "cholec80-tools", "autolaparo", "csv", "videos"])
def test_a_missing_data_dir_is_an_error_of_its_own(name, tmp_path):
    with pytest.raises(ValueError, match=f"'{name}' needs data_dir"):
        load_classification(name)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^Expected .*nowhere does not exist .*holds elsewhere"):
        load_classification(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "source"), [("cholecseg8k", "kaggle"), ("cholecseg8k-8", "kaggle"), ("dsad", "figshare")]
)
def test_segmentation_sets_say_where_to_get_them(name, source, tmp_path):
    with pytest.raises(FileNotFoundError, match=source):
        load_segmentation(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no choice of some"):
        load_segmentation(name, tmp_path, some="option")


def _samples(tmp_path, video="v", frames=(0, 1), labels=0):
    path = tmp_path / "frame.png"
    Image.new("L", (12, 8), 100).save(path)
    return [FrameSample(path, labels, video, frame) for frame in frames]


def test_rows(tmp_path):
    samples = _samples(tmp_path, "b", (10, 9, 2), 4) + _samples(tmp_path, "a", (1,), 2)
    splits = build_splits({"train": samples, "validation": _samples(tmp_path, "c"), "test": []}, 5, SINGLE)
    assert set(splits) == {"train", "validation"}
    columns = splits["train"].select_columns(["video", "frame", "labels"])[:]
    assert columns == {"video": ["b", "b", "b", "a"], "frame": [2, 9, 10, 1], "labels": [4, 4, 4, 2]}
    row = splits["train"][0]
    assert row["image"].mode == "RGB"
    assert type(row["labels"]) is int


def test_soft_targets(tmp_path):
    splits = build_splits({"train": _samples(tmp_path, labels=(0.0, 1 / 3, 1.0))}, 3, MULTI)
    assert splits["train"][0]["labels"] == pytest.approx([0, 1 / 3, 1])
    assert splits["train"][0]["labels"].dtype == np.float32
    (tmp_path / "frame.png").unlink()
    labels = splits["train"].select_columns(["labels"])[:]["labels"]  # no image is decoded
    assert np.stack(labels).shape == (2, 3)
    assert splits["train"].select_columns(["video"])[0] == {"video": "v"}


def test_a_video_in_two_splits_is_an_error(tmp_path):
    samples = _samples(tmp_path)
    with pytest.raises(ValueError, match=r"'v' is in train and in test, but splits are by video: neighbouring frames"):
        build_splits({"train": samples[:1], "test": samples[1:]}, 2, SINGLE)
    check_no_overlap({"train": ["a", "a"], "test": ["b"]})


def test_two_frames_of_one_number_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'v' has two frames with the number 1 \(.*frame\.png"):
        build_splits({"train": _samples(tmp_path, frames=(1, 0, 1))}, 2, SINGLE)


def _collate(rows):
    return [(row["image"].size, np.asarray(row["labels"]).tolist(), row["video"]) for row in rows]


@pytest.mark.parametrize(("labels", "problem_type"), [(1, SINGLE), ((0.5, 1.0), MULTI)])
def test_rows_reach_the_workers_of_a_data_loader_and_survive_pickling(tmp_path, labels, problem_type):
    split = build_splits({"train": _samples(tmp_path, labels=labels)}, 2, problem_type)["train"]
    expected = [[((12, 8), labels if problem_type == SINGLE else list(labels), "v")] * 2]
    assert list(DataLoader(split, 2, collate_fn=_collate, num_workers=1)) == expected
    assert _collate(pickle.loads(pickle.dumps(split))) == expected[0]


def test_the_split_by_names_is_the_same_everywhere():
    split = split_by_name([f"{letter}_op" for letter in "abcde"], "here")
    assert {video for video, part in split.items() if part == "validation"} == {"e_op"}  # as test_folder has it
    assert sum(part == "validation" for part in split_by_name(map(str, range(20)), "here").values()) == 4


def _label_file(tmp_path, text):
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode())
    return read_label_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "Frame\tPhase\n0\tfirst cut\n1\tb\n2\tb\n",
        "Frame,Phase\r\n0, first cut\r\n1, b\r\n2, b\r\n\r\n",
        "0;first cut\n1;b\n2;b",
        "Frame Phase\n0   first cut\n1 b\n2 b\n",
    ],
)
def test_label_files(tmp_path, text):
    labels = _label_file(tmp_path, text)
    assert labels.frames == (0, 1, 2)
    assert labels.values == (("first cut",), ("b",), ("b",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no labels"),
        ("Frame\tPhase\n", "holds no labels"),
        ("Frame\tPhase\n0\ta\n1\n", "line 3: expected a frame number and 1 value"),
        ("Frame\tPhase\n0\ta\t7\n", "line 2: expected a frame number and 1 value"),
        ("Frame\tPhase\n0\ta\nx\tb\n", "line 3: expected a frame number"),
        ("0\ta\n1\ta\n3\ta\n", "line 3: frame 3 follows 1"),
        ("0\ta\n0\ta\n", "must ascend from 0 or 1, found 0, 0"),
        ("5\ta\n6\ta\n", "must ascend from 0 or 1, found 5, 6"),
    ],
)
def test_label_files_that_are_none(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"labels\.txt.*{message}"):
        _label_file(tmp_path, text)


def test_labels_in_another_encoding(tmp_path):
    (tmp_path / "labels.txt").write_bytes("0\tNähen\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"labels\.txt is not UTF-8 text"):
        read_label_file(tmp_path / "labels.txt")


def test_labels_of_seconds(tmp_path):
    rows = "".join(f"{i}\t{i}\n" for i in range(100))
    values, note = match_labels(_label_file(tmp_path, rows), 4, (25,))
    assert values == [("0",), ("25",), ("50",), ("75",)]
    assert note is None
    values, note = match_labels(_label_file(tmp_path, rows), 100, (1, 25))
    assert values == [(str(i),) for i in range(100)]
    values, _ = match_labels(_label_file(tmp_path, rows), 4, (1, 29.97))  # 3.3 s: a started fourth second
    assert values == [("0",), ("29",), ("59",), ("89",)]
