"""Tests of the teacher's folder, which always loads with the Auto classes and records its origin."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from surgenet_hf import SurgeNetModel
from surgenet_hf.checkpoints.catalog import RANDOM_WEIGHTS, leakage_note
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.pretraining import export
from surgenet_hf.pretraining.arguments import DinoConfig
from surgenet_hf.pretraining.dino.method import DinoModel
from surgenet_hf.pretraining.export import export_teacher
from surgenet_hf.pretraining.plan import describe_pretraining
from surgenet_hf.publishing.cards import pretrained_card

FILES = ("config.json", "preprocessor_config.json", "README.md", "model.safetensors")
HEAD = {"out_dim": 4, "hidden_dim": 8, "bottleneck_dim": 4}


@pytest.fixture
def build(tiny_config):
    def build(backbone="caformer_s18", seed=0) -> DinoModel:
        torch.manual_seed(seed)
        return DinoModel(SurgeNetModel(tiny_config(backbone, drop_path_rate=0.2)), DinoConfig(**HEAD))

    return build


def write(model: DinoModel, folder, epoch=1, base=None, **card):
    pretraining = describe_pretraining(base or {"name": "SurgeNetXL"}, ["mine"], epoch, frames=100)
    export_teacher(
        model.teacher.backbone,
        folder,
        pretraining,
        build_image_processor(image_size=64),
        write_card=pretrained_card,
        **card,
    )


def embedding(model, size=64) -> torch.Tensor:
    pixel_values = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(pixel_values).pooler_output


def test_loads_with_the_auto_classes(build, backbone, tmp_path):
    model = build(backbone)
    with torch.no_grad():
        for parameter in model.teacher.parameters():  # distinguish the teacher's weights from the student's
            parameter.add_(0.1)
    folder = tmp_path / "run" / "model"
    write(model, folder, recipe={"lr": 5e-4}, knn={"data": "labeled", "knn_accuracy": 0.5})
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert model.teacher.backbone.training

    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is SurgeNetModel
    torch.testing.assert_close(embedding(loaded), embedding(model.teacher.backbone), rtol=0, atol=0)
    assert loaded.config.drop_path_rate == 0
    assert loaded.config.pretraining["recipe"] == {"lr": 5e-4}
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.image_mean[0] == 0.46888983
    assert processor.size["height"] == 64
    card = (folder / "README.md").read_text()
    for expected in (
        "# SurgeNetXL, continued on mine",
        "1 epoch on 100 frames",
        "| lr | 0.0005 |",
        "| data | labeled |",
    ):
        assert expected in card
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_any_mixture_of_two_epochs_loads(build, tmp_path, monkeypatch):
    """Test that a folder with files of two epochs loads.

    A reader between two replacements gets a model with either the old or the new weights.
    """
    old, new, folder = build(seed=0), build(seed=1), tmp_path / "model"
    write(old, folder, epoch=1)
    expected = [embedding(model.teacher.backbone) for model in (old, new)]
    seen = []

    def look():
        loaded = AutoModel.from_pretrained(folder)
        AutoImageProcessor.from_pretrained(folder)
        assert loaded.config.pretraining["epoch"] in (1, 2)
        found = embedding(loaded)
        seen.append([torch.equal(found, one) for one in expected].index(True))

    replace = os.replace

    def replace_and_look(source, target):
        replace(source, target)
        look()

    monkeypatch.setattr(export.os, "replace", replace_and_look)
    write(new, folder, epoch=2)
    assert seen == [0, 0, 0, 1]


def test_a_first_export_has_its_weights_last(build, tmp_path, monkeypatch):
    there = []
    replace = os.replace
    monkeypatch.setattr(
        export.os,
        "replace",
        lambda a, b: (there.append((tmp_path / "model/model.safetensors").exists()), replace(a, b)),
    )
    write(build(), tmp_path / "model")
    assert there == [False] * len(FILES)
    assert (tmp_path / "model/model.safetensors").exists()


def test_a_full_disk_leaves_the_old_model(build, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    write(build(seed=0), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SurgeNetModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        write(build(seed=1), folder, epoch=2)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_after_a_kill(build, tmp_path):
    """Test that partial files of a killed run are not used and are deleted."""
    folder = tmp_path / "model"
    write(build(), folder)
    shutil.copytree(folder, tmp_path / ".model.partial" / "model")
    (tmp_path / ".model.partial" / "model" / "stale").touch()
    write(build(seed=1), folder, epoch=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name for path in folder.iterdir()} == set(FILES)
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(weights["layernorm.weight"], build(seed=1).teacher.backbone.layernorm.weight)
    assert json.loads((folder / "config.json").read_text())["pretraining"]["epoch"] == 2


@pytest.mark.parametrize("base", ["SurgeNetXL", "SurgeNet-RAMIE", "ImageNet1k", "unknown", RANDOM_WEIGHTS, None])
@pytest.mark.parametrize("data", ["cholec80-phase", "cholecseg8k", "endoscapes", "dsad", "autolaparo", "folder"])
def test_leakage_is_never_cleaner_than_before(base, data):
    """Test that further pretraining never makes a leakage note cleaner.

    Known facts on the start weights remain. What the added data contains is unknown, never clean.
    """
    start = None if base is None else {"name": base}
    before = leakage_note(base, data)
    for _ in range(2):
        start = describe_pretraining(start, ["mine"], 1, 10)
        after = leakage_note(start["name"], data)
        assert "unknown whether its pretraining on mine" in after
        assert before is None or before in after


def test_description():
    scratch = describe_pretraining({"name": RANDOM_WEIGHTS, "normalization": "surgenet"}, ["a", "b"], 3, 99)
    assert scratch == {
        "name": "DINO on a + b",
        "method": "DINO",
        "base": None,
        "data": ["a", "b"],
        "epoch": 3,
        "frames": 99,
        "normalization": "surgenet",
    }
    start = {"name": "SurgeNetXL", "source_sha256": "0" * 64}
    continued = describe_pretraining(start, ["a"], 1, 9, "imagenet")
    assert continued["name"] == "SurgeNetXL, continued on a"
    assert continued["base"] == start
    assert continued["normalization"] == "imagenet"
    assert describe_pretraining(None, ["a"], 1, 9)["name"] == "unknown, continued on a"


def test_weights_that_are_not_finite_are_not_exported(build, tmp_path):
    model = build()
    next(model.teacher.backbone.parameters()).data[0] = torch.inf
    with pytest.raises(ValueError, match=r"the teacher: 1 of .* tensors contain NaN or infinite values"):
        write(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
