import numpy as np
import pytest

from surgenet_hf.figures import web

LABELS = ("background", "liver", "<script>alert(1)</script>")
COLORS = ((0, 0, 0), (255, 100, 0), (0, 100, 255))
FRAME = np.full((120, 160, 3), 100, np.uint8)


def test_overlay():
    class_map = np.zeros((120, 160), np.uint8)
    class_map[20:100, 40:120] = 1
    picture = web.overlay_picture(FRAME, class_map, LABELS, COLORS)
    assert (picture.shape, picture.dtype) == (FRAME.shape, np.uint8)
    np.testing.assert_array_equal(picture[:15, :30], FRAME[:15, :30])  # background is not painted
    assert picture[30, 50, 0] > 130 > 110 > picture[30, 50, 2]
    inside = picture[40:80, 60:100].reshape(-1, 3)
    assert (inside.min(1) > 240).any()  # the id is white with a black outline
    assert (inside.max(1) < 15).any()


def test_heat():
    values = np.zeros((3, 4))
    values[0, 3] = 1
    picture = web.heat_picture(FRAME, values, point=(0.25, 0.5))
    assert picture.shape == FRAME.shape
    bright = picture.astype(int).sum(-1)
    assert np.unravel_index(bright[:50].argmax(), (50, 160))[1] > 110  # the corner whose value is 1
    ring = picture[45:76, 25:56].reshape(-1, 3)
    assert (ring.min(1) > 240).any()
    assert (ring.max(1) < 15).any()
    assert (web.heat_picture(FRAME, values)[45:76, 25:56].min(-1) < 200).all()


def test_enlarge():
    picture = web.enlarge(np.array([[[0, 0.5, 1.0]]]), (7, 5))
    assert picture.shape == (5, 7, 3)
    assert picture[2, 3].tolist() == [0, 128, 255]


def test_phase_picture_grows():
    short = web.phase_picture(FRAME, np.array([0, 0]), ("cut", "sew"), 8)
    full = web.phase_picture(FRAME, np.array([0] * 4 + [1] * 4), ("cut", "sew"), 8)
    assert short.shape == full.shape
    assert short.shape[0] > 120
    lowest = short[-2]
    assert lowest[10].tolist() == [0, 114, 178]  # the first color of the palette
    assert lowest[100].tolist() == [24, 24, 27]
    assert full[-2, 150].tolist() == [213, 94, 0]
    np.testing.assert_array_equal(short[40:80], FRAME[:40])


def test_phase_picture_of_more_frames_than_the_header_said():
    assert web.phase_picture(FRAME, np.zeros(20, int), ("cut",), 8).shape[1] == 160


def test_long_names_end_before_the_edge():
    """Test that long names are cut with an ellipsis and that a line break in a name raises no error."""
    pictures = [
        web.phase_picture(FRAME, np.array([0]), (name,), 8) for name in ("cut", "W" * 500, "dissection of\nCalot")
    ]
    short, long, broken = (picture[:16].max(-1) > 100 for picture in pictures)
    assert short.any()
    assert not long[:, -4:].any()
    assert long[:, -30:].any()  # the text uses the available width
    assert broken.sum() > short.sum()


def test_legend():
    html = web.legend_html(LABELS, COLORS, [0.2496, 0.75, 0.0004], "5 < 6")
    places = [html.index(part) for part in (">liver<", ">background<", "&lt;script&gt;")]
    assert places == sorted(places)  # largest first
    assert "<script>" not in html
    assert "75.0&nbsp;%" in html
    assert "&lt;&nbsp;0.1&nbsp;%" in html
    assert "5 &lt; 6" in html
    assert "rgb(255, 100, 0)" in html
    assert "liver" not in web.legend_html(LABELS, COLORS, [1, 0, 0])


def test_bars():
    html = web.bars_html(LABELS, [0.125, 1, 0], notes=["a", "b", "<i>"])
    assert "width:12.5%" in html
    assert "12.5&nbsp;%" in html
    assert "<script>" not in html
    assert "<i>" not in html
    with pytest.raises(ValueError, match="zip"):
        web.bars_html(LABELS, [1])


def test_ribbon():
    html = web.ribbon_html(np.array([0, 0, 2, 0]), LABELS, 8, seconds_per_frame=30)
    assert html.count("width:25.000%") == 1
    assert html.count("width:12.500%") == 2
    assert "1 background, 0:00 to 1:00" in html
    assert "1:30" in html  # the duration of all three frames
    assert "<script>" not in html
    assert "liver" not in html
    assert "width:100" not in web.ribbon_html(np.array([], int), LABELS, 8)
