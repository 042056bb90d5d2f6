import json

import pytest

from surgenet_hf.evaluation.results import SCHEMA, read_results


def content(**metrics):
    data = {"name": "folder", "split": "test", "frames": 3, "videos": ["a", "b"]}
    return {
        "schema": SCHEMA,
        "task": "phase-recognition",
        "model": {"name": "xl"},
        "data": data,
        "metrics": {"accuracy": 0.5, **metrics},
    }


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema": '])
def test_text_that_is_not_json_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        read_results([tmp_path])


def test_numbers_too_large_for_any_metric_are_named(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(content(accuracy=10**400)))
    with pytest.raises(ValueError, match=r"metrics\.accuracy is 1000.*expected a number from 0 to 1"):
        read_results([tmp_path])


def test_a_video_is_named_once(tmp_path):
    twice = content()
    twice["data"]["videos"] = ["a", "a"]
    (tmp_path / "results.json").write_text(json.dumps(twice))
    with pytest.raises(ValueError, match=r"data\.videos contains a video twice"):
        read_results([tmp_path])
