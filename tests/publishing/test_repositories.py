"""Tests of publishing to a stand-in Hub and loading from it, with and without the package."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel, configuration_surgenet
from surgenet_hf.checkpoints.catalog import UPSTREAM_REPO, find_entry
from surgenet_hf.checkpoints.conversion import save_converted, to_original_state_dict
from surgenet_hf.checkpoints.vit import build_vit
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.models import convert_entry
from surgenet_hf.pretraining.export import export_teacher
from surgenet_hf.pretraining.plan import describe_pretraining
from surgenet_hf.publishing import prepare
from surgenet_hf.publishing.prepare import compare_with_source, compare_with_tensors
from surgenet_hf.publishing.upload import publish_checkpoints, publish_finetuned, push_model
from tests.checkpoints.files import original, tiny, tiny_vit
from tests.checkpoints.test_parity import original_state_dict
from tests.conftest import TINY_WIDTHS
from tests.test_models import pth

FILES = {
    "README.md",
    "config.json",
    "configuration_surgenet.py",
    "model.safetensors",
    "modeling_surgenet.py",
    "preprocessor_config.json",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "golden"),
    [("SurgeNet-Small", "caformer_s18"), ("SurgeNet-PVTv2", "pvt_v2_b2"), ("ImageNet1k", "caformer_s18_imagenet")],
)
def test_comparison_with_the_source(name, golden, tmp_path):
    """Test that timm's network and mapping agree with the saved model.

    A wrong weight must raise an error.
    """
    tensors = original_state_dict(golden, "classification")
    torch.save({key: tensor for key, tensor in tensors.items() if not key.startswith("head.")}, tmp_path / "file.pth")
    entry = find_entry(name)
    model = convert_entry(entry, tmp_path / "file.pth")
    save_converted(model, build_image_processor(), tmp_path / "good")
    compare_with_source(entry, tmp_path / "file.pth", tmp_path / "good")
    with torch.no_grad():
        model.encoder.stages[3].blocks[0].mlp.fc1.weight.view(-1)[0] += 10
    save_converted(model, build_image_processor(), tmp_path / "bad")
    with pytest.raises(ValueError, match="stage 4 of the saved model differs from the source by"):
        compare_with_source(entry, tmp_path / "file.pth", tmp_path / "bad")


LOAD = """
import json, sys
package, repo_id = sys.argv[1] == "package", sys.argv[2]
if package:
    import surgenet_hf
else:
    sys.modules["surgenet_hf"] = None
import torch
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
options = {} if package else {"trust_remote_code": True, "revision": sys.argv[3]}
torch.manual_seed(0)
found = {}
pixel_values = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
for auto in (AutoModel, AutoBackbone, AutoModelForImageClassification, AutoModelForSemanticSegmentation):
    model = auto.from_pretrained(repo_id, **options).eval()
    assert type(model).__module__.startswith("surgenet_hf" if package else "transformers_modules"), type(model)
    found[auto.__name__] = type(model).__name__
    encoder = {name: tensor for name, tensor in model.state_dict().items() if "encoder." in name}
    torch.save(encoder, f"{sys.argv[4]}/{auto.__name__}.pt")
    with torch.no_grad():
        torch.save(model(pixel_values)[0], f"{sys.argv[4]}/{auto.__name__}-output.pt")
