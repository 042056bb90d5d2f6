import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from surgenet_hf.figures import precision_recall_figure


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
        assert curve.get_drawstyle() == "steps-pre"  # the area below the curve is the average precision
        precision, recall, _ = precision_recall_curve(positive, scores[known, i])
        np.testing.assert_allclose(curve.get_xdata()[::-1], recall)
        np.testing.assert_allclose(curve.get_ydata()[::-1], precision)
        assert line.get_ydata()[0] == pytest.approx(positive.mean())
        assert [text.get_text() for text in figure.axes[i].texts] == [f"prevalence {positive.mean():.2f}"]
    assert figure.axes[2].get_title() == "C3\nAP undefined"
    assert not figure.axes[2].get_lines()


@pytest.mark.parametrize(
    ("scores", "recall", "precision", "average"),
    [
        ([0.9, 0.8, 0.5, 0.1], [0, 0.5, 0.5, 1, 1], [1, 1, 1 / 2, 2 / 3, 1 / 2], "0.833"),
        ([0.5, 0.5, 0.5, 0.1], [0, 1, 1], [1, 2 / 3, 1 / 2], "0.667"),  # frames with equal scores share a threshold
    ],
)
def test_curve_by_hand(scores, recall, precision, average):
    """Test the curve of alternating positives and negatives, from the highest threshold to the lowest."""
    figure = precision_recall_figure(np.array([[1], [0], [1], [0]]), np.array(scores)[:, None], ["C1"])
    curve = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(curve.get_xdata(), recall)
    np.testing.assert_allclose(curve.get_ydata(), precision)
    assert figure.axes[0].get_title() == f"C1\nAP {average}"
    # each step has the height of its right point, so the area is the average precision
    assert np.sum(np.diff(curve.get_xdata()) * curve.get_ydata()[1:]) == pytest.approx(float(average), abs=1e-3)
