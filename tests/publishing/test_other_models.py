"""Publishing of models of other families: own heads with their code, and models of transformers without code."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import Dinov2Config, SegformerConfig

from surgenet_hf.errors import UserError
from surgenet_hf.heads import build_classifier, build_segmenter
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.publishing.prepare import prepare_finetuned

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
