import json
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from surgenet_hf import SurgeNetConfig, SurgeNetForImageClassification, SurgeNetModel
from surgenet_hf.checkpoints.catalog import CATALOG, NORMALIZATIONS, find_entry, leakage_note
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.publishing.cards import (
    PARAMETERS,
    STAR_RELU_PARAMETERS,
    checkpoint_card,
    finetuned_card,
    pretrained_card,
)
from surgenet_hf.publishing.vit_cards import LICENSE_FILE, LICENSE_TEXT
from tests.checkpoints.files import tiny
from tests.cli import load_script
from tests.hub.fixtures import validate

HUB_CARDS = Path(__file__).parents[2] / "hub_cards"


def check_layout(card: str):
    """Assert that a card explains the installation and has no runs of blank lines."""
    assert "\n\n\n" not in card
    assert "](https://huggingface.co/docs/transformers/installation)" in card
    requirements = (HUB_CARDS.parent / "setup.cfg").read_text()
    for requirement in shlex.split(re.search(r"```sh\npip install (.*)\n```", card)[1]):
        assert f"    {requirement}\n" in requirements or f"    {requirement}>" in requirements


def test_committed_cards_are_the_rendered_ones():
    rendered = {f"{entry.repo_name}.md": checkpoint_card(entry) for entry in CATALOG}
    committed = {path.name: path.read_text(encoding="utf-8") for path in HUB_CARDS.glob("*.md")}
    assert committed == rendered, "run: python scripts/render_cards.py"


def test_the_script_writes_them_and_nothing_on_help(tmp_path, monkeypatch, capsys):
    script = load_script("render_cards")
    monkeypatch.setattr(script, "HUB_CARDS", tmp_path / "cards")
    with pytest.raises(SystemExit):
        script.main(["--help"])
    assert not (tmp_path / "cards").exists()
    script.main([])
    written = {path.name: path.read_bytes() for path in (tmp_path / "cards").iterdir()}
    assert written == {path.name: path.read_bytes() for path in HUB_CARDS.iterdir()}


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_card(entry, client):
    card = ModelCard(checkpoint_card(entry))
    check_layout(card.text)
    validate(card)
    assert card.data.license == entry.license
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.base_model == entry.upstream_repo
    text = card.text
    assert "Not a medical device" in text
    assert all(str(value) in text for values in NORMALIZATIONS[entry.normalization] for value in values)
    assert all(data.name in text for data in entry.pretraining_sets)
    saw_cholec80 = "Cholec80" in {data.name for data in entry.pretraining_sets}
    assert ("76 of the 80 videos of Cholec80" in text) == saw_cholec80
    # with the wording of evaluations
    for data in ("cholec80-phase", "cholecseg8k", "endoscapes", "dsad", "autolaparo"):
        assert (leakage_note(entry.name, data) or "") in text
    assert not re.search(r"\{\{|\{%|None|undefined", text)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, entry.name, "exec")
        assert entry.repo_id in code


def test_cards_of_vision_transformers():
    """Test what these cards add: licenses, precision, origin of the normalization, and what is not known."""
    large = ModelCard(checkpoint_card(find_entry("SurgeNetXL-DINOv3-ViT-L")))
    assert (large.data.license, large.data.license_link) == ("other", LICENSE_FILE)
    assert "# DINOv3 License" in LICENSE_TEXT.read_text()
    for expected in (
        "https://creativecommons.org/licenses/by-nc-sa/4.0/",
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        "**Precision of RoPE.**",
        "the statistics of pretraining are not published",
        "four random register tokens",
        "| register tokens | 0 |",
        "| tensors and numbers in the original file | 343, 303,150,096 |",
        "out_indices=[6, 12, 18, 24]",
    ):
        assert expected in large.text
    small = ModelCard(checkpoint_card(find_entry("SurgeNetXL-DINOv2-ViT-S")))
    assert (small.data.license, small.data.license_link) == ("cc-by-nc-sa-4.0", None)
    assert "| register tokens | 4 |" in small.text
    assert "Meta" not in small.text
    assert "ATLAS" not in small.text
    assert "starts from the SurgeNet2M weights of DINOv3, not from SurgeNetXL's." in large.text
    assert "| ViT-S | ViT-B | ViT-L |\n|---|---|---|\n| 0.281 | 0.350 | 0.384 |" in large.text
    unknown = checkpoint_card(find_entry("SurgeNet2M-DINOv3-ViT-B"))
    assert "The tensors of the original file were not known" in unknown
    assert "it is unknown whether SurgeNet2M-DINOv3-ViT-B was pretrained on these videos" in unknown
    assert "starts from these weights and SurgeNet2M's of the other sizes" in unknown


