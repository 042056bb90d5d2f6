"""Tests of full DINO checkpoints in the authors' layout.

One more step with the loaded moments must equal the step of the original loop.
"""

import argparse
import json

import numpy as np
import pytest
import torch

from surgenet_hf import SurgeNetModel
from surgenet_hf.checkpoints.conversion import choose_normalization, to_original_state_dict
from surgenet_hf.checkpoints.facebook_dino import (
    backbone_config,
    load_dino_checkpoint,
    read_dino_checkpoint,
    save_dino_checkpoint,
)
from surgenet_hf.checkpoints.reading import file_sha256
from surgenet_hf.configuration_surgenet import BACKBONES
from surgenet_hf.pretraining.arguments import DinoConfig, crop_settings, dino_settings
from surgenet_hf.pretraining.dino.method import DinoModel, parameter_groups
from surgenet_hf.pretraining.start import as_dino_training
from tests.checkpoints.files import GOLDENS, OriginalTraining, save_content, tiny

ARGS = {"lr": 5e-4, "epochs": 50, "warmup_epochs": 10}


def build(path) -> tuple[DinoModel, torch.optim.Optimizer]:
    """Return a new model and optimizer with the sizes of a file, using only the file."""
    checkpoint = read_dino_checkpoint(path)
    torch.manual_seed(1)
    model = DinoModel(SurgeNetModel(backbone_config(checkpoint)), DinoConfig(**dino_settings(checkpoint)))
    return model, torch.optim.AdamW(parameter_groups(model.student))


def load(path, model: DinoModel, optimizer=None):
    return load_dino_checkpoint(read_dino_checkpoint(path), as_dino_training(model, optimizer))


def step(model: DinoModel, optimizer, gradients: dict[str, torch.Tensor]):
    """Take one optimizer step with gradients in the original layout."""
    for ours, parameter in model.student.named_parameters():
        name, _ = model.student.original_names()[ours]
        parameter.grad = gradients[name].reshape(parameter.shape) if name in gradients else None
    optimizer.step()


def assert_equal_networks(network, tensors: dict[str, torch.Tensor], tolerance=0.0):
    """Assert that a network equals tensors in the original layout."""
    found = {f"backbone.{name}": t for name, t in to_original_state_dict(network.backbone).items()}
    found |= {f"head.{name}": t for name, t in network.head.state_dict().items()}
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, tensors[name].detach(), rtol=0, atol=tolerance, msg=name)


@pytest.fixture
def training():
    return OriginalTraining(tiny())


def save(training: OriginalTraining, path, numpy1=True, **args):
    content = training.content(**{**ARGS, **args})
    save_content(path, content, numpy1)
    return content


@pytest.mark.slow
@pytest.mark.parametrize(("norm_last_layer", "batch_norm"), [(True, False), (False, False), (False, True)])
def test_one_more_step_is_the_originals(backbone, norm_last_layer, batch_norm, tmp_path):
    training = OriginalTraining(tiny(backbone), norm_last_layer, batch_norm)
    for i in range(3):
        training.step(training.gradients(i, frozen=i == 0))
    content = save(training, tmp_path / "full.pth")
    model, optimizer = build(tmp_path / "full.pth")
    assert model.config.norm_last_layer is norm_last_layer
    report = load(tmp_path / "full.pth", model, optimizer)

    assert_equal_networks(model.student, training.student)
    assert_equal_networks(model.teacher, content["teacher"])
    assert torch.equal(model.loss.center, content["dino_loss"]["center"])
    assert report.epoch == 3
    assert report.omitted == []
    steps = {name: optimizer.state[parameter]["step"].item() for name, parameter in trained(model).items()}
    assert set(steps.values()) == {2, 3}
    assert {name for name, count in steps.items() if count == 2} == {n for n in steps if "last_layer" in n}

    gradients = training.gradients(3)
    training.step(gradients)
    step(model, optimizer, gradients)
    assert_equal_networks(model.student, training.student, tolerance=1e-6)


