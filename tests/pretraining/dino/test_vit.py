import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from surgenet_hf.checkpoints.facebook_dino import DinoCheckpoint, backbone_config
from surgenet_hf.errors import UserError
from surgenet_hf.pretraining import arguments
from surgenet_hf.pretraining.arguments import CropConfig, DinoConfig, PretrainingArguments
from surgenet_hf.pretraining.dino.method import build_optimizer, clip_gradients, compute_loss
from surgenet_hf.pretraining.dino.vit import ARCHITECTURE
from surgenet_hf.pretraining.start import build_backbone, build_model

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
CROPS = CropConfig(global_crops_size=48, local_crops_size=32, local_crops_number=1)
HEAD = DinoConfig(out_dim=12, hidden_dim=16, bottleneck_dim=8)


def vit(**changes) -> Dinov2WithRegistersModel:
    torch.manual_seed(0)
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**{**ARCHITECTURE, **SIZES, "image_size": 48, **changes})
    )


def start(folder, **options):
    return build_model(PretrainingArguments("out", str(folder), **options), HEAD, CROPS, torch.device("cpu"))


def images(batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, size, size, generator=generator) for size in CROPS.sizes]


def test_random_weights_are_initialized_like_the_original(monkeypatch):
    """Test that linear layers, tokens, and positions have a standard deviation of 0.02, without biases.

    The original leaves the patch embedding, a convolution, at the initialization of torch.
    """
    monkeypatch.setitem(arguments.VITS, "vit_small_patch16", SIZES)
    model = build_backbone(PretrainingArguments("out", backbone="vit_small_patch16"), CROPS, None)
    assert model.config.image_size == 48  # that of the global crops
    assert model.config.drop_path_rate == 0.1
    assert model.embeddings.position_embeddings.shape == (1, 10, 48)
    patches = model.embeddings.patch_embeddings.projection
    for parameter in (patches.weight, patches.bias):
        assert 0.9 / math.sqrt(768) < parameter.abs().max() <= 1 / math.sqrt(768)
    for name, parameter in model.named_parameters():
        if name.endswith(("lambda1", "norm1.weight", "norm2.weight", "layernorm.weight")):
            assert (parameter == 1).all()
        elif name.endswith((".bias", "mask_token")) and "projection" not in name:
            assert (parameter == 0).all()
        elif parameter.numel() > 1000 and "projection" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)


def test_start_from_a_folder_and_saved_model(tmp_path):
    source = vit()
    source.config.pretraining = {"name": "mine", "normalization": "imagenet"}
    source.save_pretrained(tmp_path / "source")
    model = start(tmp_path / "source", drop_path_rate=0.2)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.student.backbone.state_dict()[name], tensor)
        assert torch.equal(model.teacher.backbone.state_dict()[name], tensor)
    student, teacher = (
        [getattr(layer.drop_path, "drop_prob", 0) for layer in network.backbone.encoder.layer]
        for network in (model.student, model.teacher)
    )
    assert (student, teacher) == ([0, pytest.approx(0.2)], [0, 0])

    model.teacher.backbone.save_pretrained(tmp_path / "saved")
    saved = AutoModel.from_pretrained(tmp_path / "saved")
    assert type(saved) is Dinov2WithRegistersModel
    assert (saved.config.drop_path_rate, saved.config.pretraining["name"]) == (0, "mine")
    # at the size of the global crops, the saved model computes exactly what the teacher does
    pixels = images()[0]
    with torch.no_grad():
        assert torch.equal(saved.eval()(pixels).pooler_output, model.teacher.backbone(pixels).pooler_output)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    vit().save_pretrained(tmp_path)
    gradients = []
    for checkpointing in (False, True):
        model = start(tmp_path, gradient_checkpointing=checkpointing, drop_path_rate=0.5)
        torch.manual_seed(0)
        compute_loss(model, images(), 0.04).loss.backward()
        gradients.append([p.grad for p in model.student.parameters() if p.grad is not None])
    assert len(gradients[0]) == sum(len(group["params"]) for group in build_optimizer(model.student).param_groups)
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_groups_of_parameters_are_clipped_as_one_tensor():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(4)]
    for parameter, gradient in zip(parameters, ([0.0, 2.0], [2.0, 0.0], [1.0, 0.0], [0.0, 9.0]), strict=True):
        parameter.grad = torch.tensor(gradient)
    norms = clip_gradients([parameters[3], *parameters[:3]], 1.5, [parameters[:3]])
    assert norms.tolist() == [3, 3, 3, 9]
    found = [parameter.grad.sum().item() for parameter in parameters]
    assert found == [pytest.approx(value) for value in (1, 1, 0.5, 1.5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_register_tokens": 4}, "has num_register_tokens 4, but DINO pretraining supports only caformer_s18, "),
        ({"patch_size": 14, "layer_norm_eps": 1e-5}, "has patch_size 14, layer_norm_eps 1e-05, but"),
        ({"layerscale_value": 0.1}, "has LayerScale, like DINOv2, but"),
    ],
)
def test_other_vision_transformers_are_refused(tmp_path, changes, message):
    vit(**changes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        start(tmp_path)


def test_other_families_are_refused(tmp_path):
    Dinov2Model(Dinov2Config(**SIZES, patch_size=16, image_size=48)).save_pretrained(tmp_path)
    expected = r"is a dinov2, but .* DINOv1 .*--backbone vit_small_patch16 or vit_base_patch16 for random weights"
    with pytest.raises(UserError, match=expected):
        start(tmp_path)


def test_full_dino_checkpoints_of_vision_transformers_are_refused():
    weights = {"backbone.cls_token": torch.zeros(1, 1, 48)}
    checkpoint = DinoCheckpoint(Path("checkpoint.pth"), "0" * 64, weights, weights, torch.zeros(1, 4), 1, {})
    with pytest.raises(UserError, match="of a vision transformer, from which a training cannot be resumed"):
        backbone_config(checkpoint)


@pytest.mark.parametrize("option", ["channels_last", "export_dino_checkpoint"])
def test_options_that_vision_transformers_do_not_have(tmp_path, option):
    vit().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"--{option} is not possible with a vision transformer: omit it"):
        start(tmp_path, **{option: True})


def test_crops_of_broken_patches_are_refused(tmp_path):
    vit().save_pretrained(tmp_path)
    args, crops = PretrainingArguments("out", str(tmp_path)), CropConfig(global_crops_size=100, local_crops_size=40)
    with pytest.raises(UserError, match=r"got crops of 40 and 100 pixels, but .* as multiples of 16"):
        build_backbone(args, crops, None)
    build_backbone(args, CropConfig(global_crops_size=96, local_crops_size=40, local_crops_number=0), None)
