"""Tests of the model store: what it offers, loads once, and unloads, and the small models that it trains."""

import dataclasses
import io
import shutil
import threading

import pytest
import torch
from PIL import Image

from surgenet_hf import SurgeNetForSemanticSegmentation
from surgenet_hf.checkpoints import catalog
from surgenet_hf.checkpoints.catalog import CATALOG
from surgenet_hf.data.sets import cholecseg8k, dsad, endoscapes, synthetic
from tests.checkpoints.files import tiny_vit
from tests.spaces import running

import demo  # isort: skip
import models as store_module  # isort: skip
from folders import Loaded  # isort: skip
from media import Refused  # isort: skip
from tabs import Tabs, dense_features  # isort: skip


def silent(share, what):
    pass


@pytest.fixture
def store(models):
    return store_module.ModelStore(
        [str(models.segmentation), str(models.cvs), str(models.phases), str(models.backbone)]
    )


@pytest.mark.parametrize("data", [endoscapes, cholecseg8k, dsad, synthetic])
def test_classes_have_the_colors_of_the_figures(data, tiny_config):
    model = SurgeNetForSemanticSegmentation(tiny_config(**running.named(data.LABELS)))
    assert Loaded("mine", ("segmentation",), model, None, "").colors == data.COLORS


def names(choices):
    return [name for _, name in choices]


def test_lists(store):
    """Test that the owner's models come first, and the others only where they support the task."""
    assert names(store.choices("segmentation")) == ["organs", "demo"]
    assert names(store.choices("classification")) == ["cvs", "demo-cvs", "demo-phase-frames"]
    assert names(store.choices("segmentation", "phases")) == ["organs", "phases", "demo", "demo-phases"]
    features = names(store.choices("features"))
    # the Hub is unavailable, so the demo model comes first
    assert features[:5] == ["organs", "cvs", "phases", "backbone", "demo"]
    vits = [f"SurgeNetXL-DINOv{family}-ViT-{size}" for family in (1, 2, 3) for size in ("S", "B")]
    assert features[5:] == [entry.name for entry in CATALOG if not entry.is_vit] + vits


def test_the_hub_is_asked_again_when_it_was_not_there(monkeypatch):
    answers = []

    class Hub:
        def __init__(self, token):
            pass

        def model_info(self, name, timeout):
            answers.append(len(answers))
            if len(answers) == 1:
                raise ConnectionError

    monkeypatch.setattr(store_module, "HfApi", Hub)
    patient = store_module.HubProbe()
    assert [patient.problem() for _ in range(3)] == ["ConnectionError"] * 3
    assert answers == [0]
    patient.again = 0
    assert patient.problem() is None
    assert patient.problem() is None
    assert answers == [0, 1]  # an available Hub is not checked again


def test_published_models_come_first_where_there_is_a_hub(hub, client):
    hub.add_files(CATALOG[0].upstream_repo, {"README.md": "weights"})
    store = store_module.ModelStore()
    assert store.hub_problem() is None
    assert names(store.choices("features"))[0] == "SurgeNetXL"


@pytest.mark.parametrize("name", ["SurgeNetXL-DINOv2-ViT-S", "SurgeNetXL-DINOv3-ViT-B"])
def test_published_vision_transformers(name, hub, client, tiny_backbones, monkeypatch, tmp_path):
    """Test that a visitor gets features of a listed one, and that the owner may give a name that is not listed."""
    entries = []
    for entry in CATALOG:
        if entry.name in (name, "SurgeNet2M-DINOv3-ViT-B"):
            tensors = tiny_vit(entry.backbone)
            content = io.BytesIO()
            torch.save(tensors, content)
            hub.add_files(entry.upstream_repo, {entry.teacher_file: content.getvalue()})
            counts = {"tensors": len(tensors), "elements": sum(tensor.numel() for tensor in tensors.values())}
            entry = dataclasses.replace(entry, **counts if entry.elements else {})
        entries.append(entry)
    hub.add_files(CATALOG[0].upstream_repo, {"README.md": "weights"})
    monkeypatch.setattr(catalog, "CATALOG", tuple(entries))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    frame = shutil.copy(running.DEMO / "examples" / "frame_1.jpg", tmp_path)
    store = store_module.ModelStore(["SurgeNet2M-DINOv3-ViT-B"])
    said = []
    for chosen in (name, "SurgeNet2M-DINOv3-ViT-B"):
        loaded = store.get(chosen, ("features",), lambda share, text: said.append(text))
        assert loaded.tasks == tuple(store.describe(chosen)["tasks"]) == ("features",)
        maps, _, text = Tabs(store).features({"path": str(frame)}, None, chosen, silent)
        assert chosen in text
        assert maps.std() > 0
        assert dense_features(loaded, Image.new("RGB", (64, 48))).shape[1:] == (32, 32)
    size = 90 if name.endswith("S") else 340
    assert any(f"Downloading {name} from the Hub (about {size} MB" in text for text in said)
    with pytest.raises(Refused, match="is a model for features, not for segmentation"):
        store.get(name, ("segmentation",), silent)


