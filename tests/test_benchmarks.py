"""Tests of benchmark scripts whose results are documented."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from surgenet_hf.evaluation.evaluate import measure, write_results
from surgenet_hf.metrics import SegmentationMetric

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("background_id", [0, None])
def test_every_convention_follows_from_the_results_file(tmp_path, background_id):
    rng = np.random.default_rng(0)
    metric = SegmentationMetric(4, background_id=background_id)
    for index in range(18):
        reference = rng.integers(0, rng.integers(1, 5), (12, 15))
        prediction = np.where(rng.random((12, 15)) < 0.7, reference, rng.integers(0, 4, (12, 15)))
        metric.add(prediction, reference, f"v{index % 5}")
    labels = ("background", "liver", "tool", "duct")
    measured = measure(metric, labels, "semantic-segmentation", resamples=0)
    write_results(
        {"data": {"labels": labels, "background": None if background_id is None else "background"}, **measured},
        tmp_path / "results.json",
    )
    results = json.loads((tmp_path / "results.json").read_text())
    found = runpy.run_path(str(BENCHMARKS / "recompute_metrics.py"))["recompute"](results)
    assert len(found) == (17 if background_id == 0 else 10)
    for name, value in found.items():
        assert value == pytest.approx(results["metrics"][name], abs=1e-9), name
