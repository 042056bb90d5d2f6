"""Tests of the tabs' functions, called directly with models that they must refuse."""

import math
import shutil

import pytest
import torch

from tests.spaces.running import DEMO

import models as store_module  # isort: skip
import tabs as tabs_module  # isort: skip
from media import Refused  # isort: skip


@pytest.fixture
def tabs(models, tmp_path, monkeypatch, name):
    """Return the tabs with the model of that name."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for file in ("frame_1.jpg", "clip_1.mp4"):
        shutil.copy(DEMO / "examples" / file, tmp_path)
    return tabs_module.Tabs(store_module.ModelStore([str(models.backbone.with_name(name))]))


def silent(share, desc=None, unit=None):
    pass


@pytest.mark.parametrize(
    ("name", "task"), [("organs", "segment"), ("steps", "classify"), ("organs", "features"), ("organs", "similarity")]
)
def test_no_answer_is_made_of_nan(tabs, tmp_path, name, task):
    """Test that NaN outputs raise an error.

    Finite weights can give values that are not finite; NaN in the first convolution simulates this.
    """
    loaded = tabs.store.get(name, ("segmentation", "classification"), silent)
    frame = {"path": str(tmp_path / "frame_1.jpg")}
    answer = getattr(tabs, task)
    arguments = {"image_a": frame} if task in ("features", "similarity") else {"image": frame}
    answer(**arguments, model=name, progress=silent)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(math.nan)
    with pytest.raises(Refused, match=f"{name} returned values that are not finite"):
        answer(**arguments, model=name, progress=silent)


@pytest.mark.parametrize("name", ["organs", "steps", "phases"])
def test_no_film_is_made_of_nan(tabs, tmp_path, name):
    loaded = tabs.store.get(name, ("segmentation", "classification", "phases"), silent)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(math.nan)
    with pytest.raises(Refused, match=f"{name} returned values that are not finite"):
        list(tabs.video({"path": str(tmp_path / "clip_1.mp4")}, 1, name, silent))
    assert not list(tmp_path.rglob("result.mp4"))


@pytest.mark.parametrize("name", ["organs"])
def test_a_clip_may_not_take_for_ever(tabs, tmp_path, monkeypatch, name):
    monkeypatch.setattr(tabs_module, "MAX_WORK_SECONDS", 0)
    with pytest.raises(Refused, match=r"longer than the 0 minutes .* Please choose fewer frames"):
        list(tabs.video({"path": str(tmp_path / "clip_1.mp4")}, 1, name, silent))
    assert not list(tmp_path.rglob("result.mp4"))


@pytest.mark.parametrize(
    ("given", "text"), [((3, 12, 30.0), "Frame 3 of 12, 90 s left"), ((1, 601, 1.0), "Frame 1 of 601, 10 min left")]
)
def test_progress(given, text):
    html = tabs_module.progress_html(*given)
    assert f">{text}<" in html
    assert f'<progress value="{given[0]}" max="{given[1]}"' in html
