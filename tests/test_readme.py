"""Tests that the examples of the README and of the guides run as written."""

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
from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.checkpoints import catalog
from surgenet_hf.checkpoints.catalog import CATALOG, CITATIONS, UPSTREAM_REPO, find_entry
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.publishing import prepare
from surgenet_hf.publishing.upload import publish_checkpoints
from tests.checkpoints.files import original, tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
MIGRATION = re.findall(r"^\| `([^`]*(?:pretrained|forward)[^`]*)` \| `([^`]+)` \|$", MODELS, re.MULTILINE)
# constructors in the authors' load_models.py and their backbones
CONSTRUCTORS = {
    "caformer_s18": "caformer_s18",
    "MetaFormerFPN": "caformer_s18",
    "convnextv2_tiny": "convnextv2_tiny",
    "ConvNextFPN": "convnextv2_tiny",
    "pvt_v2_b2": "pvt_v2_b2",
    "PVTV2FPN": "pvt_v2_b2",
}


def examples(page: str) -> list[str]:
    """Return the Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def originals(tmp_path, monkeypatch, tiny_backbones):
    """Write the authors' teacher files with tiny networks to the working folder.

    Returns:
        Tensors of the networks by backbone.
    """
    monkeypatch.chdir(tmp_path)
    originals = {name: original(SurgeNetModel, tiny(name)) for name in set(CONSTRUCTORS.values())}
    for entry in CATALOG:
        if entry.upstream_repo == UPSTREAM_REPO:
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

    Image.new("RGB", (64, 48)).save("frame.jpg")
    found = [*examples("README.md"), *examples("docs/guides/load.md"), *examples("docs/guides/quickstart.md")]
    assert len(found) == 7
    namespace = {"image": Image.fromarray(np.zeros((48, 64, 3), np.uint8))}
    for example in found:
        exec(example, namespace)
        if "segmenter" in example:
            assert namespace["embedding"].shape == (1, 64)
            assert type(namespace["segmenter"]) is SurgeNetForSemanticSegmentation
            assert namespace["segmenter"].config.num_labels == 7
        if "surgenet/surgenetxl" in example:
            tensors = namespace["model"].state_dict()
            expected = originals["caformer_s18"]["stages.3.0.mlp.fc1.weight"]
            assert torch.equal(tensors["encoder.stages.3.blocks.0.mlp.fc1.weight"], expected)
    assert {part["label"] for part in namespace["parts"]} <= {f"LABEL_{i}" for i in range(5)}


@pytest.mark.slow
def test_migration_table(originals):
    exec(next(example for example in examples("docs/guides/convert.md") if "convert_checkpoint(" in example), {})
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


def test_citation_is_that_of_the_catalog():
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


def test_every_link_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link.split("#")[0]).is_file()]


def test_ci_runs_the_checks_of_the_contributors():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Style")[1]
    checks = re.search(r"```sh\n(.*?)```", text, re.DOTALL)[1].splitlines()
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert len(checks) == 5
    assert not [check for check in checks if check not in commands and f"{check} --check" not in commands]


def test_ci_runs_the_commands_of_the_readme():
    ((install, test),) = re.findall(r'^(pip install .*"\.\[test\]") && (.+)$', README, re.MULTILINE)
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in (install, test):
        assert [line for line in commands if line == command or line.startswith(f"{command} --")], command
