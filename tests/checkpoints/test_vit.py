"""Tests of vision transformers: numbers of the original code, both directions, and files that are refused."""

import math

import numpy as np
import pytest
import torch

from surgenet_hf.checkpoints.catalog import CATALOG
from surgenet_hf.checkpoints.vit import build_vit, describe_vit, to_original_vit, vit_config
from surgenet_hf.errors import UserError
from tests.checkpoints.files import GOLDENS, rope_periods, small_vit, vit_manifest
from tests.goldens import fill

SMALL = ("dinov1_vits16", "dinov2_vits14", "dinov2_vitb14", "dinov3_vits16")


def config_of(architecture: str, layers=2, width=64):
    family = architecture[:6]
    patch = 14 if family == "dinov2" else 16
    registers = 4 if architecture == "dinov2_vits14" else 0
    return vit_config(family, layers, width, image_size=4 * patch, registers=registers)


def test_counts_of_the_catalog():
    """Test that the catalog has the numbers of tensors and elements of the original networks."""
    counted = {
        name: (len(shapes), sum(math.prod(shape) for shape in shapes.values()))
        for name, shapes in vit_manifest().items()
    }
    assert {entry.backbone: (entry.tensors, entry.elements) for entry in CATALOG if entry.tensors} == counted
    assert counted["dinov3_vitl16"] == (343, 303_150_096)


@pytest.mark.slow
@pytest.mark.parametrize("name", vit_manifest())
def test_goldens(name):
    """Test the numbers of the original code and the way back, at full size."""
    shapes = vit_manifest()[name]
    tensors = {
        key: torch.from_numpy(fill.parameter(f"surgenet_vit/{name}/{key}", shape)) for key, shape in shapes.items()
    }
    if "rope_embed.periods" in tensors:
        tensors["rope_embed.periods"] = rope_periods()
    assert describe_vit(tensors, "file")["backbone"] == name
    model = build_vit(tensors)
    back = to_original_vit(model)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    del back, tensors
    goldens = np.load(GOLDENS / "vit.npz")
    first = 1 + model.config.num_register_tokens
    norm = model.norm if name.startswith("dinov3") else model.layernorm
    sizes = sorted({key.split("/")[1] for key in goldens if key.startswith(f"{name}/")})
    for size in sizes[-1:] if "vitl" in name else sizes:  # for ViT-L the smaller one, which takes less time
        expected = {
            key.split("/")[2]: torch.from_numpy(goldens[key]) for key in goldens if key.startswith(f"{name}/{size}/")
        }
        height, width = map(int, size.split("x"))
        values = fill.uniform(f"surgenet_vit/image/{size}", (len(expected["cls"]), 3, height, width))
        with torch.no_grad():
            output = model(torch.from_numpy(((values - 0.5) * 4).astype(np.float32)), output_hidden_states=True)
            tokens = output.last_hidden_state
            found = {
                "cls": tokens[:, 0],
                "registers": tokens[:, 1:first, ::8],
                "patches": tokens[:, first:][:, ::7, ::8],
            }
            for key in expected.keys() - found.keys():
                block = norm(output.hidden_states[int(key.removeprefix("block"))])
                found[key] = block[:, first:][:, ::7, ::16]
        for key, tensor in expected.items():
            assert found[key].shape == tensor.shape
            if tensor.numel():  # some have no register tokens
                torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back(name, dtype, tmp_path):
    tensors = {key: t if "periods" in key else t.to(dtype) for key, t in small_vit(name).items()}
    model = build_vit(tensors, config_of(name))
    assert model.dtype == dtype
    assert not model.training
    model.save_pretrained(tmp_path)
    for saved in (model, type(model).from_pretrained(tmp_path)):
        back = to_original_vit(saved)
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[key], tensors[key]) and back[key].dtype == tensors[key].dtype for key in tensors)


