"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest
import torch
import transformers

import surgenet_hf
from surgenet_hf import SurgeNetModel, configuration_surgenet
from surgenet_hf.checkpoints.catalog import CATALOG
from tests.checkpoints.files import original, tiny

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
MIGRATION = re.findall(r"^\| `([^`]*(?:pretrained|forward)[^`]*)` \| `([^`]+)` \|$", README, re.MULTILINE)
# what the authors' load_models.py names, as of 2026: constructor -> backbone
CONSTRUCTORS = {
    "caformer_s18": "caformer_s18",
    "MetaFormerFPN": "caformer_s18",
    "convnextv2_tiny": "convnextv2_tiny",
    "ConvNextFPN": "convnextv2_tiny",
    "pvt_v2_b2": "pvt_v2_b2",
    "PVTV2FPN": "pvt_v2_b2",
}


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """The README's conversions, run on tiny networks in the authors' layout; returns the original tensors."""
    monkeypatch.chdir(tmp_path)
    originals = {}
    for name in set(CONSTRUCTORS.values()):
        config = tiny(name)
        published = {"depths": config.depths, "hidden_sizes": config.hidden_sizes}
        monkeypatch.setitem(configuration_surgenet.BACKBONES, name, published)
        originals[name] = original(SurgeNetModel, config)
    for entry in CATALOG:
        if entry.upstream_repo != "sail/dl":
            torch.save(originals[entry.backbone], entry.teacher_file)
    exec(next(code for code in python_examples() if "convert_checkpoint(" in code), {})
    return originals


def python_examples():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_migration_table(converted):
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
        assert ("FPN" in constructor) == (type(result).__name__ == "SurgeNetForSemanticSegmentation")
        key = {"caformer_s18": "stages.3.0.mlp.fc1", "convnextv2_tiny": "stages.3.0.pwconv1"}.get(
            backbone, "block4.0.mlp.fc1"
        )
        block = result.surgenet.encoder.stages[3].blocks[0]
        assert torch.equal(block.mlp.fc1.weight, converted[backbone][f"{key}.weight"])


def test_files_table_is_the_catalogue():
    files = re.findall(r"^\| `[\w-]+` \| `(\w+\.pth)`", README, re.MULTILINE)
    assert sorted(files) == sorted(Path(entry.teacher_file).name for entry in CATALOG)
