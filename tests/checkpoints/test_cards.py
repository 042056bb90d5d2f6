import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from surgenet_hf import SurgeNetConfig, SurgeNetForImageClassification, SurgeNetModel
from surgenet_hf.checkpoints.cards import PARAMETERS, STAR_RELU_PARAMETERS, checkpoint_card, finetuned_card
from surgenet_hf.checkpoints.catalog import CATALOG, STATISTICS, find_entry
from surgenet_hf.checkpoints.conversion import build_image_processor
from tests.checkpoints.files import tiny

HUB_CARDS = Path(__file__).parents[2] / "hub_cards"


def test_committed_cards_are_the_rendered_ones():
    rendered = {f"{entry.repo_name}.md": checkpoint_card(entry) for entry in CATALOG}
    committed = {path.name: path.read_text(encoding="utf-8") for path in HUB_CARDS.glob("*.md")}
    assert committed == rendered, "run: python scripts/render_cards.py"


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_card(entry, client):
    card = ModelCard(checkpoint_card(entry))
    card.validate()  # by the Hub's endpoint, here the stand-in's
    assert card.data.license == entry.licence
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.base_model == entry.upstream_repo
    text = card.text
    assert "Not a medical device" in text
    assert all(str(value) in text for values in STATISTICS[entry.statistics] for value in values)
    assert all(data.name in text for data in entry.pretraining_sets)
    saw_cholec80 = "Cholec80" in {data.name for data in entry.pretraining_sets}
    assert ("76 of the 80 videos of Cholec80" in text) == saw_cholec80
    assert not re.search(r"\{\{|\{%|None|undefined", text)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, entry.name, "exec")
        assert entry.repo_id in code


def test_parameters_are_counted_right():
    for name in PARAMETERS:
        assert SurgeNetModel(SurgeNetConfig(backbone=name)).num_parameters() == PARAMETERS[name]
    star_relu = SurgeNetModel(SurgeNetConfig(activation="star_relu")).num_parameters()
    assert star_relu == PARAMETERS["caformer_s18"] + STAR_RELU_PARAMETERS


def test_baseline_is_not_called_surgical():
    card = checkpoint_card(find_entry("ImageNet1k"))
    assert "These are ImageNet's" in card
    assert "apache-2.0" in card
    assert "A surgical foundation model" not in card
    assert "endoscopic views" not in card
    assert "No surgical data set was seen" in card


def test_finetuned_card(tmp_path):
    config = tiny(num_labels=3)
    config.pretraining = {
        "name": "SurgeNetXL",
        "source": "teacher.pth",
        "source_sha256": "0" * 64,
        "statistics": "surgenet",
    }
    SurgeNetForImageClassification(config).save_pretrained(tmp_path / "model")
    build_image_processor(image_size=96).save_pretrained(tmp_path / "model")
    without_results = finetuned_card(tmp_path / "model", "me/mine")
    assert "No metrics were given" in without_results
    results = {
        "data": {"name": "endoscapes", "split": "test", "frames": 12, "videos": ["1", "2"]},
        "metrics": {"mean_dice": 0.5, "per_class": {"tool": {"dice": 0.25, "iou": None}}},
        "command": "python evaluate.py",
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    card = ModelCard(finetuned_card(tmp_path / "model", "me/mine"))
    assert card.data.base_model == "surgenet/surgenetxl"
    assert card.data.pipeline_tag == "image-classification"
    for expected in (
        "| mean_dice | 0.5000 |",
        "| tool: iou | absent |",
        "12 frames of 2 videos",
        "96 x 96",
        "Cholec80",
    ):
        assert expected in card.text
