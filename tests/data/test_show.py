import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from matplotlib.colors import to_rgb
from PIL import Image

from surgenet_hf.data import SurgicalData
from surgenet_hf.data.sets import synthetic
from surgenet_hf.data.show import choose_frames, show


@pytest.fixture(scope="module")
def data():
    return synthetic.load(num_videos=5, frames_per_video=3, size=(48, 64))


def _classification(labels, targets, problem_type, videos=None):
    """Return classification data with the given labels and targets."""
    rows = [
        {"image": Image.new("RGB", (40 + 8 * i, 30), (200, 90, 80)), "labels": target, "video": video, "frame": i}
        for i, (target, video) in enumerate(zip(targets, videos or "abcdefgh", strict=False))
    ]
    colors = tuple((40 * i, 10, 20) for i in range(len(labels)))
    splits = DatasetDict({"train": Dataset.from_list(rows)})
    return SurgicalData("cases", "image-classification", labels, colors, splits, problem_type=problem_type)


def _texts(figure):
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title, axes._left_title)]


def test_frames_are_of_as_many_videos_as_possible(data):
    train = data.splits["train"]  # 4 videos of 3 frames
    videos = train["video"]
    for seed in range(5):
        assert len({videos[i] for i in choose_frames(train, 4, seed)}) == 4
        assert len({videos[i] for i in choose_frames(train, 3, seed)}) == 3
        six = [videos[i] for i in choose_frames(train, 6, seed)]
        assert {six.count(video) for video in set(six)} == {1, 2}
        assert six == sorted(six)
    assert choose_frames(train, 99, 0) == list(range(12))


def test_frames_are_a_function_of_the_seed(data):
    train = data.splits["train"]
    assert choose_frames(train, 4, 7) == choose_frames(train, 4, 7)
    videos = train["video"]
    assert len({tuple(videos[i] for i in choose_frames(train, 2, seed)) for seed in range(8)}) > 2
    assert len({tuple(choose_frames(train, 4, seed)) for seed in range(6)}) > 3


def test_videos_of_different_length():
    rows = Dataset.from_dict({"video": ["long"] * 50 + ["short"]})
    assert 50 in choose_frames(rows, 2, 0)
    assert len(set(choose_frames(rows, 10, 0))) == 10


def test_masks(data):
    figure = show(data, num_frames=3, seed=1)
    chosen = choose_frames(data.splits["train"], 3, 1)
    rows = [data.splits["train"][i] for i in chosen]
    assert figure.texts[0].get_text() == "synthetic, train: 3 of 12 frames"
    assert len(figure.axes) == 6
    for row, frame, overlay in zip(rows, figure.axes[::2], figure.axes[1::2], strict=True):
        assert np.array_equal(frame.images[0].get_array(), np.asarray(row["image"]))
        painted = (overlay.images[0].get_array() != frame.images[0].get_array()).any(-1)
        assert painted[row["mask"] > 0].mean() > 0.9
        assert not painted[row["mask"] == 0].all()
        assert frame.get_title("left") == f"{row['video']}, frame {row['frame']}"
    ids = sorted({int(i) for row in rows for i in np.unique(row["mask"])})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"{i}  {data.labels[i]}" for i in ids]
    for i, patch in zip(ids, legend.get_patches(), strict=True):
        if i:
            assert to_rgb(patch.get_facecolor()) == pytest.approx(np.divide(data.colors[i], 255))
    assert {text for text in _texts(figure) if text.isdigit()} <= set(map(str, ids))


def test_split_and_number(data):
    figure = show(data, split="validation")
    assert figure.texts[0].get_text() == "synthetic, validation: 3 of 3 frames"
    assert len(show(data, num_frames=1).axes) == 2
    with pytest.raises(ValueError, match="'synthetic' has no split 'test'; it has train, validation"):
        show(data, split="test")
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        show(data, num_frames=0)


def test_large_masks_are_drawn_smaller_without_mixing_classes():
    mask = np.zeros((900, 1700), np.uint8)
    mask[:, 850:], mask[:100] = 2, 255
    rows = {"image": [Image.new("RGB", (1700, 900))], "mask": [mask], "video": ["12"], "frame": [3]}
    dataset = Dataset.from_dict({"video": ["12"]})
    dataset = dataset.with_transform(lambda batch: {key: rows[key] for key in rows} if len(batch["video"]) else batch)
    colors = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    data = SurgicalData("big", "semantic-segmentation", ("background", "one", "two"), colors, {"train": dataset})
    figure = show(data)
    assert figure.axes[1].images[0].get_array().shape == (300, 567, 3)
    assert figure.axes[0].get_title("left") == "video 12, frame 3"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "0  background",
        "2  two",
        "no class (ignored)",
    ]


def test_only_present_classes_are_written_if_there_are_many():
    labels = tuple(f"class {i}" for i in range(100))
    targets = [[float(i in present) for i in range(100)] for present in ((), (3, 97))]
    texts = _texts(show(_classification(labels, targets, "multi_label_classification")))
    assert [text.replace("\u00a0", " ") for text in texts if "class" in text] == [
        "no class",
        "class 3: 1  class 97: 1",
    ]


def test_single_label_frames():
    data = _classification(("cut", "clip", "clean"), [2, 0, 1, 2, 2], "single_label_classification")
    figure = show(data)
    assert figure.texts[0].get_text() == "cases, train: 5 of 5 frames"
    for axes, name, i in zip(figure.axes, ("clean", "cut", "clip", "clean", "clean"), (2, 0, 1, 2, 2), strict=True):
        square, text = axes.texts
        assert text.get_text() == name
        assert to_rgb(square.get_color()) == pytest.approx(np.divide(data.colors[i], 255))
    assert "a, frame 0" in _texts(figure)


def test_multi_label_frames():
    targets = [[0.0, 1 / 3, 1.0], [2 / 3, 0.0, 0.0]]
    data = _classification(("C1 two", "C2", "C3"), targets, "multi_label_classification")
    first, second = (axes.texts[0].get_text().replace("\u00a0", " ") for axes in show(data).axes)
    assert first.split() == ["C1", "two:", "0", "C2:", "0.33", "C3:", "1"]
    assert second.split() == ["C1", "two:", "0.67", "C2:", "0", "C3:", "0"]


def test_many_labels_stay_within_the_picture():
    names = tuple(f"structure number {i}" for i in range(9))
    data = _classification(names, [[0.25] * 9] * 4, "multi_label_classification")
    figure = show(data)
    figure.draw_without_rendering()
    boxes = [axes.texts[0].get_window_extent() for axes in figure.axes]
    pictures = [axes.get_window_extent() for axes in figure.axes]
    for box, picture in zip(boxes, pictures, strict=True):
        assert box.x1 <= picture.x1 + 5
        assert box.y0 >= 0


def test_nothing_overlaps():
    data = _classification(("cut", "clip"), [0, 1, 0, 1, 0, 1, 0], "single_label_classification", videos="aabbccd")
    figure = show(data)
    figure.draw_without_rendering()
    top, bottom = figure.axes[0], figure.axes[4]
    assert top.texts[1].get_window_extent().y0 > bottom._left_title.get_window_extent().y1
    assert figure.texts[0].get_window_extent().y0 > top._left_title.get_window_extent().y1
