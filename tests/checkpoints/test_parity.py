"""Tests of full-size models against outputs of the original code, through the converter and from_pretrained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from surgenet_hf import SurgeNetBackbone, SurgeNetModel, convert_checkpoint
from surgenet_hf.checkpoints.conversion import save_converted, to_original_state_dict
from surgenet_hf.image_processing import build_image_processor
from tests.goldens import fill

GOLDENS = Path(__file__).parents[1] / "goldens"
MANIFEST = json.loads((GOLDENS / "models_manifest.json").read_text())
MODELS = ["caformer_s18", "caformer_s18_imagenet", "convnextv2_tiny", "pvt_v2_b2"]
SIZES = [(2, 128, 128), (1, 96, 160)]


def original_state_dict(model: str, task: str) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(fill.parameter(f"surgenet/{model}/{task}/{name}", shape))
        for name, shape in MANIFEST[f"{model}/{task}"].items()
    }


def image(batch: int, height: int, width: int) -> torch.Tensor:
    pixels = (fill.uniform(f"surgenet/image/{height}x{width}", (batch, 3, height, width)) - 0.5) * 4
    return torch.from_numpy(pixels.astype(np.float32))


def assert_close(found: torch.Tensor, expected: np.ndarray):
    assert found.shape == expected.shape
    error = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-5, f"{error:.1e} of the largest value"


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS / "models.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_classification_and_features(name, goldens, tmp_path):
    original = original_state_dict(name, "classification")
    torch.save(original, tmp_path / "original.pth")
    converted = convert_checkpoint(tmp_path / "original.pth")
    save_converted(converted, build_image_processor(), tmp_path / "converted")
    model = type(converted).from_pretrained(tmp_path / "converted")
    assert model.config.activation == {"caformer_s18": "relu", "caformer_s18_imagenet": "star_relu"}.get(name)
    base = SurgeNetModel.from_pretrained(tmp_path / "converted")
    backbone = SurgeNetBackbone.from_pretrained(tmp_path / "converted", out_indices=[1, 2, 3, 4])
    for batch, height, width in SIZES:
        key = f"{name}/{height}x{width}"
        with torch.no_grad():
            pixel_values = image(batch, height, width)
            assert_close(model(pixel_values).logits, goldens[f"{key}/logits"])
            assert_close(base(pixel_values).pooler_output, goldens[f"{key}/pooled"])
            maps = backbone(pixel_values).feature_maps
        for stage in (1, 2, 3):
            assert_close(maps[stage - 1][:, ::8, ::2, ::2], goldens[f"{key}/stage{stage}"])
        assert_close(maps[3][:, ::8], goldens[f"{key}/stage4"])

    back = to_original_state_dict(model)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_segmentation(name, goldens, tmp_path):
    original = original_state_dict(name, "segmentation")
    torch.save(original, tmp_path / "original.pth")
    converted = convert_checkpoint(tmp_path / "original.pth")
    save_converted(converted, build_image_processor(), tmp_path / "converted")
    model = type(converted).from_pretrained(tmp_path / "converted")
    assert type(model).__name__ == "SurgeNetForSemanticSegmentation"
    for batch, height, width in SIZES:
        with torch.no_grad():
            logits = model(image(batch, height, width)).logits
        assert logits.shape == (batch, 12, height, width)
        assert_close(logits[:, :, ::4, ::4], goldens[f"{name}/{height}x{width}/segmentation_logits"])

    back = to_original_state_dict(model)
    assert all(torch.equal(back[key], original[key]) for key in back)
    # the original segmentation networks contain the classification norm and head, but never use them
    unused = original.keys() - back.keys()
    assert all(key.split(".", 1)[1].startswith(("norm.", "head.")) for key in unused), unused
