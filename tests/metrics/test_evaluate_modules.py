"""Tests that the modules for the `evaluate` library give the results of the core metrics."""

import sys

import numpy as np
import pytest

from surgenet_hf.metrics import EVALUATE_MODULES, MultiLabelMetric, PhaseMetric, SegmentationMetric

evaluate = pytest.importorskip("evaluate")
VIDEOS = ["a", "b", "a"]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads a module by name, without network or traces in the user's caches."""
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return lambda name: evaluate.load(str(EVALUATE_MODULES / name), cache_dir=str(tmp_path / "cache"))


def test_segmentation(load):
    rng = np.random.default_rng(0)
    predictions, references = ([rng.integers(0, 3, shape) for shape in ((4, 5), (6, 3), (4, 5))] for _ in range(2))
    references[0][0] = 255
    core = SegmentationMetric(3)
    for row in zip(predictions, references, VIDEOS, strict=True):
        core.add(*row)
    face = load("surgical_segmentation")
    face.add_batch(predictions=predictions[:2], references=references[:2], videos=VIDEOS[:2])
    face.add(prediction=predictions[2], reference=references[2], videos=VIDEOS[2])
    np.testing.assert_equal(face.compute(num_labels=3), core.compute())


def test_phase(load):
    rng = np.random.default_rng(0)
    predictions, references = ([rng.integers(0, 3, frames) for frames in (30, 1)] for _ in range(2))
    core = PhaseMetric(3, relaxed_seconds=2)
    for row in zip(predictions, references, "ab", strict=True):
        core.add(*row)
    face = load("surgical_phase")
    found = face.compute(
        predictions=predictions, references=references, videos=["a", "b"], num_labels=3, relaxed_seconds=2
    )
    np.testing.assert_equal(found, core.compute())


def test_multilabel(load):
    scores, targets = [[0.9, 0.2], [0.4, 0.6], [0.7, 0.1]], [[1, 0], [1 / 3, 2 / 3], [0, 0]]
    core = MultiLabelMetric(2)
    core.add(scores, targets, VIDEOS)
    face = load("surgical_multilabel")
    found = face.compute(predictions=scores, references=targets, videos=VIDEOS, num_labels=2)
    np.testing.assert_equal(found, core.compute())
