"""What may be loaded: checked before anything is downloaded or built."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from tests.spaces.running import HOSTILE, save

import folders  # isort: skip
from media import Refused  # isort: skip


@pytest.fixture
def folder(models, tmp_path):
    return shutil.copytree(models.segmentation, tmp_path / "model")


def change(folder, name="config.json", **settings):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def publish(hub, folder, repo_id="someone/model", without=(), **files):
    contents = {path.name: path for path in folder.iterdir() if path.name not in without}
    hub.add_files(repo_id, contents | files)


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [
        ("segmentation", ("segmentation", "features")),
        ("cvs", ("classification", "features")),
        ("phases", ("phases", "features")),
        ("backbone", ("features",)),
    ],
)
def test_all_kinds(models, kind, tasks):
    loaded = folders.load_folder(getattr(models, kind), "name")
    assert loaded.tasks == tasks
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert "pretraining: unknown" in loaded.note


def test_classes_of_the_same_name_are_told_apart(models, tmp_path):
    folder = shutil.copytree(models.steps, tmp_path / "model")
    change(folder, id2label={"0": "cut", "1": "sew", "2": "cut"})
    loaded = folders.load_folder(folder, "name")
    assert loaded.labels == ["cut (0)", "sew", "cut (2)"]
    assert folders.summary("name", *folders.read_config(folder, "name"))["labels"] == loaded.labels
    change(folder, id2label={"0": "cut", "1": "cut", "2": "cut (0)"})
    assert len(set(folders.load_folder(folder, "name").labels)) == 3


def test_labels_are_the_models(models):
    assert folders.load_folder(models.segmentation, "name").labels[3] == HOSTILE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "is of type bert"),
        ({"architectures": ["BertModel"]}, "class BertModel"),
        ({"architectures": None}, "class none"),
        ({"hidden_sizes": [16, 24, 32, 2**20]}, "hidden_sizes must be"),
        ({"hidden_sizes": [1024, 2048, 4096, 2048]}, "million parameters"),
        ({"depths": [1, 1, 10**9, 1]}, "depths must be"),
        ({"depths": 7}, "config.json"),
        ({"pyramid_channels": 10**7}, "pyramid_channels is 10000000"),
        ({"num_channels": 4}, "num_channels is 4"),
        ({"id2label": {str(i): "x" for i in range(1000)}}, "more than 64 classes"),
        ({"id2label": {"5": "x"}, "label2id": {"x": 5}}, "config.json"),
        ({"backbone": "resnet50"}, "config.json"),
    ],
)
def test_configurations_that_are_refused(folder, settings, message):
    change(folder, **settings)
    with pytest.raises(Refused, match=message):
        folders.load_folder(folder, "name")


@pytest.mark.parametrize(
    "size", [{"height": 10**5, "width": 10**5}, {"shortest_edge": 200}, {"height": 8, "width": 8}]
)
def test_processors_that_are_refused(folder, size):
    change(folder, "preprocessor_config.json", size=size)
    with pytest.raises(Refused, match=r"works on pictures|damaged"):
        folders.load_folder(folder, "name")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0.5]}, "must be three numbers"),
        ({"image_mean": [0.5, 0.5, math.nan]}, "must be three numbers"),
        ({"image_mean": "x" * 5000}, "must be three numbers"),
        ({"image_std": [0, 0, 0]}, "must be three numbers above 0"),
        ({"image_std": [1, 1, -1]}, "must be three numbers above 0"),
        ({"image_std": [1e-300, 1, 1], "image_mean": [1, 1, 1]}, "not finite"),
        ({"resample": 99}, "preprocessor_config.json"),
    ],
)
def test_processors_that_make_no_numbers(folder, settings, message):
    change(folder, "preprocessor_config.json", **settings)
    with pytest.raises(Refused, match=message) as refused:
        folders.load_folder(folder, "name")
    assert len(refused.value.text) < 300


def test_weights_that_are_not_finite(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["decode_head.classifier.bias"][0] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match=r"not all finite \(decode_head\.classifier\.bias\)"):
        folders.load_folder(folder, "name")


def test_weights_that_are_not_whole(folder):
    tensors = load_file(folder / "model.safetensors")
    headless = {name: tensor for name, tensor in tensors.items() if "decode_head.classifier" not in name}
    save_file(headless, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match="without a trained head"):
        folders.load_folder(folder, "name")
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(100))
    with pytest.raises(Refused, match="damaged"):
        folders.load_folder(folder, "name")


def test_pickles_are_not_opened(folder, tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for content in ({"x": Touch()}, tensors):  # not even one that would do no harm
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(Refused, match="damaged"):
            folders.load_folder(folder, "name")
    assert not (tmp_path / "owned").exists()


def test_code_of_a_folder_is_not_run(folder, tmp_path):
    change(folder, auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    assert type(folders.load_folder(folder, "name").model) is SurgeNetForSemanticSegmentation
    assert not (tmp_path / "owned").exists()


def test_from_the_hub(hub, client, folder, tmp_path):
    publish(hub, folder, **{"evil.py": "raise SystemExit", "training_args.bin": b"\x80"})
    into = tmp_path / "into"
    folders.download("someone/model", into)
    assert {path.name for path in into.iterdir() if path.is_file()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    assert folders.load_folder(into, "someone/model").tasks == ("segmentation", "features")
    assert not [request for request in hub.requests if request.authorization]  # the owner's token stays at home


def test_too_large_or_incomplete_on_the_hub(hub, client, folder, tmp_path, monkeypatch):
    """Refused by what the Hub announces: nothing is downloaded."""
    publish(hub, folder, "someone/bin", without=("model.safetensors",), **{"pytorch_model.bin": b"\x80"})
    publish(hub, folder, "someone/bare", without=("preprocessor_config.json",))
    publish(hub, folder, "someone/long", **{"config.json": " " * (folders.MAX_CONFIG_BYTES + 1)})
    publish(hub, folder, "someone/large")
    monkeypatch.setattr(folders, "MAX_BYTES", 1000)
    for name, message in {
        "bin": "no weights in the safetensors format",
        "bare": "no preprocessor_config.json",
        "long": "larger than that of any",
        "large": "models may have up to",
    }.items():
        with pytest.raises(Refused, match=message):
            folders.download(f"someone/{name}", tmp_path / name)
    assert not hub.matching("resolve|GET /lfs")


def test_what_the_hub_does_not_have(hub, client, folder, tmp_path):
    publish(hub, folder, "someone/private")
    hub.repos["someone/private"].private = True
    for name in ("someone/missing", "someone/private"):  # of a private one, the owner's too, no word
        with pytest.raises(Refused, match="no public model"):
            folders.download(name, tmp_path)
    hub.fail("GET /api/models", status=500, times=math.inf)
    with pytest.raises(Refused, match="could not be fetched"):
        folders.download("someone/other", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/b/c",
        "a/..",
        "a b/c",
        "http://x/y",
        "a/b\n",
        "x" * 5000,
        "a/" + "b" * 5000,
    ],
)
def test_names_that_are_no_ids(name, tmp_path):
    with pytest.raises(Refused, match="There is no model") as refused:
        folders.download(name, tmp_path)
    assert len(refused.value.text) < 200


def test_headless_backbones_say_so(tiny_config, tmp_path):
    path = save(SurgeNetModel(tiny_config(pretraining={"name": "SurgeNetXL"})), tmp_path / "xl")
    summary = folders.summary("xl", *folders.read_config(path, "xl"))
    assert summary["tasks"] == ["features"]
    assert summary["labels"] == []
    assert "pretraining: SurgeNetXL" in summary["note"]
