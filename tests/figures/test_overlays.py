import numpy as np
import pytest
from PIL import Image

from surgenet_hf.figures import save_figure, segmentation_figure
from surgenet_hf.figures.overlays import paint

LABELS = ("background", "liver", "tool")
COLORS = ((0, 0, 0), (255, 100, 0), (0, 100, 255))


def example(rows=2, height=40, width=60):
    frames = [np.full((height, width, 3), 100 + row, np.uint8) for row in range(rows)]
    truth = np.zeros((height, width), np.uint8)
    truth[10:30, 10:30] = 1
    truth[:5, :5] = 255
    return frames, [truth] * rows, [np.roll(truth, 3, 0) * (truth != 255) for _ in range(rows)]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_rows_titles_and_a_legend_of_what_occurs():
    frames, truths, predictions = example()
    figure = segmentation_figure(
        [Image.fromarray(frames[0]), frames[1]], truths, predictions, LABELS, COLORS, ["v1, frame 0", "v2"], "Title"
    )
    assert len(figure.axes) == 6
    assert texts(figure) == ["Title", "frame", "reference", "prediction", "v1, frame 0", "v2"]
    assert legend(figure) == ["0  background", "1  liver", "no class (ignored)"]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), frames[0])
    # the figure names every class, since color alone is not enough
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", "1"]


def test_ids_are_written_inside_their_class():
    frames, truths, predictions = example(rows=1, height=400, width=500)
    figure = segmentation_figure(frames, truths, predictions, LABELS, COLORS)
    for text in figure.axes[1].texts:
        x, y = text.get_position()
        assert truths[0][y, x] == int(text.get_text())
    predictions[0][200:204, 200:204] = 2  # a small region is painted and in the legend, but has no id on the image
    figure = segmentation_figure(frames, truths, predictions, LABELS, COLORS)
    assert "2" not in [text.get_text() for text in figure.axes[2].texts]
    assert "2  tool" in legend(figure)


def test_paint_fills_lightly_draws_borders_and_leaves_background():
    frame = np.full((30, 30, 3), 100, np.uint8)
    class_map = np.zeros((30, 30), int)
    class_map[10:20, 10:20] = 1
    class_map[25:, 25:] = 255
    painted = paint(frame, class_map, LABELS, COLORS)
    np.testing.assert_array_equal(painted[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(painted[10, 10], COLORS[1])
    np.testing.assert_array_equal(painted[15, 15], [162, 100, 60])
    assert len(set(painted[28, 28])) == 1
    assert painted[28, 28, 0] > 100


def test_saved_whole_or_not_at_all(tmp_path):
    figure = segmentation_figure(*example(), LABELS, COLORS)
    save_figure(figure, tmp_path / "new" / "picture.png", dpi=50)
    assert Image.open(tmp_path / "new" / "picture.png").width == pytest.approx(540, abs=1)
    save_figure(figure, tmp_path / "new" / "picture.pdf")

    before = (tmp_path / "new" / "picture.png").read_bytes()
    figure.savefig = lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["picture.pdf", "picture.png"]
