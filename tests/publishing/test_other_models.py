"""Publishing of models of other families: own heads with their code, and models of transformers without code."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    SegformerConfig,
)

from surgenet_hf import convert_checkpoint
from surgenet_hf.checkpoints.catalog import RANDOM_WEIGHTS
from surgenet_hf.checkpoints.vit import vit_config
from surgenet_hf.errors import UserError
from surgenet_hf.heads import build_classifier, build_segmenter
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.pretraining.plan import describe_pretraining
from surgenet_hf.publishing.prepare import prepare_finetuned
from surgenet_hf.publishing.upload import publish_finetuned
from surgenet_hf.publishing.vit_cards import LICENSE_FILE
from tests.checkpoints.files import small_vit

DINOV2 = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16, image_size=64)
SEGFORMER = SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16)
LABELS = {"id2label": {0: "other", 1: "liver", 2: "clip/cut"}, "label2id": {"other": 0, "liver": 1, "clip/cut": 2}}
LOAD = """
import sys
sys.modules["surgenet_hf"] = None
import torch, transformers
for task in ("ImageClassification", "SemanticSegmentation", "UniversalSegmentation"):
    folder = f"{sys.argv[1]}/AutoModelFor{task}"
    trust = task != "UniversalSegmentation"
    model, info = getattr(transformers, f"AutoModelFor{task}").from_pretrained(
        folder, trust_remote_code=trust, output_loading_info=True
    )
    assert not any(info.values()), info
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.eval()(pixels)
    torch.save(outputs.get("logits", outputs.get("masks_queries_logits")), f"{folder}/output.pt")
"""


def publish(model, source, folder, pretraining=None):
    """Save a model as a run does and prepare its repository. Return its config and card."""
    model.config.pretraining, model.config.finetuning = pretraining, []
    model.save_pretrained(source)
    build_image_processor("imagenet", 64).save_pretrained(source)
    prepare_finetuned(source, "maintainer/mine", folder)
    return json.loads((folder / "config.json").read_text()), ModelCard((folder / "README.md").read_text())


def test_own_heads_come_with_their_code(tmp_path):
    model = build_classifier(DINOV2, pooling="topk", problem_type="multi_label_classification", **LABELS)
    config, card = publish(model, tmp_path / "run", tmp_path / "repo", {"name": "timm/vit_small"})
    assert config["auto_map"]["AutoModelForImageClassification"] == (
        "modeling_surgical.SurgicalForImageClassification"
    )
    code = {path.name for path in (tmp_path / "repo").glob("*.py")}
    assert code == {"configuration_surgical.py", "modeling_surgical.py"}
    assert config["id2label"]["2"] == "clip/cut"
    assert (card.data.license, card.data.base_model, card.data.pipeline_tag) == ("other", None, "image-classification")
    assert "surgenet" not in card.data.tags
    for expected in ("A dinov2 model with an image-classification head", "trust_remote_code=True", "(vit_small)"):
        assert expected in card.text
    for absent in ("SurgeNet's own", "CC BY-NC-SA", "Jaspers", "None"):
        assert absent not in card.text


def test_models_of_transformers_need_no_code(tmp_path):
    random = {"name": "none (random initialization)"}
    config, card = publish(build_segmenter(SEGFORMER, **LABELS), tmp_path / "run", tmp_path / "repo", random)
    assert "auto_map" not in config
    assert not list((tmp_path / "repo").glob("*.py"))
    assert "not derived from published weights" in card.text
    for absent in ("surgenet_hf`. Install", "import surgenet_hf", "trust_remote_code"):
        assert absent not in card.text
    assert "| class | `SegformerForSemanticSegmentation` |" in card.text


def test_pretrained_vision_transformer(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64}
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=0))
    pretraining = describe_pretraining({"name": RANDOM_WEIGHTS}, ["mine"], 2, 100, "imagenet")
    config, card = publish(model, tmp_path / "run", tmp_path / "repo", pretraining)
    assert config["pretraining"]["name"] == "DINO on mine"
    assert not list((tmp_path / "repo").glob("*.py"))
    assert (card.data.license, card.data.pipeline_tag) == ("other", "image-feature-extraction")
    for expected in (
        "A ViT/16 backbone",
        "2 epochs on 100 frames of mine",
        "AutoModel.from_pretrained",
        "the class token",
    ):
        assert expected in card.text
    for absent in ("surgenet_hf`. Install", "import surgenet_hf", "trust_remote_code", "AutoBackbone", "Jaspers"):
        assert absent not in card.text


@pytest.mark.parametrize("architecture", ["dinov1_vits16", "dinov2_vits14", "dinov3_vits16"])
def test_converted_vision_transformer(architecture, hub, client, tmp_path):
    """Test that a folder of `surgenet convert` can be published, with a copy of Meta's license for DINOv3."""
    is_dinov3 = architecture.startswith("dinov3")
    torch.save(small_vit(architecture), tmp_path / "file.pth")
    registers = 4 if architecture.startswith("dinov2") else 0
    config = vit_config(architecture[:6], 2, 64, image_size=4 * int(architecture[-2:]), registers=registers)
    model = convert_checkpoint(tmp_path / "file.pth", config=config, output_dir=tmp_path / "model")
    outcome = publish_finetuned(tmp_path / "model", "maintainer/mine", tmp_path / "out", push=True)
    assert outcome.error is None
    files = hub.repos["maintainer/mine"].files().keys() - {".gitattributes"}
    common = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert files == common | ({LICENSE_FILE} if is_dinov3 else set())
    loaded = AutoModel.from_pretrained("maintainer/mine")
    assert type(loaded) is type(model)
    assert loaded.config.pretraining == model.config.pretraining
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    card = ModelCard((tmp_path / "out" / "mine" / "README.md").read_text())
    found = (card.data.license, card.data.license_link, card.data.library_name, card.data.pipeline_tag)
    assert found == ("other", LICENSE_FILE if is_dinov3 else None, "transformers", "image-feature-extraction")
    assert ("dinov3-license/) applies to the weights if they" in card.text) == is_dinov3
    assert "initial\nweights (unknown)" in card.text if is_dinov3 else "initial weights (unknown)" in card.text
    assert "The weights were converted from file.pth (SHA-256" in card.text
    for absent in ("import surgenet_hf", "trust_remote_code", "random weights", "None"):
        assert absent not in card.text


