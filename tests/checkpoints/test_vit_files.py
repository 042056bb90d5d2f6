"""Tests of weight files of vision transformers: how they are wrapped, what is recorded, and what is refused."""

import json
from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from surgenet_hf import convert_checkpoint
from surgenet_hf.checkpoints.catalog import NORMALIZATIONS, leakage_note
from surgenet_hf.checkpoints.conversion import to_original_state_dict
from surgenet_hf.checkpoints.reading import file_sha256
from surgenet_hf.cli import convert, inspect
from surgenet_hf.errors import UserError
from tests.checkpoints.files import tiny_vit

pytestmark = pytest.mark.usefixtures("tiny_backbones")
HEADS = {
    "dino_head.mlp.0.weight": torch.ones(4, 64),
    "dino_head.last_layer.weight": torch.ones(3, 4),
    "ibot_head.mlp.0.weight": torch.ones(4, 64),
}


def save(tmp_path, content, name="file.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("wrapping", ["plain", "teacher with heads", "student of DDP", "Lightning", "dinov1 head"])
def test_wrapped_files(wrapping, tmp_path, caplog):
    tensors = tiny_vit("dinov1_vits16" if wrapping == "dinov1 head" else "dinov3_vits16")
    content = {
        "plain": tensors,
        "teacher with heads": {"teacher": prefixed("backbone.", tensors) | HEADS, "iteration": 7},
        "student of DDP": {"teacher": {}, "student": prefixed("module.backbone.", tensors)},
        "Lightning": {"state_dict": prefixed("model.", tensors), "epoch": 3},
        "dinov1 head": prefixed("backbone.", tensors) | {"head.last_layer.weight_v": torch.ones(3, 4)},
    }[wrapping]
    network = "student" if wrapping == "student of DDP" else "teacher"
    model = convert_checkpoint(save(tmp_path, content), network=network)
    back = to_original_state_dict(model)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    heads = {"teacher with heads": "dino_head (2 tensors), ibot_head (1 tensors)", "dinov1 head": "head (1 tensors)"}
    assert caplog.text.count("Omitted heads") == (wrapping in heads)
    assert heads.get(wrapping, "") in caplog.text


def test_converted_folder(tmp_path, capsys):
    """Test what the command writes and prints, and that the folder needs only transformers."""
    path = save(tmp_path, tiny_vit("dinov2_vits14"), "DINOv3_wrong_name.pth")
    convert.main(["--checkpoint", str(path), "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "dinov2_vits14, 4 register tokens" in printed
    assert "from transformers import Dinov2WithRegistersModel" in printed
    exec(printed.split("load it with: ")[1], {})
    model = AutoModel.from_pretrained(tmp_path / "out")
    pretraining = model.config.pretraining
    assert (pretraining["name"], pretraining["source_sha256"]) == ("unknown", file_sha256(path))
    assert (pretraining["family"], pretraining["normalization"]) == ("dinov2", "imagenet")
    assert "the statistics of pretraining are not published" in pretraining["normalization_reason"]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_mean) == list(NORMALIZATIONS["imagenet"][0])
    assert processor.size == {"height": 336, "width": 336}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    inspect.main([str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["backbone"], found["register_tokens"], found["layers"]) == ("dinov2_vits14", 4, 1)
    assert found["tensors"] == len(tiny_vit("dinov2_vits14"))
    assert "problem" not in found


def test_half_precision(tmp_path):
    tensors = {name: tensor.bfloat16() for name, tensor in tiny_vit("dinov3_vitb16").items()}
    model = convert_checkpoint(save(tmp_path, tensors), output_dir=tmp_path / "out")
    assert model.dtype == AutoModel.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    back = to_original_state_dict(model)
    assert all(back[name].dtype == torch.bfloat16 and torch.equal(back[name], tensors[name]) for name in tensors)


def test_what_is_refused(tmp_path, capsys):
    tensors = tiny_vit("dinov3_vits16")
    path = save(tmp_path, tensors)
    with pytest.raises(UserError, match="without a head for a task; omit task and labels"):
        convert_checkpoint(path, task="semantic-segmentation")
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="cut short or damaged"):
        convert_checkpoint(tmp_path / "cut.pth")
    meta = tensors | {"storage_tokens": torch.ones(1, 4, 64), "blocks.0.attn.qkv.bias_mask": torch.ones(192)}
    atlas = prefixed("network.encoder.backbone.", tensors) | {
        "network.class_head.weight": torch.ones(3, 64),
        "network.phase_tokens": torch.ones(1, 7, 64),
        "criterion.empty_weight": torch.ones(4),
    }
    for content, message in (
        (meta, "storage tokens .* Meta's own DINOv3"),
        ({"state_dict": atlas, "epoch": 24}, r"EoMT: 2 tensors .* and 1 of phases .* fine-tune it with --head eomt"),
        (prefixed("blocks.", tensors) | tensors, "unexpected: blocks.blocks"),
    ):
        path = save(tmp_path, content, "other.pth")
        with pytest.raises(UserError, match=message):
            convert_checkpoint(path, output_dir=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        inspect.main([str(path), "--json"])
        assert json.loads(capsys.readouterr().out)["problem"]


# names of models_mae.py in github.com/DominikBatic/EndoViT, with one decoder block of 16 channels
DECODER = {
    "mask_token": (1, 1, 16),
    "decoder_pos_embed": (1, 197, 16),
    "decoder_embed.weight": (16, 64),
    "decoder_embed.bias": (16,),
    "decoder_blocks.0.norm1.weight": (16,),
    "decoder_blocks.0.attn.qkv.weight": (48, 16),
    "decoder_norm.bias": (16,),
    "decoder_pred.weight": (768, 16),
}


def test_endovit(tmp_path, caplog):
    """Test that EndoViT's encoder gives what timm's VisionTransformer, which its demo uses, gives."""
    tensors = tiny_vit("dinov1_vits16")
    path = save(tmp_path, {"model": tensors | {name: torch.ones(shape) for name, shape in DECODER.items()}})
    with pytest.raises(UserError, match=r"contains a masked autoencoder.*\(--normalization\) endovit for EndoViT"):
        convert_checkpoint(path)
    model = convert_checkpoint(path, normalization="endovit", output_dir=tmp_path / "out")
    assert "Omitted heads of the pretraining: decoder (8 tensors)" in caplog.text
    assert model.config.pretraining["name"] == "EndoViT"
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean == (0.3464, 0.228, 0.2228)
    blocks, width = model.config.num_hidden_layers, model.config.hidden_size
    options = {"depth": blocks, "num_heads": model.config.num_attention_heads, "num_classes": 0}
    reference = VisionTransformer(embed_dim=width, norm_layer=partial(nn.LayerNorm, eps=1e-6), **options).eval()
    reference.load_state_dict(tensors, strict=True)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found, expected = model(pixels).last_hidden_state, reference.forward_features(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "frames of DSAD" in leakage_note("EndoViT", "dsad")
    assert "Cholec80" in leakage_note("EndoViT", "endoscapes-cvs")
    assert leakage_note("EndoViT", "autolaparo") is None
