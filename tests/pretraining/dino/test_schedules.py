import numpy as np
import pytest

from surgenet_hf.pretraining.arguments import DinoConfig
from surgenet_hf.pretraining.dino.method import build_schedules
from surgenet_hf.pretraining.dino.schedules import cosine_schedule, scaled_learning_rate, teacher_temperatures


def test_cosine_by_hand():
    quarter = np.cos(np.pi / 4)
    np.testing.assert_allclose(cosine_schedule(1, 0, 4), [1, (1 + quarter) / 2, 0.5, (1 - quarter) / 2])
    # the peak occurs twice: at the end of the linear warm-up and at the start of the cosine
    np.testing.assert_allclose(cosine_schedule(2, 1, 5, warmup_steps=3), [0, 1, 2, 2, 1.5])
    np.testing.assert_allclose(cosine_schedule(2, 1, 3, warmup_steps=1), [0, 2, 1.5])
    np.testing.assert_allclose(cosine_schedule(2, 1, 2, warmup_steps=2), [0, 2])
    with pytest.raises(ValueError, match="warm-up of 6 steps does not fit into 5"):
        cosine_schedule(2, 1, 5, warmup_steps=6)


def test_teacher_temperatures():
    np.testing.assert_allclose(teacher_temperatures(0.04, 0.07, 5, 4), [0.04, 0.05, 0.06, 0.07, 0.07])
    np.testing.assert_allclose(teacher_temperatures(0.04, 0.07, 2, 0), [0.07, 0.07])
    with pytest.raises(ValueError, match="3 epochs does not fit into 2"):
        teacher_temperatures(0.04, 0.07, 2, 3)


def test_schedules_of_a_run():
    config = DinoConfig(epochs=3, warmup_epochs=1, teacher_temp=0.06, warmup_teacher_temp_epochs=2)
    schedules = build_schedules(config, steps_per_epoch=2, total_batch_size=544)
    peak = 5e-4 * 544 / 256
    assert scaled_learning_rate(5e-4, 544) == pytest.approx(peak)
    np.testing.assert_allclose(schedules.lr[:3], [0, peak, peak])
    np.testing.assert_allclose(schedules.lr[4], (peak + 1e-6) / 2)
    np.testing.assert_allclose(schedules.weight_decay[[0, 3]], [0.04, 0.22])
    np.testing.assert_allclose(schedules.momentum[[0, 3]], [0.996, 0.998])
    np.testing.assert_allclose(schedules.teacher_temp, [0.04, 0.04, 0.06, 0.06, 0.06, 0.06])
    assert schedules.freeze_last_layer.tolist() == [True, True, False, False, False, False]
    assert schedules.at(3).momentum == pytest.approx(0.998)
    assert schedules.at(1).freeze_last_layer is True
