import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from surgenet_hf.figures import (
    bar_figure,
    blob_figure,
    phase_figure,
    precision_recall_figure,
    radar_figure,
    save_both,
    scatter_figure,
)
from surgenet_hf.figures.style import COLORS, DASHES, HATCHES, MARKERS

MODELS = ("XL", "Public", "ImageNet")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_radar_has_rank_1_outermost_and_tells_models_apart_without_color():
    ranks = np.array([[1, 1, 2.5, 1], [2, 3, 1, 2], [3, 2, 2.5, np.nan]])
    figure = radar_figure(ranks, MODELS, ["a\nDice", "a\nASSD", "b\nmAP", "c\nF1"], "Ranks")
    (axes,) = figure.axes
    assert axes.get_rmax() == 3
    lines = axes.get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), [3, 3, 1.5, 3, 3])  # the polygon is closed
    np.testing.assert_array_equal(lines[2].get_ydata(), [1, 2, 1.5, np.nan, 1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a\nDice", "a\nASSD", "b\nmAP", "c\nF1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(MODELS)
    for looks in zip(*((line.get_marker(), line.get_color(), str(line._dash_pattern)) for line in lines), strict=True):
        assert len(set(looks)) == 3
    # the ring labeled 1 is the outer one
    (first,) = [text for text in axes.texts if text.get_text() == "1"]
    assert first.get_position()[1] == 3


def test_blobs_have_the_area_of_their_share():
    ranks = {"XL": np.array([[1, 1, 1, 2], [1, 1, 1, np.nan]]), "Public": np.array([2.0] * 6 + [1.0] * 2)}
    (axes,) = blob_figure(ranks, "Title").axes
    first, second = axes.collections
    np.testing.assert_array_equal(first.get_offsets(), [[0, 1], [0, 2]])
    assert first.get_sizes()[0] / first.get_sizes()[1] == pytest.approx(6)
    assert second.get_sizes()[1] / first.get_sizes()[0] == pytest.approx((6 / 8) / (6 / 7))
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [tuple(map(float, (line.get_xdata()[0], line.get_ydata()[0]))) for line in crosses] == [(0, 1), (1, 2)]
    assert sorted(texts(axes)) == ["14%", "25%", "75%", "86%"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["XL", "Public"]
    bottom, top = axes.get_ylim()
    assert bottom > top  # rank 1 is at the top


def test_the_largest_blob_fits_its_cell():
    for count in (2, 5, 12):
        figure = blob_figure({f"model {i}": np.full(10, i + 1.0) for i in range(count)})
        figure.draw_without_rendering()
        (axes,) = figure.axes
        cell = np.diff(axes.transData.transform([(0, 1), (1, 2)]), axis=0)[0] * 72 / figure.dpi
        assert max(axes.collections[0].get_sizes()) ** 0.5 < 1.05 * min(abs(cell))


LONG = "Ranks over columns and resamples of the videos, with a title that is wider than the figure itself"
NAMES = ("SurgeNetXL-CAFormer-S18", "SurgeNet-Public-ConvNeXtV2", "ImageNet1k-CAFormer-S18")
FIGURES = {
    "two blobs": lambda: blob_figure(dict.fromkeys(NAMES[:2], np.ones(3)), LONG),
    "eight blobs": lambda: blob_figure({f"{NAMES[i % 3]}-{i}": np.full(3, i + 1.0) for i in range(8)}, LONG),
    "radar": lambda: radar_figure(np.ones((3, 4)), NAMES, ["endoscapes-cvs, validation\nbalanced accuracy"] * 4, LONG),
    "small radar": lambda: radar_figure(np.ones((3, 4)), "abc", ["endoscapes, validation\nmetric"] * 4, "Ranks"),
    "bars": lambda: bar_figure({NAMES[0]: [1.0]}, ["cystic artery"], {NAMES[0]: [(0.9, 1)]}, "video dice", title=LONG),
    "curve": lambda: precision_recall_figure(
        np.array([[1], [0]]), np.array([[0.3], [0.2]]), ["C1"], title="endoscapes-cvs, validation, one criterion"
    ),
    "points": lambda: scatter_figure(np.eye(20)[:, :2], ["a"] * 10 + ["b"] * 10, LONG),
    "phases": lambda: phase_figure({"v1": np.array([0, 1])}, {"v1": np.array([0, 1])}, ["a", "b"], 1, title=LONG),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    left, bottom, right, top = figure.get_tightbbox().extents  # inches
    width, height = figure.get_size_inches()
    assert min(left, bottom, width - right, height - top) >= 0


def test_blobs_say_what_they_are_shares_of():
    (axes,) = blob_figure({"XL": np.ones(3)}).axes
    assert axes.get_title() == "area: share of columns and resamples\n×: median    line: central 95 %"


def test_bars_show_values_intervals_and_what_is_not_there():
    values = {"XL": [0.5, np.nan, 0.25], "Public": [0.1, 0.2, 0.9]}
    (axes,) = bar_figure(values, ["liver", "fat", "tool"], {"XL": [(0.4, 0.6), (np.nan, np.nan), (0.2, 0.3)]}).axes
    widths = [round(bar.get_width(), 3) for bar in axes.patches]
    assert widths == [0.5, 0, 0.25, 0.1, 0.2, 0.9]
    assert texts(axes) == ["0.50", "none", "0.25", "0.10", "0.20", "0.90"]
    spans = {tuple(line.get_xdata()) for line in axes.get_lines()}
    assert spans == {(0.4, 0.6), (0.2, 0.3)}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["liver", "fat", "tool"]
    assert axes.yaxis_inverted()
    assert len({bar.get_hatch() for bar in axes.patches}) == 2
    assert len({to_hex(bar.get_facecolor()) for bar in axes.patches}) == 2


def test_bars_name_the_interval_only_if_one_is_drawn():
    for bounds, label in (((0.4, 0.6), "F1, with 95 % interval"), ((np.nan, np.nan), "F1"), (None, "F1")):
        (axes,) = bar_figure({"XL": [0.5]}, ["liver"], bounds and {"XL": [bounds]}, "F1").axes
        assert axes.get_xlabel() == label


def test_both_formats_are_written(tmp_path):
    figure = bar_figure({"XL": [0.5]}, ["liver"])
    png, pdf = save_both(figure, tmp_path / "new" / "bars.v1", dpi=100)
    assert (png.name, pdf.name) == ("bars.v1.png", "bars.v1.pdf")
    assert Image.open(png).width == 720
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"CreationDate" not in content
    assert b"/Type3" not in content  # journals refuse type 3 fonts
    assert len(content) > 3000
    assert len(list(png.parent.iterdir())) == 2


def test_looks_do_not_run_out_together():
    for looks in (MARKERS, DASHES, HATCHES, COLORS):
        assert len(set(looks)) == len(looks)
    pairs = [(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i in range(80)]
    assert len(set(pairs)) == 80