config = AutoConfig.from_pretrained(repo_id, **options)
processor = AutoImageProcessor.from_pretrained(repo_id)
found["normalization"] = list(processor.image_mean)
found["pretraining"] = config.pretraining["name"]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_from_the_authors_file_to_the_user(hub, client, monkeypatch, tmp_path, capsys):
    """Test that checkpoints can be published twice, and load with the package, and in a new process without it."""
    # a non-default backbone, so that config.json records the tiny sizes for the new processes
    sizes = {"depths": [1, 1, 2, 1], "hidden_sizes": TINY_WIDTHS["pvt_v2_b2"]}
    monkeypatch.setitem(configuration_surgenet.BACKBONES, "pvt_v2_b2", sizes)
    monkeypatch.setattr(prepare, "compare_with_source", lambda *args: None)  # timm has no tiny networks
    entry = find_entry("SurgeNet-PVTv2")
    teacher = original(SurgeNetModel, tiny("pvt_v2_b2"))
    hub.add_files(UPSTREAM_REPO, {entry.teacher_file: pth(teacher)})

    (dry,) = publish_checkpoints([entry], "surgenet", tmp_path / "out")
    assert dry.error is None
    assert {change.removeprefix("new ") for change in dry.changes} == FILES
    assert "surgenet/surgenet-pvtv2" not in hub.repos

    (outcome,) = publish_checkpoints([entry], "surgenet", tmp_path / "out", push=True)
    assert outcome.error is None
    repo = hub.repos["surgenet/surgenet-pvtv2"]
    assert repo.files().keys() == FILES | {".gitattributes"}
    assert len(repo.commits) == 2  # the initial commit and one upload
    assert {tag: commit.sha for tag, commit in repo.tags.items()} == {"v0.1.0": outcome.commit}
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == ["surgenet/surgenet-pvtv2"]
    card = ModelCard(repo.files()["README.md"].decode())
    assert entry.teacher_file in card.text.split("## Provenance")[1]

    (again,) = publish_checkpoints([entry], "surgenet", tmp_path / "out", push=True)
    assert (again.changes, again.commit, again.error) == ([], None, None)
    assert len(repo.commits) == 2
    assert len(hub.matching("POST .*/commit/")) == 1

    arguments = {how: [how, "surgenet/surgenet-pvtv2", "v0.1.0", str(tmp_path / how)] for how in ("package", "remote")}
    for how in arguments:
        (tmp_path / how).mkdir()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["-c", *arguments["package"]])
    exec(LOAD, {})
    printed = {"package": capsys.readouterr().out}
    hub.requests.clear()
    environment = hub.environment(tmp_path / "home", token=False)
    command = [sys.executable, "-c", LOAD, *arguments["remote"]]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    printed["remote"] = process.stdout
    assert hub.matching("GET /lfs/")
    assert not any(request.authorization for request in hub.requests)
    outputs = {}
    for how in arguments:
        found = json.loads(printed[how].splitlines()[-1])
        assert found["AutoBackbone"] == "SurgeNetBackbone"
        assert found["AutoModelForSemanticSegmentation"] == "SurgeNetForSemanticSegmentation"
        assert found["normalization"][0] == 0.46888983
        assert found["pretraining"] == "SurgeNet-PVTv2"
        outputs[how] = {path.name: torch.load(path) for path in (tmp_path / how).iterdir()}
    for name, tensors in outputs["package"].items():
        if "output" in name:
            if "Classification" not in name and "Segmentation" not in name:  # heads are random
                other = outputs["remote"][name]
                pairs = zip(tensors, other, strict=True) if isinstance(tensors, tuple) else [(tensors, other)]
                assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
            continue
        assert tensors.keys() == outputs["remote"][name].keys()
        assert all(torch.equal(tensors[key], outputs["remote"][name][key]) for key in tensors)

    # equal to the authors' file, bit for bit
    model = SurgeNetModel.from_pretrained("surgenet/surgenet-pvtv2")
    back = to_original_state_dict(model)
    assert all(torch.equal(back[key], tensor) for key, tensor in teacher.items())


LOAD_VIT = """
import sys
sys.modules["surgenet_hf"] = None
import torch
from transformers import AutoImageProcessor, AutoModel, DINOv3ViTBackbone
model = AutoModel.from_pretrained(sys.argv[1]).eval()
backbone = DINOv3ViTBackbone.from_pretrained(sys.argv[1], out_indices=[1]).eval()
pixel_values = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    outputs = model(pixel_values).last_hidden_state, backbone(pixel_values).feature_maps[0]
torch.save((*outputs, AutoImageProcessor.from_pretrained(sys.argv[1]).size["height"]), sys.argv[2])
"""


