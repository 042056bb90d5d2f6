"""Tests of the tabs' functions, called directly with models that they must refuse."""

import math
import shutil

import pytest
import torch
from transformers import Dinov2Config, TimmWrapperConfig

from surgenet_hf.heads import build_classifier, build_segmenter
from surgenet_hf.image_processing import build_image_processor
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


def test_the_owners_models_of_other_families(tmp_path, monkeypatch):
    """Test that the demo shows the predictions of an EoMT and of a classifier of timm, and their descriptions."""
    labels = {"id2label": {0: "other", 1: "liver"}, "label2id": {"other": 0, "liver": 1}}
    dinov2 = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16, image_size=64)
    networks = {
        "eomt": build_segmenter(dinov2, head="eomt", image_size=64, **labels),
        "timm": build_classifier(TimmWrapperConfig(architecture="test_resnet"), **labels),
    }
    for name, model in networks.items():
        model.save_pretrained(tmp_path / name / "model")
        build_image_processor("imagenet", 64).save_pretrained(tmp_path / name / "model")
    tabs = tabs_module.Tabs(store_module.ModelStore([str(tmp_path / name) for name in networks]))
    assert tabs.store.choices("segmentation")[0] == ("eomt", "eomt")
    assert tabs.model_info("timm")["tasks"] == ["classification"]
    assert "test_resnet" in tabs.model_info("timm")["note"]
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture = {"path": shutil.copy(DEMO / "examples" / "frame_1.jpg", tmp_path)}
    _, areas, _, _ = tabs.segment(picture, "eomt", silent)
    assert sum(area["percent"] for area in areas) == pytest.approx(100, abs=0.01)
    scores, _ = tabs.classify(picture, "timm", silent)
    assert scores.keys() == {"other", "liver"}
    with pytest.raises(Refused, match="eomt is a model for segmentation, not for classification"):
        tabs.classify(picture, "eomt", silent)