def test_layer_scale_of_dinov3_has_two_names():
    tensors = small_vit("dinov3_vits16")
    expected = build_vit(tensors, config_of("dinov3_vits16")).state_dict()
    renamed = {key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): t for key, t in tensors.items()}
    model = build_vit(renamed, config_of("dinov3_vits16"))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    assert to_original_vit(model).keys() == renamed.keys()
    del renamed["blocks.1.ls2.gamma"]
    renamed["blocks.1.gamma_2"] = tensors["blocks.1.gamma_2"]
    with pytest.raises(UserError, match=r"(?s)1 missing: blocks\.1\.ls2\.gamma.*1 unexpected: blocks\.1\.gamma_2"):
        build_vit(renamed, config_of("dinov3_vits16"))


def test_periods_of_dinov3_are_checked():
    exact = small_vit("dinov3_vits16") | {"rope_embed.periods": 100 ** (torch.arange(16) / 16)}
    back = to_original_vit(build_vit(exact, config_of("dinov3_vits16")))
    assert torch.equal(back["rope_embed.periods"], exact["rope_embed.periods"])
    exact["rope_embed.periods"] = 50 ** (torch.arange(16) / 16)
    with pytest.raises(UserError, match="rotary embeddings with periods"):
        build_vit(exact, config_of("dinov3_vits16"))


def test_training_settings_of_dinov3():
    """Test that positions are not random in training, which is transformers' default."""
    model = build_vit(small_vit("dinov3_vits16"), config_of("dinov3_vits16")).train()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, second = model(images).last_hidden_state, model(images).last_hidden_state
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dinov2_vits14", ("drop", "blocks.1.norm1.weight"), r"1 missing: blocks\.1\.norm1\.weight"),
        ("dinov2_vits14", ("drop", "register_tokens"), "1 missing: register_tokens"),
        ("dinov1_vits16", ("head.weight", torch.ones(3, 64)), r"1 unexpected: head\.weight"),
        ("dinov3_vits16", ("blocks.0.attn.qkv.bias_mask", torch.ones(192)), "1 unexpected: .*bias_mask"),
        ("dinov3_vits16", ("drop", "blocks.0.attn.qkv.bias"), r"1 missing: blocks\.0\.attn\.qkv\.bias"),
        ("dinov1_vits16", ("norm.bias", torch.ones(64, dtype=torch.int64)), r"1 with an integer dtype: norm\.bias"),
        ("dinov1_vits16", ("norm.bias", torch.full((64,), torch.nan)), "NaN or infinite"),
        ("dinov1_vits16", ("pos_embed", torch.ones(1, 26, 64)), r"pos_embed: found \(1, 26, 64\), expected \(1, 17"),
        ("dinov3_vits16", ("storage_tokens", torch.ones(1, 4, 64)), "Meta's own DINOv3"),
        ("dinov2_vits14", ("class_head.weight", torch.ones(3, 64)), "EoMT: 1 tensors .* phase tokens, which no model"),
    ],
)
def test_what_is_refused(name, change, message):
    tensors = small_vit(name)
    if change[0] == "drop":
        del tensors[change[1]]
    else:
        tensors[change[0]] = change[1]
    with pytest.raises(UserError, match=message):
        build_vit(tensors, config_of(name))


def test_sizes_without_a_config():
    """Test that a file without its last blocks is not taken for a smaller network."""
    tensors = small_vit("dinov2_vits14", layers=11, width=384, grid=24)
    with pytest.raises(UserError, match="DINOv2 vision transformer with 11 blocks of 384 channels, expected ViT-S"):
        build_vit(tensors)
    with pytest.raises(UserError, match="contains a DINOv3 vision transformer, but the config is for a dinov2"):
        build_vit(small_vit("dinov3_vits16"), config_of("dinov2_vits14"))


def test_dinov1_has_no_place_for_layer_scale():
    model = build_vit(small_vit("dinov1_vits16"), config_of("dinov1_vits16"))
    with torch.no_grad():
        model.encoder.layer[0].layer_scale1.lambda1.mul_(2)
    with pytest.raises(UserError, match="1 tensors of the model have no place in DINOv1"):
        to_original_vit(model)