def trained(model: DinoModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.student.named_parameters() if parameter.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_frozen_last_layer_has_no_moments_yet(backbone, norm_last_layer, tmp_path):
    training = OriginalTraining(tiny(backbone), norm_last_layer)
    for i in range(2):
        training.step(training.gradients(i, frozen=True))
    save(training, tmp_path / "full.pth")
    model, optimizer = build(tmp_path / "full.pth")
    report = load(tmp_path / "full.pth", model, optimizer)
    assert model.student.head.last_layer.weight_v not in optimizer.state
    (phrase,) = report.omitted
    assert "head.last_layer.weight_v" in phrase
    assert ("weight_g" in phrase) is not norm_last_layer
    gradients = training.gradients(2)
    training.step(gradients)
    step(model, optimizer, gradients)
    assert_equal_networks(model.student, training.student, tolerance=1e-6)


def test_moments_of_before_are_gone(training, tmp_path):
    """Test that loading clears the moments of an optimizer that has already taken steps."""
    training.step(training.gradients(0, frozen=True))
    save(training, tmp_path / "full.pth")
    model, optimizer = build(tmp_path / "full.pth")
    step(model, optimizer, training.gradients(5))
    load(tmp_path / "full.pth", model, optimizer)
    assert model.student.head.last_layer.weight_v not in optimizer.state
    assert all(state["step"] == 1 for state in optimizer.state.values())


@pytest.mark.slow
@pytest.mark.parametrize(("norm_last_layer", "batch_norm"), [(True, False), (False, True)])
def test_what_we_write_is_what_the_original_wrote(backbone, norm_last_layer, batch_norm, tmp_path):
    """Test that loading and saving reproduces the original file bit for bit.

    Names, order, shapes, parameter groups, and moments must match. The original loop must be able to resume from
    the result.
    """
    training = OriginalTraining(tiny(backbone), norm_last_layer, batch_norm)
    for i in range(2):
        training.step(training.gradients(i, frozen=i == 0))
    content = save(training, tmp_path / "full.pth", numpy1=False)
    model, optimizer = build(tmp_path / "full.pth")
    load(tmp_path / "full.pth", model, optimizer)
    save_dino_checkpoint(tmp_path / "new" / "ours.pth", as_dino_training(model, optimizer), 3, ARGS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ours.pth"]
    with torch.serialization.safe_globals([argparse.Namespace]):
        ours = torch.load(tmp_path / "new" / "ours.pth")

    assert list(ours) == list(content)
    assert ours["args"] == content["args"]
    assert ours["epoch"] == 3
    assert torch.equal(ours["dino_loss"]["center"], content["dino_loss"]["center"])
    wrapper = "module." if batch_norm else ""  # the original wraps its teacher only if it has batch normalization
    for network, prefix in (("student", ""), ("teacher", wrapper)):
        assert list(ours[network]) == [prefix + name for name in content[network]]
        for found, expected in zip(ours[network].values(), content[network].values(), strict=True):
            assert found.shape == expected.shape
            assert torch.equal(found, expected)
    again = OriginalTraining(tiny(backbone), norm_last_layer, batch_norm)
    for name, parameter in again.parameters.items():
        parameter.data = ours["student"][f"module.{name}"].clone()
    again.optimizer.load_state_dict(ours["optimizer"])
    found, expected = again.optimizer.state_dict(), content["optimizer"]
    assert found["state"].keys() == expected["state"].keys()
    for position, moments in expected["state"].items():
        assert moments.keys() == found["state"][position].keys()
        assert all(torch.equal(moments[key], found["state"][position][key]) for key in moments)
    for found_group, expected_group in zip(found["param_groups"], expected["param_groups"], strict=True):
        assert {key: found_group[key] for key in ours["optimizer"]["param_groups"][0]} == {
            key: expected_group[key] for key in ours["optimizer"]["param_groups"][0]
        }
    gradients = training.gradients(9)
    training.step(gradients)
    again.step(gradients)
    for name, parameter in training.parameters.items():
        assert torch.equal(parameter, again.parameters[name])


@pytest.mark.parametrize("golden", ["caformer_s18", "caformer_s18_imagenet", "convnextv2_tiny", "pvt_v2_b2"])
def test_order_of_the_published_depths(golden, tmp_path):
    """Test that parameters are written in the order of the original code, which made the goldens."""
    manifest = json.loads((GOLDENS / "models_manifest.json").read_text())[f"{golden}/classification"]
    backbone = golden.removesuffix("_imagenet")
    config = tiny(backbone, activation="star_relu" if backbone != golden else None)
    config.depths = BACKBONES[backbone]["depths"]
    model = DinoModel(SurgeNetModel(config), DinoConfig(out_dim=4, hidden_dim=4, bottleneck_dim=4))
    save_dino_checkpoint(
        tmp_path / "full.pth", as_dino_training(model, torch.optim.AdamW(parameter_groups(model.student))), 0, {}
    )
    checkpoint = read_dino_checkpoint(tmp_path / "full.pth")
    names = [name.removeprefix("backbone.") for name in checkpoint.student if name.startswith("backbone.")]
    assert names == [name for name in manifest if not name.startswith("head.")]
    found = backbone_config(checkpoint)
    for name in ("backbone", "activation", "depths", "hidden_sizes"):
        assert getattr(found, name) == getattr(config, name)


def test_all_settings_come_from_the_file(tmp_path):
    training = OriginalTraining(tiny(), norm_last_layer=False)
    training.step(training.gradients(0))
    args = {
        "arch": "caformer",
        "out_dim": 65_536,  # the tensors define the size
        "momentum_teacher": np.float64(0.9995),
        "drop_path_rate": 0.1,
        "global_crops_scale": (0.4, 1.0),
        "local_crops_scale": [0.05, np.float64(0.25)],
        "local_crops_number": 10,
        "data_mean": [0.46888983, 0.29536288, 0.28712815],
        "data_std": [0.24689102, 0.21034359, 0.21188641],
    }
    save(training, tmp_path / "full.pth", **args)
    assert b"numpy.core.multiarray" in (tmp_path / "full.pth").read_bytes()
    checkpoint = read_dino_checkpoint(tmp_path / "full.pth")
    assert dino_settings(checkpoint) == {
        **ARGS,
        "momentum_teacher": 0.9995,
        "out_dim": 12,
        "bottleneck_dim": 8,
        "hidden_dim": 16,
        "head_layers": 3,
        "use_bn_in_head": False,
        "norm_last_layer": False,
    }
    assert type(dino_settings(checkpoint)["momentum_teacher"]) is float
    assert crop_settings(checkpoint) == {
        "global_crops_scale": [0.4, 1.0],
        "local_crops_scale": [0.05, 0.25],
        "local_crops_number": 10,
    }
    config = backbone_config(checkpoint)
    assert config.drop_path_rate == 0.1
    assert config.pretraining["name"] == "unknown"
    assert config.pretraining["source_sha256"] == file_sha256(tmp_path / "full.pth")
    assert choose_normalization(checkpoint.backbone, config)[0] == "surgenet"


def test_provenance_travels(tmp_path):
    model = DinoModel(SurgeNetModel(tiny()), DinoConfig(out_dim=4, hidden_dim=4, bottleneck_dim=4))
    pretraining = {"name": "ImageNet1k, continued on ours", "data": ["ours"], "normalization": "imagenet"}
    optimizer = torch.optim.AdamW(parameter_groups(model.student))
    save_dino_checkpoint(tmp_path / "full.pth", as_dino_training(model, optimizer), 2, {}, pretraining, "imagenet")
    checkpoint = read_dino_checkpoint(tmp_path / "full.pth")
    config = backbone_config(checkpoint)
    assert config.pretraining == pretraining
    assert choose_normalization(checkpoint.backbone, config)[0] == "imagenet"


class Odd(str):
    """String subclass that is pickled as a class."""


def test_any_arguments_can_be_read_again(tmp_path):
    model = DinoModel(SurgeNetModel(tiny()), DinoConfig(out_dim=4, hidden_dim=4, bottleneck_dim=4))
    optimizer = torch.optim.AdamW(parameter_groups(model.student), lr=np.float64(0.1))
    args = {"output_dir": tmp_path, "kind": Odd("steps"), "sizes": (1, np.int64(2)), "seed": None}
    save_dino_checkpoint(tmp_path / "full.pth", as_dino_training(model, optimizer), 0, args)
    found = read_dino_checkpoint(tmp_path / "full.pth")
    assert found.args == {"output_dir": str(tmp_path), "kind": "steps", "sizes": (1, 2), "seed": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("optimizer"), "no optimizer state"),
        (lambda content: content["optimizer"]["state"].clear(), "no optimizer state"),
        (lambda content: content["optimizer"]["param_groups"][0]["params"].pop(), "groups have"),
        (lambda content: content["optimizer"]["state"][0].pop("exp_avg"), "state 0 is not the AdamW state"),
        (
            lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
            r"exp_avg of .* has shape \(2,\)",
        ),
        (
            lambda content: content["optimizer"]["state"][1]["exp_avg_sq"].fill_(np.nan),
            "contain NaN .* is exp_avg_sq of",
        ),
        (lambda content: content["optimizer"]["state"].update({0: [1]}), "state 0 is not the AdamW state"),
        (lambda content: content["optimizer"]["state"][0].update(exp_avg=3), "exp_avg of .* is not a tensor"),
        (lambda content: content["optimizer"]["state"][0].update(step=torch.ones(2)), "step of .* is not a number"),
        (
            lambda content: content["optimizer"]["state"][0].update(step=torch.tensor(np.nan)),
            "step of .* is not a num",
        ),
        (
            lambda content: content["optimizer"]["state"][0].update(step=torch.tensor(-5.0)),
            "step of .* is not a number",
        ),
        (lambda content: content["optimizer"]["state"][1]["exp_avg_sq"].fill_(-1), "exp_avg_sq of .* negative values"),
        (lambda content: content["optimizer"]["param_groups"][0].update(params=3), "do not list the positions"),
        (lambda content: content["optimizer"]["param_groups"][0].update(betas=(0.9,)), "options are invalid"),
        (
            lambda content: content["optimizer"]["param_groups"][0].update(amsgrad=True),
            "state 0 is not the AdamW state",
        ),
    ],
)
def test_unusable_moments_are_reported(change, reason, training, tmp_path):
    training.step(training.gradients(0))
    content = training.content(**ARGS, norm_last_layer=True)
    content["fp16_scaler"] = {"scale": 65536.0}
    change(content)
    save_content(tmp_path / "full.pth", content)
    model, optimizer = build(tmp_path / "full.pth")
    report = load(tmp_path / "full.pth", model, optimizer)
    assert_equal_networks(model.student, training.student)
    assert not optimizer.state
    assert "fp16_scaler: not used here" in report.omitted
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(str(report))