@pytest.mark.slow
def test_vision_transformer_from_the_authors_file_to_the_user(hub, client, tiny_backbones, tmp_path):
    """Test that a repository needs only transformers, and that the outputs are those of the converted file."""
    entry = dataclasses.replace(find_entry("SurgeNetXL-DINOv3-ViT-L"), tensors=None)
    tensors = tiny_vit(entry.backbone)
    hub.add_files(entry.upstream_repo, {entry.teacher_file: pth(tensors)})
    (outcome,) = publish_checkpoints([entry], "surgenet", tmp_path / "out", push=True)
    assert outcome.error is None
    files = hub.repos[entry.repo_id].files()
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} | {
        ".gitattributes",
        "LICENSE_DINOV3.md",
    }
    provenance = json.loads(files["config.json"])["pretraining"]
    assert (provenance["name"], provenance["family"], provenance["epoch"]) == (entry.name, "dinov3", 15)
    command = [sys.executable, "-c", LOAD_VIT, entry.repo_id, str(tmp_path / "found.pt")]
    subprocess.run(command, env=hub.environment(tmp_path / "home", token=False), check=True)
    hidden, maps, size = torch.load(tmp_path / "found.pt")
    model = build_vit(tensors)
    with torch.no_grad():
        expected = model(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected[:, 1:], rtol=0, atol=1e-5)
    assert size == 336
    with torch.no_grad():
        model.norm.weight[0] += 1
    model.save_pretrained(tmp_path / "bad")
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"1 of 21 tensors of the saved model differ .*norm\.weight"):
        compare_with_tensors(tmp_path / "file.pth", tmp_path / "bad")


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others(hub, client, tiny_backbones, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "compare_with_source", lambda *args: None)  # timm has no tiny networks
    names = ("SurgeNet-RAMIE", "SurgeNet-RARP", "SurgeNet-PVTv2")
    for name in names:
        entry = find_entry(name)
        content = pth(original(SurgeNetModel, tiny(entry.backbone)))
        hub.add_files(UPSTREAM_REPO, {entry.teacher_file: content[:1000] if name == "SurgeNet-RARP" else content})
    outcomes = publish_checkpoints(map(find_entry, names), "surgenet", tmp_path, push=True)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "cut short" in outcomes[1].error
    assert hub.repos.keys() == {UPSTREAM_REPO, "surgenet/surgenet-ramie", "surgenet/surgenet-pvtv2"}
    assert {path.name for path in tmp_path.iterdir() if "surgenet" in path.name} == {
        "surgenet-ramie",
        "surgenet-pvtv2",
    }


@pytest.fixture
def finetuned(tmp_path):
    """Return the folder of a user's model."""
    config = tiny(num_labels=3)
    config.pretraining = {"name": "SurgeNetXL", "normalization": "surgenet"}
    folder = tmp_path / "mine" / "model"
    SurgeNetForSemanticSegmentation(config).save_pretrained(folder)
    build_image_processor(image_size=64).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_users_own_model(hub, client, finetuned, tmp_path):
    outcome = publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True, private=True)
    assert outcome.error is None
    assert hub.repos["maintainer/mine"].private
    assert hub.repos["maintainer/mine"].files().keys() == FILES | {".gitattributes"}
    assert "surgenet/surgenetxl" in hub.repos["maintainer/mine"].files()["README.md"].decode()
    again = publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True, private=True)
    assert (again.changes, again.commit) == ([], None)

    assert not hub.repos["maintainer/mine"].tags  # the package version says nothing about a user's weights
    model = SurgeNetForSemanticSegmentation.from_pretrained(finetuned)
    torch.nn.init.ones_(model.decode_head.classifier.bias)
    model.save_pretrained(finetuned)
    changed = publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True)
    assert changed.error is None
    assert changed.changes == ["changed README.md", "changed model.safetensors"]
    assert len(hub.repos["maintainer/mine"].commits) == 3


@pytest.mark.slow
def test_a_model_with_an_onnx_file(hub, client, finetuned, tmp_path):
    """Test that the uploaded file gives the logits of the model, and that nothing in it names this machine."""
    onnxruntime = pytest.importorskip("onnxruntime")
    outcome = publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True, onnx=True)
    assert outcome.error is None
    assert "onnx/metadata.json" not in hub.repos["maintainer/mine"].files()
    content = hub.repos["maintainer/mine"].files()["onnx/model.onnx"]
    session = onnxruntime.InferenceSession(content)
    pixels = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        logits = SurgeNetForSemanticSegmentation.from_pretrained(finetuned)(pixels).logits
    expected = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear")
    found = torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0])
    assert torch.allclose(found, expected, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["license"], metadata["pretraining"]) == ("cc-by-nc-sa-4.0", "SurgeNetXL")
    assert str(tmp_path).encode() not in content
    assert b"`onnx/model.onnx` has the inputs `pixel_values`" in hub.repos["maintainer/mine"].files()["README.md"]


def test_the_model_of_a_run(hub, client, finetuned):
    """Test that a run's model is pushed under the requested name or in the user's own namespace.

    A refusal explains how to retry.
    """
    assert push_model(finetuned, None, None, "my-run") == "maintainer/my-run"
    assert push_model(finetuned, "maintainer/other", True, "my-run") == "maintainer/other"
    assert [hub.repos[name].private for name in ("maintainer/my-run", "maintainer/other")] == [False, True]
    assert hub.repos["maintainer/other"].files().keys() > FILES
    with pytest.raises(
        OSError, match=rf"(?s)^org/x was not published: .*403.*--model {finetuned} --repo_id org/x --push$"
    ):
        push_model(finetuned, "org/x", False, "my-run")


