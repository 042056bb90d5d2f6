import numpy as np

from surgenet_hf.figures import phase_figure

LABELS = ["Preparation", "Dissection", "Clipping"]


def test_truth_lies_over_the_prediction_in_minutes():
    truth = np.repeat([0, 1, -1], [60, 120, 60])
    prediction = np.repeat([0, 2, 1], [120, 60, 60])
    figure = phase_figure({"v1": truth, "v2": truth[:100]}, {"v1": prediction, "v2": truth[:100]}, LABELS, 2, "Title")
    (axes,) = figure.axes
    bars = [path.get_extents() for collection in axes.collections for path in collection.get_paths()]
    assert len(bars) == 3 + 3 + 2 + 2
    assert [(bar.x0, bar.x1) for bar in bars[:6]] == [(0, 2), (2, 6), (6, 8), (0, 4), (4, 6), (6, 8)]
    assert all(truth_bar.y1 <= bar.y0 for truth_bar in bars[:3] for bar in bars[3:6])
    assert axes.yaxis_inverted()  # lower values are at the top
    assert axes.get_xlim() == (0, 8)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["v1", "v2"]
    written = [text.get_text() for text in axes.texts]
    # phase numbers, and the share of correct frames among those with labels: 60 of 180
    assert written == ["1", "2", "1", "3", "2", "33%", "1", "2", "1", "2", "100%", "correct\nframes"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["1  Preparation", "2  Dissection", "3  Clipping", "no phase"]
    hatches = {patch.get_hatch() for patch in figure.legends[0].get_patches()[:3]}
    assert len(hatches) == 3


def test_short_segments_are_drawn_without_a_number():
    truth = np.repeat([0, 1, 0], [500, 5, 500])
    (axes,) = phase_figure({"v": truth}, {"v": np.zeros(1005, int)}, LABELS).axes
    assert len(axes.collections) == 4
    assert [text.get_text() for text in axes.texts[:-2]] == ["1", "1", "1"]