@pytest.mark.slow
def test_old_torch_counts_steps_in_integers(training, tmp_path):
    training.step(training.gradients(0))
    content = training.content(**ARGS)
    for moments in content["optimizer"]["state"].values():
        moments["step"] = int(moments["step"])
    save_content(tmp_path / "full.pth", content)
    model, optimizer = build(tmp_path / "full.pth")
    load(tmp_path / "full.pth", model, optimizer)
    gradients = training.gradients(1)
    training.step(gradients)
    step(model, optimizer, gradients)
    assert_equal_networks(model.student, training.student, tolerance=1e-6)


@pytest.mark.slow
def test_the_file_may_go(training, tmp_path):
    """Test that loaded tensors do not reside in the memory-mapped file."""
    training.step(training.gradients(0))
    save(training, tmp_path / "full.pth")
    model, optimizer = build(tmp_path / "full.pth")
    load(tmp_path / "full.pth", model, optimizer)
    before = (tmp_path / "full.pth").read_bytes()
    step(model, optimizer, training.gradients(1))
    (tmp_path / "full.pth").write_bytes(b"\0" * len(before))
    gradients = training.gradients(2)
    training.step(training.gradients(1))
    training.step(gradients)
    step(model, optimizer, gradients)
    assert_equal_networks(model.student, training.student, tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["student"].pop("module.backbone.norm.weight"), r"student: backbone\.norm\.weight is missing"),
        (lambda c: c["teacher"].update({"backbone.x": torch.ones(1)}), r"teacher: backbone\.x is unexpected"),
        (
            lambda c: c["teacher"].update({"backbone.norm.bias": torch.ones(3)}),
            r"teacher: backbone\.norm\.bias is \(3,\), expected \(64,\)",
        ),
        (
            lambda c: c["teacher"].update({"backbone.norm.bias": torch.ones(64, dtype=torch.int64)}),
            r"teacher: backbone\.norm\.bias has dtype torch\.int64, expected torch\.float32",
        ),
        (lambda c: c["dino_loss"].update(center=torch.ones(1, 5)), r"dino_loss: center is \(1, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused_whole(change, message, tmp_path):
    training = OriginalTraining(tiny())
    save_content(tmp_path / "good.pth", training.content(**ARGS))
    model, optimizer = build(tmp_path / "good.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = training.content(**ARGS)
    change(content)
    save_content(tmp_path / "bad.pth", content)
    with pytest.raises(ValueError, match=message + r"[\s\S]*Nothing was loaded"):
        load(tmp_path / "bad.pth", model, optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    training = OriginalTraining(tiny())
    save_content(tmp_path / "good.pth", training.content(**ARGS))
    model, _ = build(tmp_path / "good.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = training.content(**ARGS)
    # 1e300 is finite in the file's float64, but not in the model's float32
    content["student"]["module.head.mlp.0.bias"] = torch.full((16,), value, dtype=torch.float64)
    save_content(tmp_path / "bad.pth", content)
    with pytest.raises(ValueError, match=r"bad\.pth: 1 of .* NaN .* is student\.head\.mlp\.0\.bias"):
        load(tmp_path / "bad.pth", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _rename_block(content):
    """Rename the teacher's only block of stage 0 to follow 99,999,999 others."""
    for name in [name for name in content["teacher"] if name.startswith("backbone.stages.0.")]:
        content["teacher"][name.replace("stages.0.0", "stages.0.99999999")] = content["teacher"].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["teacher"].update({"backbone.downsample_layers.0.conv.weight": torch.ones(10**6, 1, 1, 1)}),
            "does not match caformer_s18",
        ),
        (
            lambda c: c["teacher"].update({"backbone.downsample_layers.0.conv.weight": torch.empty(2**60, 0, 1, 1)}),
            "contains no complete caformer_s18",
        ),
        (_rename_block, "contains no complete caformer_s18"),
        (
            lambda c: c["student"].update({"module.head.last_layer.weight_v": torch.ones(10**6, 1)}),
            "do not match each other",
        ),
        (
            lambda c: c["student"].update({"module.head.last_layer.weight_v": torch.ones(())}),
            "do not match each other",
        ),
        (lambda c: c["student"].update({"module.head.mlp.0.weight": torch.ones(10**6, 1)}), "do not match each other"),
        (lambda c: setattr(c["args"], "drop_path_rate", [0.1]), "drop_path_rate in its args is .*int or float"),
        (lambda c: setattr(c["args"], "epochs", "x"), "epochs in its args is 'x', expected int"),
        (lambda c: setattr(c["args"], "local_crops_number", None), "local_crops_number in its args"),
        (lambda c: setattr(c["args"], "epochs", True), "epochs in its args is 'True', expected int"),
        (lambda c: setattr(c["args"], "epochs", 10**7), "in its args, epochs must be at most 100,000, got 10,000,000"),
        (lambda c: setattr(c["args"], "lr", np.nan), "in its args, lr must be finite"),
        (lambda c: setattr(c["args"], "student_temp", np.inf), "in its args, student_temp must be finite"),
        (lambda c: setattr(c["args"], "local_crops_number", 10**6), "in its args, local_crops_number must be at most"),
        (lambda c: setattr(c["args"], "global_crops_size", 50_000), "in its args, global_crops_size must be at most"),
        (
            lambda c: setattr(c["args"], "global_crops_scale", ("a", None)),
            "in its args, global_crops_scale must be two",
        ),
    ],
)
def test_unusable_sizes_and_settings_are_refused(change, message, tmp_path):
    content = OriginalTraining(tiny()).content(**ARGS)
    change(content)
    save_content(tmp_path / "bad.pth", content)
    checkpoint = read_dino_checkpoint(tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=rf"(?s)bad\.pth.*{message}"):
        backbone_config(checkpoint), dino_settings(checkpoint), crop_settings(checkpoint)


@pytest.mark.parametrize(
    ("config", "head", "message"),
    [
        ({}, {"out_dim": 6}, r"pass out_dim=12 \(the model has 6\)$"),
        ({}, {"head_layers": 2, "use_bn_in_head": True}, "head_layers=3 .*use_bn_in_head=False"),
        ({}, {"norm_last_layer": False}, "norm_last_layer=True"),
        ({"backbone": "convnextv2_tiny"}, {}, "backbone='caformer_s18' .the model has 'convnextv2_tiny'"),
        ({"activation": "star_relu"}, {}, "activation='relu'"),
        ({"depths": [1, 1, 3, 1]}, {}, r"depths=\[1, 1, 2, 1\]"),
    ],
)
def test_other_sizes_are_refused_with_what_to_pass(config, head, message, tmp_path):
    training = OriginalTraining(tiny())
    training.step(training.gradients(0))
    save(training, tmp_path / "full.pth")
    network = tiny(config.get("backbone", "caformer_s18"))
    for name, value in config.items():
        setattr(network, name, value)
    sizes = {"out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8, **head}
    model = DinoModel(SurgeNetModel(network), DinoConfig(**sizes))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "full.pth", model)


def test_other_files_are_refused(tmp_path):
    training = OriginalTraining(tiny())
    content = training.content()
    torch.save(content["teacher"], tmp_path / "teacher.pth")
    with pytest.raises(ValueError, match=r"not a full DINO checkpoint.*surgenet convert"):
        read_dino_checkpoint(tmp_path / "teacher.pth")
    del content["teacher"], content["dino_loss"]
    torch.save(content, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"lacks teacher, dino_loss\.center"):
        read_dino_checkpoint(tmp_path / "half.pth")
    vit = training.content() | {"teacher": {"backbone.cls_token": torch.ones(1)}}
    save_content(tmp_path / "vit.pth", vit)
    with pytest.raises(ValueError, match="vision transformer"):
        backbone_config(read_dino_checkpoint(tmp_path / "vit.pth"))


@pytest.mark.parametrize("epoch", [-1, True, 2.0, None])
def test_epoch_is_a_number_of_epochs(epoch, tmp_path):
    save_content(tmp_path / "full.pth", OriginalTraining(tiny()).content(**ARGS) | {"epoch": epoch})
    with pytest.raises(ValueError, match=r"full\.pth lacks a valid epoch"):
        read_dino_checkpoint(tmp_path / "full.pth")


def test_default_warm_up_may_be_longer_than_the_training_of_a_file(tmp_path):
    """Test that the default warm-up may exceed the training length of a file.

    The command line can shorten the warm-up.
    """
    content = OriginalTraining(tiny()).content(epochs=3)
    save_content(tmp_path / "full.pth", content)
    assert dino_settings(read_dino_checkpoint(tmp_path / "full.pth"))["epochs"] == 3


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    model = DinoModel(SurgeNetModel(tiny()), DinoConfig(out_dim=4, hidden_dim=4, bottleneck_dim=4))
    optimizer = torch.optim.AdamW(parameter_groups(model.student))
    (tmp_path / "full.pth").write_bytes(b"old")

    def save(content, path):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        save_dino_checkpoint(tmp_path / "full.pth", as_dino_training(model, optimizer), 1, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"full.pth": b"old"}