def test_license_of_other_dinov3_models(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = DINOv3ViTConfig(**sizes, image_size=64)
    for name, expected in (("facebook/dinov3-vits16-pretrain-lvd1689m", True), (RANDOM_WEIGHTS, False)):
        model = build_segmenter(config, head="linear", **LABELS)
        _, card = publish(model, tmp_path / "run", tmp_path / str(expected), {"name": name})
        assert (tmp_path / str(expected) / LICENSE_FILE).exists() == expected
        assert ("DINOv3 License" in card.text) == expected


@pytest.mark.slow
def test_they_load_without_the_package(tmp_path, monkeypatch):
    models = {
        "AutoModelForImageClassification": build_classifier(DINOV2, pooling="mean", **LABELS),
        "AutoModelForSemanticSegmentation": build_segmenter(DINOV2, head="fpn", **LABELS),
        "AutoModelForUniversalSegmentation": build_segmenter(DINOV2, head="eomt", image_size=64, **LABELS),
    }
    for name, model in models.items():
        publish(model, tmp_path / "run" / name, tmp_path / name)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, cwd=tmp_path)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, model in models.items():
        with torch.no_grad():
            outputs = model.eval()(pixels)
        expected = outputs.get("logits", outputs.get("masks_queries_logits"))
        torch.testing.assert_close(torch.load(tmp_path / name / "output.pt"), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_published(tmp_path, tiny_config):
    with pytest.raises(UserError, match="on a SurgeNet backbone, whose code a repository cannot load"):
        publish(build_segmenter(tiny_config(), head="linear", **LABELS), tmp_path / "run", tmp_path / "repo")
    headless = build_classifier(DINOV2, pooling="mean", **LABELS).backbone
    with pytest.raises(UserError, match=r"contains a dinov2 \(Dinov2Model\), expected a model that was trained"):
        publish(headless, tmp_path / "headless", tmp_path / "repo")