def test_loads_once_for_all(store, monkeypatch):
    calls = []
    load = store_module.load_given
    monkeypatch.setattr(store_module, "load_given", lambda *args: calls.append(args) or load(*args))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(store.get("organs", ("segmentation",), silent))) for _ in range(6)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(calls) == 1
    assert len({id(loaded.model) for loaded in found}) == 1
    assert len(found) == 6


@pytest.mark.slow
def test_keeps_the_last_few(models):
    store = store_module.ModelStore([str(models.segmentation), str(models.cvs), str(models.phases)], capacity=2)
    first = store.get("organs", ("segmentation",), silent)
    store.get("cvs", ("classification",), silent)
    assert store.get("organs", ("segmentation",), silent) is first
    store.get("phases", ("phases",), silent)
    assert list(store._ready) == ["organs", "phases"]


def test_wrong_tasks_and_names(store, monkeypatch):
    monkeypatch.setattr(store, "_load", lambda *args: pytest.fail("nothing needs to be loaded to know"))
    with pytest.raises(Refused, match="cvs is a model for classification and features, not for segmentation"):
        store.get("cvs", ("segmentation",), silent)
    with pytest.raises(Refused, match="SurgeNetXL is a model for features"):
        store.get("SurgeNetXL", ("segmentation",), silent)


def test_paths_are_the_owners(store, models):
    for name in (str(models.segmentation), "./organs", "organs/"):
        with pytest.raises(Refused, match="There is no model"):
            store.get(name, ("segmentation",), silent)
        with pytest.raises(Refused, match="There is no model"):
            store.describe(name)


@pytest.mark.slow
def test_typed_ids_leave_nothing_behind(hub, client, models, tmp_path):
    hub.add_files("someone/organs", {path.name: path for path in models.segmentation.iterdir()})
    store = store_module.ModelStore()
    said = []
    loaded = store.get(" someone/organs ", ("segmentation",), lambda share, what: said.append(what))
    assert loaded.name == "someone/organs"
    assert "Downloading the model from the Hub" in said
    assert store.describe("someone/organs")["tasks"] == ["segmentation", "features"]
    # one HEAD and one GET, since describing downloads no weights
    assert len(hub.matching("resolve/.*/model.safetensors")) <= 2
    assert not list((tmp_path / "hf_home").rglob("model.safetensors"))


def test_what_the_owner_names_must_be_there(tmp_path, models):
    with pytest.raises(Refused, match="neither a folder nor"):
        store_module.ModelStore(["nowhere"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(Refused, match="is of type bert, without a head for a task: fine-tune it first"):
        store_module.ModelStore([str(tmp_path)])
    headless = shutil.copytree(models.segmentation, tmp_path / "headless")
    (headless / "model.safetensors").unlink()
    with pytest.raises(Refused, match="could not be loaded"):  # at the start, not at the first request
        store_module.ModelStore([str(headless)])


@pytest.mark.slow
def test_names_of_folders(models, tmp_path):
    """Test that names use the informative part of a path and are unique."""
    nested = tmp_path / "organs" / "model"
    nested.parent.mkdir()
    nested.symlink_to(models.segmentation)
    store = store_module.ModelStore([str(models.segmentation), str(nested)])
    assert names(store.choices("segmentation"))[:2] == ["organs", "organs*"]


@pytest.mark.parametrize("name", [demo.CVS, demo.STEPS, demo.FRAMES])
def test_untrained_models_are_the_same_each_time(name):
    before = torch.random.get_rng_state()
    first, second = demo.untrained(name), demo.untrained(name)
    assert torch.equal(before, torch.random.get_rng_state())
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "untrained" in first.note
    assert first.tasks[0] in demo.DEMO[name][1]


@pytest.mark.slow
def test_the_demo_model_is_trained_once(client, hub, monkeypatch):
    """Test that the demo model is trained once.

    Several visitors wait for one training and see its progress, and a second start uses the result.
    """
    monkeypatch.setattr(demo, "DEMO_STEPS", 2)
    trainings = []
    train = demo.DemoTraining._train
    monkeypatch.setattr(demo.DemoTraining, "_train", lambda self: trainings.append(1) or train(self))
    store = store_module.ModelStore()
    said, found = [], []

    def visit():
        found.append(store.get("demo", ("segmentation",), lambda share, what: said.append((share, what))))

    threads = [threading.Thread(target=visit) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 3
    assert any("Training a small model on synthetic scenes" in what for _, what in said)
    assert all(0 <= share <= 1 for share, _ in said)
    store_module.ModelStore().get("demo", ("features",), silent)
    assert len(trainings) == 1
    assert found[0].labels[0] == "background"


def test_a_training_that_fails_says_so_and_may_be_tried_again(client, hub, monkeypatch):
    def fail(self):
        raise OSError("disk full")

    monkeypatch.setattr(demo.DemoTraining, "_train", fail)
    store = store_module.ModelStore()
    for _ in range(2):
        with pytest.raises(Refused, match="could not be trained"):
            store.get("demo", ("segmentation",), silent)
