"""Tests that the README's tables and examples are correct as written."""

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import surgenet_hf
from surgenet_cli import COMMANDS
from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.checkpoints import catalog
from surgenet_hf.checkpoints.catalog import CATALOG, CITATIONS, find_entry
from surgenet_hf.data import dataset_names
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.publishing import prepare
from surgenet_hf.publishing.upload import publish_checkpoints
from tests.checkpoints.files import original, tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MIGRATION = re.findall(r"^\| `([^`]*(?:pretrained|forward)[^`]*)` \| `([^`]+)` \|$", README, re.MULTILINE)
# constructors in the authors' load_models.py and their backbones
CONSTRUCTORS = {
    "caformer_s18": "caformer_s18",
    "MetaFormerFPN": "caformer_s18",
    "convnextv2_tiny": "convnextv2_tiny",
    "ConvNextFPN": "convnextv2_tiny",
    "pvt_v2_b2": "pvt_v2_b2",
    "PVTV2FPN": "pvt_v2_b2",
}


@pytest.fixture
def originals(tmp_path, monkeypatch, tiny_backbones):
    """Write the authors' teacher files with tiny networks to the working folder.

    Returns:
        Tensors of the networks by backbone.
    """
    monkeypatch.chdir(tmp_path)
    originals = {name: original(SurgeNetModel, tiny(name)) for name in set(CONSTRUCTORS.values())}
    for entry in CATALOG:
        if entry.upstream_repo != "sail/dl":
            torch.save(originals[entry.backbone], entry.teacher_file)
    return originals


@pytest.mark.slow
def test_examples(originals, hub, client, monkeypatch, tmp_path):
    """Test every example with a stand-in Hub of the authors' repository and the one published from it."""
    entry = find_entry("SurgeNetXL")
    hub.add_files(entry.upstream_repo, {entry.teacher_file: Path(entry.teacher_file)})
    checksum = hashlib.sha256(Path(entry.teacher_file).read_bytes()).hexdigest()
    entry = dataclasses.replace(entry, teacher_sha256=checksum)
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    monkeypatch.setattr(prepare, "compare_with_source", lambda *args: None)  # timm has no tiny networks
    (outcome,) = publish_checkpoints([entry], "surgenet", tmp_path / "out", push=True)
    assert outcome.error is None
    SurgeNetForSemanticSegmentation(tiny()).save_pretrained("outputs/quickstart/model")
    build_image_processor().save_pretrained("outputs/quickstart/model")

    assert len(EXAMPLES) == 6
    namespace = {"image": Image.fromarray(np.zeros((48, 64, 3), np.uint8))}
    for example in EXAMPLES:
        exec(example, namespace)
        if "segmenter" in example:
            assert namespace["embedding"].shape == (1, 64)
            assert type(namespace["segmenter"]) is SurgeNetForSemanticSegmentation
            assert namespace["segmenter"].config.num_labels == 7
        if "surgenet/surgenetxl" in example:
            tensors = namespace["model"].state_dict()
            expected = originals["caformer_s18"]["stages.3.0.mlp.fc1.weight"]
            assert torch.equal(tensors["encoder.stages.3.blocks.0.mlp.fc1.weight"], expected)
    assert {part["label"] for part in namespace["segment"](namespace["image"])} <= {f"LABEL_{i}" for i in range(5)}


@pytest.mark.slow
def test_migration_table(originals):
    exec(next(example for example in EXAMPLES if "convert_checkpoint(" in example), {})
    assert {constructor.split("(")[0] for constructor, _ in MIGRATION} == CONSTRUCTORS.keys()
    for constructor, ours in MIGRATION:
        namespace = {name: getattr(transformers, name) for name in re.findall(r"AutoModel\w*", ours)}
        namespace |= {name: getattr(surgenet_hf, name) for name in surgenet_hf.__all__}
        namespace["x"] = torch.randn(1, 3, 64, 64)
        result = eval(ours, namespace)
        if "forward" in constructor:
            assert [feature_map.shape[-1] for feature_map in result] == [16, 8, 4, 2]
            continue
        backbone = CONSTRUCTORS[constructor.split("(")[0]]
        assert result.config.backbone == backbone
        assert result(namespace["x"]).logits.shape[1] == 12
        assert ("FPN" in constructor) == (type(result) is SurgeNetForSemanticSegmentation)
        keys = {"caformer_s18": "stages.3.0.mlp.fc1", "convnextv2_tiny": "stages.3.0.pwconv1"}
        expected = originals[backbone][f"{keys.get(backbone, 'block4.0.mlp.fc1')}.weight"]
        assert torch.equal(result.surgenet.encoder.stages[3].blocks[0].mlp.fc1.weight, expected)


def test_table_of_urls_is_the_catalogue():
    rows = re.findall(r'^\| `([\w-]+)` \| `"([\w-]+)"` \| `(\w+\.pth)`', README, re.MULTILINE)
    assert len(rows) == len(CATALOG)
    for spelling, name, file in rows:
        assert find_entry(spelling) is find_entry(name)
        assert find_entry(name).name == name
        assert Path(find_entry(name).teacher_file).name == file


def test_table_of_models_is_the_catalogue():
    rows = re.findall(r"^\| ([\w-]+) \|.*\[([\w-]+)\]\((hub_cards/[\w-]+\.md)\)", README, re.MULTILINE)
    assert [(name, repo) for name, repo, _ in rows] == [(entry.name, entry.repo_name) for entry in CATALOG]
    assert all((ROOT / card).is_file() for _, _, card in rows)


def test_table_of_data_sets_is_the_packages():
    table = README.split("| `--dataset` |")[1].split("\n\n")[0]
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    names = {name for row in rows for cell in row[:2] for name in re.findall(r"`([\w-]+)`", cell)}
    assert names == set(dataset_names())
    modules = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "surgenet_hf" / "data" / "sets").glob("*.py")
    )
    urls = re.findall(r"\((https://[^)]+)\)", table)
    assert len(urls) == 5
    assert not [url for url in urls if url.removeprefix("https://doi.org/") not in modules]


def test_citation_is_the_catalogues():
    assert re.findall(r"```bibtex\n(.*?)\n```", README, re.DOTALL) == [CITATIONS["surgenetxl"]]


def test_architecture_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {
        path.name
        for path in (ROOT / "surgenet_hf").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert not [name for name in modules if not re.search(rf"^  .*\b{name}", text, re.MULTILINE)]
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (ROOT / "surgenet_hf" / name.replace("NAME", "dsad")).is_file(), name


def test_commands_exist():
    used = {name for name in re.findall(r"(?<![\w/])surgenet ([a-z][a-z-]+)", README) if name != "pretrained"}
    assert used <= COMMANDS.keys()
