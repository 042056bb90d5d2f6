import logging

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor

from surgenet_hf import (
    SurgeNetForImageClassification,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
    convert_checkpoint,
    image_processor_for,
)
from surgenet_hf.checkpoints import catalog
from surgenet_hf.checkpoints.conversion import parameter_map, save_converted, to_original_state_dict
from surgenet_hf.checkpoints.reading import file_sha256
from surgenet_hf.errors import UserError
from surgenet_hf.image_processing import build_image_processor
from tests.checkpoints.files import original, save_dino, tiny

BACKBONES = ["caformer_s18", "convnextv2_tiny", "pvt_v2_b2"]


def save(tmp_path, tensors, name="file.pth"):
    torch.save(tensors, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    "cls", [SurgeNetModel, SurgeNetForImageClassification, SurgeNetForSemanticSegmentation], ids=lambda c: c.__name__
)
def test_there_and_back(backbone, cls, tmp_path):
    config = tiny(backbone)
    tensors = original(cls, config)
    model = convert_checkpoint(save(tmp_path, tensors), config=config)
    assert type(model) is cls
    assert not model.training
    back = to_original_state_dict(model)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.slow
def test_image_processor_of_a_model(tmp_path):
    """Test that the image processor has the normalization of the weights, or an error is raised."""
    config = tiny()
    path = save(tmp_path, original(SurgeNetModel, config))
    model = convert_checkpoint(path, config=config, normalization="imagenet", output_dir=tmp_path / "new")
    for processor in (
        image_processor_for(model),
        image_processor_for(model.config),
        AutoImageProcessor.from_pretrained(tmp_path / "new"),
    ):
        assert list(processor.image_mean) == list(catalog.NORMALIZATIONS["imagenet"][0])
        assert processor.size["height"] == 224
    loaded = SurgeNetModel.from_pretrained(tmp_path / "new")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match="choose another output_dir"):
        convert_checkpoint(path, config=config, output_dir=tmp_path / "new")
    earlier = SurgeNetModel(tiny(pretraining={"statistics": "imagenet"}))  # earlier versions used this key
    assert list(image_processor_for(earlier).image_mean) == list(catalog.NORMALIZATIONS["imagenet"][0])
    for pretraining in (None, {"name": "x"}, {"normalization": "other"}):
        with pytest.raises(UserError, match=r'pretraining\["normalization"\] is .*expected one of surgenet, imagenet'):
            image_processor_for(SurgeNetModel(tiny(pretraining=pretraining)))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_timm_names(backbone, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(
        backbone,
        num_classes=3,
        **({"mlp_act": torch.nn.ReLU, "act1_layer": torch.nn.ReLU} if backbone == "caformer_s18" else {}),
    ).eval()
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    model = convert_checkpoint(tmp_path / "timm.safetensors", normalization="imagenet")
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, network(pixel_values))


def test_dino_checkpoint_gives_the_teacher(tmp_path):
    config = tiny()
    teacher, student = original(SurgeNetModel, config, seed=1), original(SurgeNetModel, config, seed=2)
    mean, std = catalog.NORMALIZATIONS["surgenet"]
    args = {"data_mean": [np.float64(value) for value in mean], "data_std": list(std)}
    save_dino(tmp_path / "full.pth", teacher, student, args)
    for network, expected in (("teacher", teacher), ("student", student)):
        model = convert_checkpoint(tmp_path / "full.pth", network=network, config=config)
        assert type(model) is SurgeNetModel
        back = to_original_state_dict(model)
        assert all(torch.equal(back[name], expected[name]) for name in expected)
        assert model.config.pretraining["network"] == network
        assert model.config.pretraining["epoch"] == 50
        assert "args" in model.config.pretraining["normalization_reason"]


def test_provenance_travels(tmp_path):
    file = save(tmp_path, original(SurgeNetModel, tiny()))
    save_converted(convert_checkpoint(file, config=tiny()), build_image_processor(), tmp_path / "converted")
    model = SurgeNetForImageClassification.from_pretrained(tmp_path / "converted")
    model.save_pretrained(tmp_path / "again")
    provenance = SurgeNetModel.from_pretrained(tmp_path / "again").config.pretraining
    assert provenance["source"] == "file.pth"
    assert provenance["source_sha256"] == file_sha256(file)
    assert provenance["name"] == "unknown"


@pytest.mark.parametrize(("in_file", "in_config"), [("relu", "star_relu"), ("star_relu", "relu")])
def test_wrong_activation_is_refused(in_file, in_config, tmp_path):
    file = save(tmp_path, original(SurgeNetModel, tiny(activation=in_file)))
    found_by_itself = convert_checkpoint(file, config=tiny(activation=in_file))
    assert found_by_itself.config.activation == in_file
    fault = "missing" if in_config == "star_relu" else "unexpected"
    with pytest.raises(ValueError, match=rf"14 {fault}: stages\.0\.0\.mlp\.act\.bias"):
        convert_checkpoint(file, config=tiny(activation=in_config))
    # the loader also raises if the config belongs to another model
    found_by_itself.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=fault):
        SurgeNetModel.from_pretrained(tmp_path / "model", activation=in_config)


def test_everything_wrong_is_listed(tmp_path):
    tensors = original(SurgeNetModel, tiny())
    del tensors["stages.2.1.norm1.weight"]
    tensors["stages.9.0.norm1.weight"] = torch.ones(3)
    tensors["norm.weight"] = torch.ones(3)
    tensors["norm.bias"] = torch.ones(64, dtype=torch.int64)
    with pytest.raises(ValueError, match="Nothing was converted") as caught:
        convert_checkpoint(save(tmp_path, tensors), config=tiny())
    for expected in (
        "1 missing: stages.2.1.norm1.weight",
        "1 unexpected: stages.9.0.norm1.weight",
        "norm.weight: found (3,), expected (64,)",
        "1 with an integer dtype: norm.bias",
    ):
        assert expected in str(caught.value)