@pytest.mark.slow
def test_parameters_are_counted_right():
    for name in PARAMETERS:
        assert SurgeNetModel(SurgeNetConfig(backbone=name)).num_parameters() == PARAMETERS[name]
    star_relu = SurgeNetModel(SurgeNetConfig(activation="star_relu")).num_parameters()
    assert star_relu == PARAMETERS["caformer_s18"] + STAR_RELU_PARAMETERS


def test_baseline_is_not_called_surgical():
    card = checkpoint_card(find_entry("ImageNet1k"))
    assert "These are ImageNet's" in card
    assert "apache-2.0" in card
    assert "a surgical foundation model" not in card
    assert "endoscopic views" not in card
    assert "no surgical dataset" in card


def test_finetuned_card(tmp_path):
    config = tiny(num_labels=3)
    config.pretraining = {
        "name": "SurgeNetXL",
        "source": "teacher.pth",
        "source_sha256": "0" * 64,
        "normalization": "surgenet",
    }
    SurgeNetForImageClassification(config).save_pretrained(tmp_path / "model")
    build_image_processor(image_size=96).save_pretrained(tmp_path / "model")
    without_results = finetuned_card(tmp_path / "model", "me/mine")
    assert "No metrics were given" in without_results
    check_layout(without_results)
    results = {
        "schema": "surgenet_hf.results/2",
        "task": "semantic-segmentation",
        "model": {"name": "model"},
        "data": {
            "name": "endoscapes",
            "split": "test",
            "split_protocol": "official",
            "frames": 12,
            "videos": ["1", "2"],
            "notes": ["Found 12 of the official 74 frames."],
            "leakage": None,
        },
        "definitions": {"intervals": "95 % over videos"},
        "metrics": {
            "video_dice": 0.5,
            "video_assd": 7.25,
            "video_iou": 0.125,
            "per_class": {"tool": {"dice": 0.25, "iou": None}},
        },
        "intervals": {"video_dice": {"low": 0.25, "high": 0.75, "videos": 7, "method": "Student's t"}},
        "command": "python evaluate.py",
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    card = ModelCard(finetuned_card(tmp_path / "model", "me/mine"))
    assert card.data.base_model == "surgenet/surgenetxl"
    assert card.data.pipeline_tag == "image-classification"
    for expected in (
        "| Dice | 0.5000 | 0.2500 to 0.7500, n = 7 videos, rough |\n| ASSD | 7.2500 | none: "
        "fewer than 5 videos with a value, or no variation |\n\n"
        "Intervals: 95 % over videos.",
        "endoscapes, split test (split protocol: official), with 12 frames of 2 videos. "
        "Found 12 of the official 74 frames. The metrics were computed with:",
        "with an image-classification head for 3 classes",
        "12 frames of 2 videos",
        "96 x 96",
        "Cholec80",
        "- The training videos of this model are unknown (not recorded).",
    ):
        assert expected in card.text
    results["data"]["leakage"] = "1 of 2 videos were used to train this model (1)"
    (tmp_path / "results.json").write_text(json.dumps(results))
    card = finetuned_card(tmp_path / "model", "me/mine")
    assert "2 videos. **1 of 2 videos were used to train this model (1).** Found 12" in card
    check_layout(card)
    results["metrics"]["video_dice"] = 1.7
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results\.json: metrics\.video_dice is 1\.7"):
        finetuned_card(tmp_path / "model", "me/mine")


def test_finetuned_card_knows_what_its_backbone_stands_on(tmp_path):
    """Test that a fine-tuned card keeps the note on Cholec80 and the license of the base model.

    Both remain after additional pretraining by the user.
    """
    config = tiny(num_labels=3)
    config.pretraining = {"name": "SurgeNetXL, continued on mine", "base": {"name": "SurgeNetXL"}, "data": ["mine"]}
    SurgeNetForImageClassification(config).save_pretrained(tmp_path)
    build_image_processor(image_size=96).save_pretrained(tmp_path)
    card = ModelCard(finetuned_card(tmp_path, "me/finetuned"))
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-sa-4.0", "surgenet/surgenetxl")
    assert "fine-tuned from [SurgeNetXL](https://huggingface.co/surgenet/surgenetxl), continued on mine." in card.text
    assert "76 of the 80 videos of Cholec80" in card.text
    assert "pretrained on mine. It is unknown whether this data includes videos of the evaluation" in card.text


OWN = {"method": "DINO", "data": ["mine"], "epoch": 3, "frames": 4321, "normalization": "surgenet"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pretraining", "license", "base_model", "expected", "absent"),
    [
        (
            {**OWN, "name": "SurgeNetXL, continued on mine", "base": {"name": "SurgeNetXL"}},
            "cc-by-nc-sa-4.0",
            "surgenet/surgenetxl",
            [
                "3 epochs on 4,321 frames of mine",
                "initialized from [SurgeNetXL]",
                "76 of the 80",
                "the frames of mine",
            ],
            ["random weights"],
        ),
        (
            {
                **OWN,
                "name": "SurgeNetXL, continued on first, continued on mine",
                "base": {"name": "SurgeNetXL, continued on first", "data": ["first"], "base": {"name": "SurgeNetXL"}},
            },
            "cc-by-nc-sa-4.0",
            "surgenet/surgenetxl",
            ["surgenet/surgenetxl), continued on first.", "76 of the 80", "the frames of first and mine"],
            [],
        ),
        (
            {
                **OWN,
                "name": "DINO on mine",
                "base": None,
                "recipe": {"lr": 5e-4},
                "knn": {"knn_accuracy": 0.75, "k": 20},
            },
            "other",
            None,
            ["initialized from random weights", "| lr | 0.0005 |", "| knn_accuracy | 0.7500 |", "| k | 20 |"],
            ["Cholec80", "CC BY-NC-SA", "SurgeNetXL]", "No metrics were available"],
        ),
        (
            {**OWN, "name": "ImageNet1k, continued on mine", "base": {"name": "ImageNet1k"}},
            "apache-2.0",
            "surgenet/caformer-s18-imagenet1k",
            ["the frames of mine", "No metrics were available"],
            ["Cholec80", "no surgical dataset"],
        ),
        (
            {**OWN, "name": "SurgeNetXL-DINOv3-ViT-S, continued on mine", "base": {"name": "SurgeNetXL-DINOv3-ViT-S"}},
            "other",
            "surgenet/surgenetxl-dinov3-vit-s",
            ["Two licenses apply to the weights", "DINOv3 License"],
            ["states no license"],
        ),
        (
            {**OWN, "name": "unknown, continued on mine", "base": {"name": "unknown"}},
            "cc-by-nc-sa-4.0",
            None,
            ["initialized from unknown", "It is unknown which videos"],
            ["random weights"],
        ),
        (
            {"name": "SurgeNetXL", "source": "x.pth", "source_sha256": "0" * 64, "normalization": "surgenet"},
            "cc-by-nc-sa-4.0",
            "surgenet/surgenetxl",
            ["were converted from x.pth", "76 of the 80", "See the card of [SurgeNetXL]"],
            ["It is unknown which"],
        ),
        (None, "cc-by-nc-sa-4.0", None, ["an unrecorded file", "which videos were used in pretraining"], []),
    ],
)
def test_pretrained_card(pretraining, license, base_model, expected, absent, client, tmp_path, monkeypatch):
    SurgeNetModel(tiny(pretraining=pretraining)).save_pretrained(tmp_path)
    build_image_processor().save_pretrained(tmp_path)
    card = ModelCard(pretrained_card(tmp_path, "me/mine", {"published by": "me"}))
    validate(card)
    assert (card.data.license, card.data.base_model) == (license, base_model)
    assert card.data.pipeline_tag == "image-feature-extraction"
    for text in [*expected, "# mine", "Not a medical device", "0.46888983", 'revision="COMMIT"', "It has no head"]:
        assert text in card.text
    for text in [*absent, "This model was fine-tuned from"]:
        assert text not in card.text
    assert not re.search(r"\{\{|\{%|None|undefined", card.text)
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(code, "card", "exec")
        assert "me/mine" in code
    check_layout(card.text)
    # a card in a local folder mentions no remote code, and its examples work
    text = pretrained_card(tmp_path)
    assert "trust_remote_code" not in text
    assert "AutoBackbone.from_pretrained" not in text
    monkeypatch.chdir(tmp_path.parent)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, {"image": Image.new("RGB", (64, 64))})
