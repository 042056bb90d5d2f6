import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from surgenet_hf.figures import precision_recall_figure
from surgenet_hf.figures.curves import precision_recall


def test_curve_and_average_precision_are_scikit_learns():
    rng = np.random.default_rng(0)
    targets = rng.choice([0, 1 / 3, 2 / 3, 1], (200, 3))
    scores = (targets + rng.normal(0, 1, (200, 3))).round(1)  # with ties
    targets[:, 2] = 0
    targets[:5, 0] = np.nan
    figure = precision_recall_figure(targets, scores, ["C1", "C2", "C3"])
    assert len(figure.axes) == 3
    for i in (0, 1):
        known = ~np.isnan(targets[:, i])
        positive = targets[known, i] >= 0.5
        expected = average_precision_score(positive, scores[known, i])
        assert figure.axes[i].get_title() == f"C{i + 1}\nAP {expected:.3f}"
        curve, line = figure.axes[i].get_lines()
        assert curve.get_drawstyle() == "steps-pre"  # the area under it is the average precision
        precision, recall, _ = precision_recall_curve(positive, scores[known, i])
        np.testing.assert_allclose(curve.get_xdata()[:0:-1], recall[:-1])
        np.testing.assert_allclose(curve.get_ydata()[:0:-1], precision[:-1])
        assert line.get_ydata()[0] == pytest.approx(positive.mean())
        assert [text.get_text() for text in figure.axes[i].texts] == [f"prevalence {positive.mean():.2f}"]
    assert figure.axes[2].get_title() == "C3\nAP undefined"
    assert not figure.axes[2].get_lines()


def test_frames_of_equal_score_come_together():
    recall, precision = precision_recall(np.array([True, False, True, False]), np.array([0.5, 0.5, 0.5, 0.1]))
    np.testing.assert_allclose(recall, [1, 1])
    np.testing.assert_allclose(precision, [2 / 3, 1 / 2])


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        precision_recall_figure(np.ones((4, 2)), np.ones((4, 2)), ["C1"])