def test_unpublished_sizes_need_a_config(tmp_path):
    file = save(tmp_path, original(SurgeNetModel, tiny()))
    with pytest.raises(ValueError, match=r"(?s)missing.*of another shape: .*found"):
        convert_checkpoint(file)


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="vision transformer with 0 blocks"):
        convert_checkpoint(save(tmp_path, {"cls_token": torch.ones(1), "patch_embed.proj.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"none of the backbones.*conv1"):
        convert_checkpoint(save(tmp_path, {"conv1.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match="contains a pvt_v2_b2"):
        convert_checkpoint(save(tmp_path, original(SurgeNetModel, tiny("pvt_v2_b2"))), config=tiny())


def test_task(tmp_path):
    backbone = save(tmp_path, original(SurgeNetModel, tiny()), "backbone.pth")
    with pytest.raises(ValueError, match="no semantic-segmentation head"):
        convert_checkpoint(backbone, task="semantic-segmentation", config=tiny())
    with pytest.raises(ValueError, match="task must be"):
        convert_checkpoint(backbone, task="detection", config=tiny())
    classifier = original(SurgeNetForImageClassification, tiny())
    model = convert_checkpoint(save(tmp_path, classifier), task="backbone", config=tiny())
    assert type(model) is SurgeNetModel
    assert torch.equal(model.layernorm.weight, classifier["norm.weight"])
    # with num_classes=0 the original code leaves a last layer without outputs
    classifier["head.fc2.weight"], classifier["head.fc2.bias"] = torch.ones(0, 256), torch.ones(0)
    assert type(convert_checkpoint(save(tmp_path, classifier), config=tiny())) is SurgeNetModel


def test_unused_head_of_segmentation_files(tmp_path, caplog):
    tensors = original(SurgeNetForSemanticSegmentation, tiny())
    classifier = original(SurgeNetForImageClassification, tiny())
    tensors |= {
        f"metaformer.{name}": tensor for name, tensor in classifier.items() if name.startswith(("norm", "head"))
    }
    with caplog.at_level(logging.INFO, logger="surgenet_hf"):
        model = convert_checkpoint(save(tmp_path, tensors), config=tiny())
    assert type(model) is SurgeNetForSemanticSegmentation
    assert "Omitted" in caplog.text
    assert "head.fc1.weight" in caplog.text
    backbone = convert_checkpoint(tmp_path / "file.pth", task="backbone", config=tiny())
    assert torch.equal(backbone.layernorm.weight, classifier["norm.weight"])


def test_labels(tmp_path):
    file = save(tmp_path, original(SurgeNetForSemanticSegmentation, tiny(num_labels=3)))
    model = convert_checkpoint(file, labels=["liver", "fat", "tool"], config=tiny())
    assert model.config.id2label == {0: "liver", 1: "fat", 2: "tool"}
    assert model.config.label2id["tool"] == 2
    with pytest.raises(ValueError, match="3 outputs; got 2 labels"):
        convert_checkpoint(file, labels=["liver", "fat"], config=tiny())


@pytest.mark.slow
def test_normalization(tmp_path, caplog, monkeypatch):
    def normalization_of(file, **kwargs):
        return convert_checkpoint(file, **kwargs).config.pretraining["normalization"]

    relu = save(tmp_path, original(SurgeNetModel, tiny()), "relu.pth")
    assert normalization_of(relu, config=tiny()) == "surgenet"
    assert caplog.text.count("does not record the normalization") == 1
    caplog.clear()
    assert normalization_of(relu, config=tiny(), normalization="imagenet") == "imagenet"
    star = save(tmp_path, original(SurgeNetModel, tiny(activation="star_relu")), "star.pth")
    assert normalization_of(star, config=tiny(activation="star_relu")) == "imagenet"
    entry = catalog.CatalogEntry(
        "X", "x", "x.pth", None, (), normalization="imagenet", teacher_sha256=file_sha256(relu)
    )
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    assert normalization_of(relu, config=tiny()) == "imagenet"
    assert not caplog.text
    teacher = original(SurgeNetModel, tiny())
    save_dino(tmp_path / "full.pth", teacher, teacher, {"data_mean": [0.5] * 3, "data_std": [0.5] * 3})
    with pytest.raises(ValueError, match="expected SurgeNet's or"):
        normalization_of(tmp_path / "full.pth", config=tiny())


def test_image_processor_has_the_normalization():
    processor = build_image_processor("surgenet", image_size=32)
    white = np.full((20, 30, 3), 255, dtype=np.uint8)
    pixel_values = processor(white, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in catalog.NORMALIZATIONS["surgenet"])
    torch.testing.assert_close(pixel_values[0], ((1 - mean) / std).expand(3, 32, 32), atol=1e-5, rtol=0)


def test_every_parameter_has_its_own_original_name():
    for backbone in BACKBONES:
        for naming in ("original", "timm"):
            mapping = parameter_map(SurgeNetForImageClassification(tiny(backbone)), naming)
            names = [name for name, _ in mapping.values()]
            assert len(set(names)) == len(names)


def test_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    model, processor = SurgeNetModel(tiny()), build_image_processor()

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(processor), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        save_converted(model, processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    save_converted(model, processor, tmp_path / "out")
    with pytest.raises(UserError, match="not an empty folder"):
        save_converted(model, processor, tmp_path / "out")