def test_own_pretraining(hub, client, tmp_path):
    """Test that an exported pretraining is published with the card of a backbone."""
    pretraining = describe_pretraining({"name": "SurgeNetXL"}, ["mine"], epoch=2, frames=500)
    folder, model = tmp_path / "run" / "model", SurgeNetModel(tiny())
    export_teacher(model, folder, pretraining, build_image_processor(), {"lr": 5e-4}, {"knn_accuracy": 0.5})
    outcome = publish_finetuned(folder, "maintainer/mine", tmp_path / "out", push=True)
    assert outcome.error is None
    files = hub.repos["maintainer/mine"].files()
    assert files.keys() == FILES | {".gitattributes"}
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "surgenet/surgenetxl"
    for expected in (
        "2 epochs on 500 frames of mine",
        "| lr | 0.0005 |",
        "| knn_accuracy | 0.5000 |",
        "76 of the 80",
    ):
        assert expected in card.text
    again = publish_finetuned(folder, "maintainer/mine", tmp_path / "out", push=True)
    assert (again.changes, again.commit) == ([], None)
    remote = AutoModel.from_pretrained("maintainer/mine")
    assert remote.config.pretraining["name"] == "SurgeNetXL, continued on mine"
    assert all(torch.equal(tensor, remote.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_users_folder_is_not_replaced(hub, client, finetuned):
    """Test that a user's folder is not replaced, since output_dir/NAME may be the published run itself."""
    outcome = publish_finetuned(finetuned, "maintainer/mine", finetuned.parents[1])
    assert "was not prepared by this command" in outcome.error
    assert (finetuned / "model.safetensors").exists()


@pytest.mark.slow
def test_other_content_under_a_pinned_tag_is_refused(hub, client, tiny_backbones, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "compare_with_source", lambda *args: None)  # timm has no tiny networks
    entry = find_entry("SurgeNet-RAMIE")
    hub.add_files(UPSTREAM_REPO, {entry.teacher_file: pth(original(SurgeNetModel, tiny()))})
    (first,) = publish_checkpoints([entry], "surgenet", tmp_path / "out", push=True)
    assert first.error is None
    hub.add_files(UPSTREAM_REPO, {entry.teacher_file: pth(original(SurgeNetModel, tiny(), seed=1))})
    (second,) = publish_checkpoints([entry], "surgenet", tmp_path / "out", push=True)
    assert "raise the package's version" in second.error
    assert len(hub.repos["surgenet/surgenet-ramie"].commits) == 2


def test_not_a_model(hub, client, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = publish_finetuned(tmp_path / "empty", "maintainer/mine", tmp_path / "out", push=True)
    assert "contains no config.json" in outcome.error
    assert not hub.repos


@pytest.mark.parametrize(
    ("request_line", "status"), [("POST .*/commit/", 401), ("POST .*/commit/", 503), ("POST .*/lfs", 404)]
)
def test_refused_uploads_leave_nothing(request_line, status, hub, client, finetuned, tmp_path, capsys):
    hub.fail(request_line, status=status, times=math.inf)
    outcome = publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True)
    assert str(status) in outcome.error
    assert hub.repos["maintainer/mine"].files().keys() == {".gitattributes"}
    assert not hub.repos["maintainer/mine"].tags
    assert hub.token not in outcome.error + capsys.readouterr().out


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(status, hub, client, finetuned, tmp_path):
    hub.fail("PUT /lfs/", status=status)
    hub.cut("PUT /lfs/", after_bytes=5000, skip=1)
    outcome = publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True)
    if outcome.error:  # if the client does not retry a cut upload, nothing is there and the next run repairs it
        assert hub.repos["maintainer/mine"].files().keys() == {".gitattributes"}
        outcome = publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True)
    assert outcome.error is None
    uploaded = hub.repos["maintainer/mine"].files()["model.safetensors"]
    assert uploaded == (tmp_path / "out" / "mine" / "model.safetensors").read_bytes()


def test_no_token_is_written(hub, client, finetuned, tmp_path):
    publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True)
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or hub.token.encode() not in path.read_bytes()


@pytest.mark.slow
def test_missing_timm_says_what_to_install(hub, client, finetuned, tmp_path):
    publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out", push=True)
    code = """
import sys
class NoTimm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("timm", "surgenet_hf"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTimm())
from transformers import AutoModelForSemanticSegmentation
AutoModelForSemanticSegmentation.from_pretrained("maintainer/mine", trust_remote_code=True, revision="main")
"""
    run = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(tmp_path / "home"), capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "pip install timm" in run.stderr


def test_saved_weights_are_the_models(finetuned, tmp_path, hub, client):
    publish_finetuned(finetuned, "maintainer/mine", tmp_path / "out")
    ours, theirs = load_file(finetuned / "model.safetensors"), load_file(tmp_path / "out/mine/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
