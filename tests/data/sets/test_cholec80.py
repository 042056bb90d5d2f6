import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import frame_folders, load_data
from surgenet_hf.data.sets import cholec80
from tests.data.videos import second_of, write_video

PHASES = cholec80.PHASES


def _phase_file(root, number, seconds, phases, extra_rows=0):
    """Write a label for every frame at 25 frames per second, with equal time for each phase."""
    path = root / "phase_annotations" / f"video{number:02d}-phase.txt"
    path.parent.mkdir(exist_ok=True)
    rows = 25 * seconds + extra_rows
    values = [phases[min(i * len(phases) // (25 * seconds), len(phases) - 1)] for i in range(rows)]
    path.write_text("Frame\tPhase\n" + "".join(f"{i}\t{PHASES[value]}\n" for i, value in enumerate(values)))


def _tool_file(root, number, rows):
    path = root / "tool_annotations" / f"video{number:02d}-tool.txt"
    path.parent.mkdir(exist_ok=True)
    lines = ["Frame\t" + "\t".join(cholec80.TOOLS)]
    lines += [f"{25 * i}\t" + "\t".join(map(str, row)) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    """Return a folder with videos 1 and 2 (train), 33 (validation), and 80 (test) of 6 s.

    Video 2 has no preparation phase, and video 33 has a different order of phases.
    """
    orders = {1: (0, 1, 2, 3, 4, 5), 2: (1, 2, 3, 4, 5, 6), 33: (1, 2, 3, 5, 4, 6), 80: (0, 1, 2, 3, 4, 5)}
    for number, order in orders.items():
        write_video(tmp_path / "videos" / f"video{number:02d}.mp4", 150)
        _phase_file(tmp_path, number, 6, order)
        _tool_file(tmp_path, number, [(1, 0, int(i > 2), 0, 0, 0, 0) for i in range(6)])
    (tmp_path / "videos" / "video01-timestamp.txt").write_text("")
    return tmp_path


def _column(split, name):
    return split.select_columns([name])[:][name]


def test_phases(root):
    data = load_data("cholec80-phase", root)
    assert data.name == "cholec80-phase"
    assert data.videos_are_public
    assert data.problem_type == "single_label_classification"
    assert data.frames_per_second == 1
    assert data.labels == PHASES
    assert len(set(data.colors)) == 7
    assert {name: split.num_rows for name, split in data.splits.items()} == {"train": 12, "validation": 6, "test": 6}
    train = data.splits["train"]
    assert _column(train, "video") == ["video01"] * 6 + ["video02"] * 6
    assert _column(train, "frame") == [0, 1, 2, 3, 4, 5] * 2
    assert _column(train, "labels") == [0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6]
    assert _column(data.splits["validation"], "labels") == [1, 2, 3, 5, 4, 6]
    row = train[8]
    assert (row["labels"], row["video"], row["frame"], row["split"]) == (3, "video02", 2, "train")
    assert row["image"].size == (48, 32)
    assert second_of(row["image"]) == 2
    found, absent = data.notes
    assert found.startswith(
        "Found 4 of 80 videos, 24 frames at 1 per second. Results are not comparable with those on the full dataset."
    )
    assert "Missing: video03, video04, " in found
    assert "video02 (Preparation)" in absent
    assert "video01 (GallbladderRetraction)" in absent


def test_tools(root):
    data = load_data("cholec80-tools", root)
    assert data.problem_type == "multi_label_classification"
    assert data.labels[2] == "Hook"
    assert len(data.notes) == 1
    labels = [row["labels"] for row in data.splits["train"]]
    assert labels[0].dtype == np.float32
    assert labels[2].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert labels[3].tolist() == [1, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(("split", "sizes"), [("32/8/40", (32, 8, 40)), ("40/8/32", (40, 8, 32)), ("40/40", (40, 40))])
def test_published_splits(split, sizes):
    parts = cholec80.SPLITS[split]
    assert tuple(map(len, parts.values())) == sizes
    ranges = [f"{part} {int(names[0][-2:])}-{int(names[-1][-2:])}" for part, names in parts.items()]
    assert cholec80._VIDEOS_OF[split] == ", ".join(ranges)
    assert [name for names in parts.values() for name in names] == [f"video{i:02d}" for i in range(1, 81)]


def test_the_split_without_validation_says_so(root):
    data = load_data("cholec80-phase", root, split_protocol="40/40")
    assert set(data.splits) == {"train", "test"}
    assert set(_column(data.splits["train"], "video")) == {"video01", "video02", "video33"}
    assert "no validation videos" in data.notes[-1]
    assert data.split_protocol == "40/40 (train 1-40, test 41-80)"


def test_a_random_split_is_refused_with_the_reason(root):
    with pytest.raises(ValueError, match=r"'random'.*32/8/40.*by video: neighboring frames look alike"):
        load_data("cholec80-phase", root, split_protocol="random")


def test_the_second_call_does_not_decode_again(root, monkeypatch):
    first = load_data("cholec80-phase", root)
    monkeypatch.setattr(frame_folders, "sample_video", None)
    again = load_data("cholec80-phase", root)
    assert _column(again.splits["train"], "labels") == _column(first.splits["train"], "labels")


def test_frames_elsewhere_and_smaller(root, tmp_path):
    data = load_data("cholec80-phase", root, cache_dir=tmp_path / "cache", max_side=24)
    assert data.splits["train"][0]["image"].size == (24, 16)
    assert not (root / "frames").exists()
    assert len(list((tmp_path / "cache" / "video33").glob("*.jpg"))) == 6


def test_frames_extracted_by_other_means(root):
    for path in (root / "videos").iterdir():
        if path.suffix == ".mp4":
            folder = root / "frames" / path.stem
            folder.mkdir(parents=True)
            for i in range(1, 7):
                Image.new("RGB", (10, 8), (10 * i, 0, 0)).save(folder / f"{path.stem}_{i:06d}.png")
        path.unlink()
    data = load_data("cholec80-phase", root)
    assert _column(data.splits["train"], "frame") == [0, 1, 2, 3, 4, 5] * 2
    assert np.asarray(data.splits["train"][3]["image"])[0, 0, 0] == 40


@pytest.mark.parametrize(("frames", "rows"), [(150 - 20, 0), (150, 20), (150 - 25, 0), (150, 25)])
def test_a_second_more_or_less_is_cut_off_with_a_note(root, frames, rows):
    write_video(root / "videos" / "video01.mp4", frames)
    _phase_file(root, 1, 6, (0, 1, 2, 3, 4, 5), rows)
    data = load_data("cholec80-phase", root)
    number = min(6, -(-frames // 25))
    assert _column(data.splits["train"], "labels")[:number] == list(range(number))
    assert _column(data.splits["train"], "video").count("video01") == number
    if frames <= 125 or rows:
        assert "video01 (" in data.notes[1]
        assert f"{-(-frames // 25)} s of video but {-(-(150 + rows) // 25)} s of labels" in data.notes[1]


@pytest.mark.parametrize(("frames", "rows"), [(95, 0), (150, 60)])
def test_a_greater_difference_is_an_error_with_both_numbers(root, frames, rows):
    write_video(root / "videos" / "video02.mp4", frames)
    _phase_file(root, 2, 6, (1, 2), rows)
    seconds, images = -(-(150 + rows) // 25), -(-frames // 25)
    with pytest.raises(ValueError, match=rf"video02-phase\.txt labels {seconds} s .*there are {images} frames at 1"):
        load_data("cholec80-phase", root)


def test_a_video_without_annotation(root):
    (root / "phase_annotations" / "video33-phase.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"video33 has no labels: expected .*video33-phase\.txt.*camma"):
        load_data("cholec80-phase", root)
    assert load_data("cholec80-tools", root).splits["validation"].num_rows == 6


def test_an_annotation_without_video_is_a_missing_video(root):
    _phase_file(root, 3, 6, (0, 1))
    assert "Missing: video03" in load_data("cholec80-phase", root).notes[0]


def test_nothing_to_validate_on(root):
    (root / "videos" / "video33.mp4").unlink()
    with pytest.raises(ValueError, match="no frames for the split 'validation'"):
        load_data("cholec80-phase", root)


def test_annotations_that_cannot_be_read(root):
    path = root / "phase_annotations" / "video01-phase.txt"
    content = path.read_text()
    path.write_text(content.replace("ClippingCutting", "Clipping"))
    with pytest.raises(
        ValueError, match=r"video01-phase\.txt: 'Clipping' is not a class; expected one of Preparation"
    ):
        load_data("cholec80-phase", root)
    path.write_text(content.replace("\n70\t", "\n71\t"))
    with pytest.raises(ValueError, match=r"video01-phase\.txt, line 72: frame 71 follows 69"):
        load_data("cholec80-phase", root)
    _tool_file(root, 1, [(1, 0, 2, 0, 0, 0, 0)] * 6)
    with pytest.raises(ValueError, match=r"video01-tool\.txt: the presence of a tool must be 0 or 1"):
        load_data("cholec80-tools", root)


def test_folders_that_are_not_the_data(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Expected the official Cholec80 layout.*dataset at http.*Found: .* is empty"
    ):
        load_data("cholec80-phase", tmp_path)
    (tmp_path / "videos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"phase_annotations does not exist .*contains videos"):
        load_data("cholec80-phase", tmp_path)
