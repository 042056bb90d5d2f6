import numpy as np
import pytest

from surgenet_hf.figures import save_figure
from surgenet_hf.figures.pretraining import PANELS, pretraining_figure


def panels(figure) -> dict:
    """Return the axes that contain lines, by title."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_lines()}


@pytest.mark.slow
def test_all_figures_of_a_run_are_drawn(tmp_path):
    keys = [key for panel in PANELS for key in panel.curves]
    rng = np.random.default_rng(0)
    history = [{"step": step, "epoch": 0, **dict(zip(keys, rng.random(len(keys)), strict=True))} for step in range(99)]
    figure = pretraining_figure(history, title="run")
    assert list(panels(figure)) == [panel.title for panel in PANELS]
    assert figure.get_suptitle() == "run"
    for panel in PANELS:
        drawn = {line.get_label(): line for line in panels(figure)[panel.title].get_lines()}
        assert set(panel.curves.values()) <= set(drawn)
        if not panel.noisy:
            key, name = next(iter(panel.curves.items()))
            np.testing.assert_array_equal(drawn[name].get_ydata(), [row[key] for row in history])
    save_figure(figure, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_noisy_curve_has_its_running_mean():
    values = 3 + np.random.default_rng(0).normal(0, 1, 1000)
    figure = pretraining_figure([{"step": step, "loss": value} for step, value in enumerate(values)])
    raw, mean = panels(figure)["loss (nats)"].get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), values)
    assert mean.get_ydata()[500] == pytest.approx(values[480:520].mean(), abs=0.05)
    # values at the ends are not averaged with zeros
    assert mean.get_ydata()[0] == pytest.approx(values[:20].mean(), abs=0.05)


def test_missing_values_are_left_out():
    history = [
        {"step": 0, "epoch": 0, "loss": 7.0, "feature_std": None},
        {"step": 10, "loss": float("nan")},
        {"step": 20, "loss": 5.0},
        {"epoch": 0, "knn_accuracy": 0.5},  # no step
        {"step": 10, "loss": 6.0},  # a resumed run logs steps 10 and 20 again
        {"step": 20, "loss": 5.5, "knn_mean_average_precision": 0.5, "knn_chance": 0.2},
    ]
    drawn = panels(pretraining_figure(history))
    assert list(drawn) == ["loss (nats)", "k-NN, validation"]
    (loss,) = drawn["loss (nats)"].get_lines()
    assert (loss.get_xdata().tolist(), loss.get_ydata().tolist()) == ([0, 10, 20], [7, 6, 5.5])
    legend = drawn["k-NN, validation"].get_legend().get_texts()
    assert [text.get_text() for text in legend] == ["mean average precision", "chance"]
    assert drawn["loss (nats)"].get_legend() is None


@pytest.mark.parametrize("history", [[], [{"step": 1}, {"loss": 2.0}, {"step": 2, "loss": None}]])
def test_nothing_to_draw_is_refused(history):
    with pytest.raises(ValueError, match=f"cannot draw a history of {len(history)} rows"):
        pretraining_figure(history)
