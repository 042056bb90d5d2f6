import pytest

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import autolaparo
from tests.data.videos import second_of, write_video


def _labels(root, number, values, separator="\t", header="Frame\tPhase\n", first=1):
    path = root / "labels" / f"label_{number:02d}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(header + "".join(f"{first + i}{separator}{value}\n" for i, value in enumerate(values)))


@pytest.fixture
def root(tmp_path):
    """Return a folder with videos 1 (train), 11 (validation), and 21 (test) of 4 s.

    Each second has a label, as in the published files.
    """
    for number in (1, 11, 21):
        write_video(tmp_path / "videos" / f"{number:02d}.mp4", 100)
        _labels(tmp_path, number, (1, 2, 2, 7))
    return tmp_path


def _labels_of(data, split="train"):
    return data.splits[split].select_columns(["labels"])[:]["labels"]


def test_phases(root):
    data = load_data("autolaparo", root)
    assert data.problem_type == "single_label_classification"
    assert data.labels[6] == "Washing"
    assert data.frames_per_second == 1
    assert {name: split.num_rows for name, split in data.splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), 4
    )
    assert _labels_of(data) == [0, 1, 1, 6]
    row = data.splits["test"][2]
    assert (row["labels"], row["video"], row["frame"], row["split"]) == (1, "21", 2, "test")
    assert second_of(row["image"]) == 2
    assert data.notes[0].startswith("Found 3 of 21 videos, 12 frames")
    assert data.videos_are_public
    assert data.split_protocol == "official (train 1-10, validation 11-14, test 15-21)"
    assert "Missing: 02, 03" in data.notes[0]


def test_the_published_split():
    assert [len(names) for names in autolaparo.SPLITS.values()] == [10, 4, 7]
    assert [name for names in autolaparo.SPLITS.values() for name in names] == [f"{i:02d}" for i in range(1, 22)]


@pytest.mark.parametrize(
    "style",
    [
        {"separator": ",", "header": "Frame,Phase\n"},
        {"separator": " ", "header": "Frame Phase\n"},
        {"header": ""},
        {"first": 0},
        {"header": "\ufeffFrame\tPhase\r\n"},
    ],
)
def test_other_ways_to_write_labels(root, style):
    _labels(root, 1, (1, 2, 2, 7), **style)
    assert _labels_of(load_data("autolaparo", root)) == [0, 1, 1, 6]


def test_labels_for_every_frame_are_recognised(root):
    _labels(root, 1, [1] * 25 + [2] * 50 + [7] * 25)
    assert _labels_of(load_data("autolaparo", root)) == [0, 1, 1, 6]


def test_labels_of_another_video(root):
    _labels(root, 1, [1] * 12)
    with pytest.raises(ValueError, match=r"label_01\.txt labels 12 s .*there are 4 frames"):
        load_data("autolaparo", root)


@pytest.mark.parametrize("phase", ["0", "8", "Cutting"])
def test_a_phase_that_is_none(root, phase):
    _labels(root, 1, (1, 2, phase, 7))
    with pytest.raises(ValueError, match=rf"label_01\.txt: '{phase}' is not a class; .*or a number from 1 to 7"):
        load_data("autolaparo", root)


def test_a_video_without_labels(root):
    (root / "labels" / "label_11.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"video 11 has no labels: expected .*label_11\.txt.*autolaparo\.github"
    ):
        load_data("autolaparo", root)
