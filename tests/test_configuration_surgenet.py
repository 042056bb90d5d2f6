import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from surgenet_hf import SurgeNetConfig
from surgenet_hf.configuration_surgenet import BACKBONES


@pytest.mark.parametrize(
    ("backbone", "depths", "hidden_sizes", "activation"),
    [
        ("caformer_s18", [3, 3, 9, 3], [64, 128, 320, 512], "relu"),
        ("convnextv2_tiny", [3, 3, 9, 3], [96, 192, 384, 768], None),
        ("pvt_v2_b2", [3, 4, 6, 3], [64, 128, 320, 512], None),
    ],
)
def test_defaults_are_the_published_architectures(backbone, depths, hidden_sizes, activation):
    config = SurgeNetConfig(backbone=backbone)
    assert (config.depths, config.hidden_sizes, config.activation) == (depths, hidden_sizes, activation)
    assert (config.pyramid_channels, config.segmentation_channels, config.segmentation_dropout) == (256, 128, 0)
    assert (config.num_channels, config.drop_path_rate, config.semantic_loss_ignore_index) == (3, 0, 255)
    assert config.pretraining is None
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_without_arguments_it_is_the_caformer_of_surgenet():
    assert SurgeNetConfig().to_dict() == SurgeNetConfig(backbone="caformer_s18", activation="relu").to_dict()


def test_defaults_are_not_shared_between_configs():
    SurgeNetConfig().depths[0] = 7
    SurgeNetConfig().hidden_sizes[0] = 7
    assert SurgeNetConfig().depths[0] == BACKBONES["caformer_s18"]["depths"][0] == 3
    assert SurgeNetConfig().hidden_sizes[0] == BACKBONES["caformer_s18"]["hidden_sizes"][0] == 64


def test_every_field_survives_save_and_load(tmp_path, backbone, tiny_config):
    changes = {
        "num_channels": 4,
        "drop_path_rate": 0.1,
        "initializer_range": 0.01,
        "segmentation_dropout": 0.2,
        "semantic_loss_ignore_index": -100,
        "pretraining": {"name": "SurgeNetXL", "sha256": "0" * 64, "statistics": {"mean": [0.1, 0.2, 0.3]}},
        "out_features": ["stage2", "stage4"],
        "id2label": {0: "background", 1: "grasper", 2: "hook"},
        "label2id": {"background": 0, "grasper": 1, "hook": 2},
        "problem_type": "multi_label_classification",
    }
    config = tiny_config(backbone, **changes)
    config.save_pretrained(tmp_path)
    for loaded in (SurgeNetConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, SurgeNetConfig)
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
        for name, value in changes.items():
            assert getattr(loaded, name) == value
        assert loaded.num_labels == 3
    saved = json.loads((tmp_path / "config.json").read_text())
    # a file records everything that the weights depend on, regardless of the defaults of a later version
    assert saved["model_type"] == "surgenet"
    assert saved["depths"] == [1, 1, 1, 1]
    assert saved["hidden_sizes"] == config.hidden_sizes


def test_a_published_config_names_its_activation_and_sizes(tmp_path):
    SurgeNetConfig(activation="star_relu").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["backbone"] == "caformer_s18"
    assert saved["activation"] == "star_relu"
    assert saved["depths"] == [3, 3, 9, 3]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"activation": "gelu"}, "'relu' or 'star_relu', got 'gelu'"),
        ({"backbone": "convnextv2_tiny", "activation": "relu"}, "only caformer_s18 has a choice of activation"),
        ({"backbone": "pvt_v2_b2", "activation": "star_relu"}, "only caformer_s18 has a choice of activation"),
        ({"depths": [3, 3, 9]}, "depths must be four positive numbers"),
        ({"depths": [3, 0, 9, 3]}, "depths must be four positive numbers"),
        ({"hidden_sizes": []}, "hidden_sizes must be four positive numbers"),
        ({"hidden_sizes": [64, 128, 320, -512]}, "hidden_sizes must be four positive numbers"),
        ({"hidden_sizes": [64, 128, 300, 512]}, "stages 3 and 4 must be multiples of 32"),
        ({"hidden_sizes": [64, 128, 320, 500]}, "stages 3 and 4 must be multiples of 32"),
        ({"hidden_sizes": [64, 64, 320, 512]}, "hidden_sizes of adjacent CAFormer stages must differ"),
        ({"hidden_sizes": [64, 128, 512, 512]}, "hidden_sizes of adjacent CAFormer stages must differ"),
        ({"backbone": "pvt_v2_b2", "hidden_sizes": [64, 128, 321, 512]}, "multiples of its .* attention heads"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate must be in \[0, 1\)"),
        ({"segmentation_dropout": 1}, r"segmentation_dropout must be in \[0, 1\)"),
        ({"num_channels": 0}, "num_channels must be positive"),
        ({"pyramid_channels": 0}, "pyramid_channels must be positive"),
        ({"segmentation_channels": 48}, "segmentation_channels must be a multiple of 32"),
        # wrong types
        ({"depths": "3393"}, "depths"),
        ({"hidden_sizes": [64, 128, 320, 512.5]}, "hidden_sizes"),
        ({"drop_path_rate": "0.1"}, "drop_path_rate"),
        ({"num_channels": 3.0}, "num_channels"),
        ({"pretraining": "SurgeNetXL"}, "pretraining"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(arguments, reason):
    with pytest.raises(StrictDataclassError, match=reason):
        SurgeNetConfig(**arguments)


def test_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match=r"'caformer_s18', 'convnextv2_tiny', 'pvt_v2_b2'.*got 'resnet50'"):
        SurgeNetConfig(backbone="resnet50")


def test_a_bad_file_is_refused_when_it_is_loaded(tmp_path):
    SurgeNetConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"activation": "gelu"}))
    with pytest.raises(StrictDataclassError, match="got 'gelu'"):
        AutoConfig.from_pretrained(tmp_path)


def test_out_features_and_out_indices_say_the_same():
    config = SurgeNetConfig(out_features=["stage1", "stage3"])
    assert config.out_indices == [1, 3]
    assert SurgeNetConfig(out_indices=[0, 4]).out_features == ["stem", "stage4"]
    assert SurgeNetConfig().out_features == ["stage4"]
    config.out_indices = [2]
    assert config.out_features == ["stage2"]


@pytest.mark.parametrize(
    "arguments", [{"out_features": ["stage5"]}, {"out_indices": [5]}, {"out_features": ["stem"], "out_indices": [1]}]
)
def test_unknown_or_contradictory_stages_are_refused(arguments):
    with pytest.raises(ValueError, match="out_"):
        SurgeNetConfig(**arguments)


def test_labels_by_name_or_by_number():
    config = SurgeNetConfig(id2label={0: "background", 1: "grasper"}, label2id={"background": 0, "grasper": 1})
    assert config.num_labels == 2
    assert SurgeNetConfig(num_labels=5).id2label == {i: f"LABEL_{i}" for i in range(5)}
