"""Tests of EoMT: weights of a vision transformer, predictions, and mask annealing."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForUniversalSegmentation,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    EomtImageProcessor,
    ResNetConfig,
)

from surgenet_hf.eomt import copy_transformer, mask_probabilities, set_mask_probabilities
from surgenet_hf.errors import UserError
from surgenet_hf.heads import build_segmenter
from surgenet_hf.inference.prediction import resize_logits, semantic_logits

VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
CONFIGS = {
    "dinov2": Dinov2Config(**VIT),
    "registers": Dinov2WithRegistersConfig(**VIT),
    "dinov3": DINOv3ViTConfig(**VIT | {"patch_size": 8}, intermediate_size=64, num_register_tokens=4, key_bias=True),
}
LABELS = {"id2label": {i: f"class {i}" for i in range(3)}, "label2id": {f"class {i}": i for i in range(3)}}


def build(config, image_size=None):
    return build_segmenter(config, "eomt", image_size=image_size, semantic_loss_ignore_index=255, **LABELS)


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS[request.param]).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_layers_before_the_queries_are_those_of_the_backbone(folder):
    base = AutoModel.from_pretrained(folder, output_hidden_states=True).eval()
    model = build(folder).eval()
    states = {}
    model.layers[0].register_forward_pre_hook(lambda module, inputs: states.setdefault("first", inputs[0]))
    model.layers[1].register_forward_pre_hook(lambda module, inputs: states.setdefault("second", inputs[0]))
    inputs = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        model(inputs)
        expected = base(inputs).hidden_states
    torch.testing.assert_close(states["first"], expected[0])
    assert model.config.num_blocks == 3  # so layer 0 has no queries, and layer 1 has them in front
    torch.testing.assert_close(states["second"][:, model.config.num_queries :], expected[1])


def test_another_image_size(folder):
    model = build(folder, image_size=112).eval()
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 112, 112))
    assert model.config.image_size == 112
    assert outputs.class_queries_logits.shape == (1, 3, 4)


def test_saved_model(folder, tmp_path):
    model = build(folder).eval()
    set_mask_probabilities(model, [0.0, 0.0, 0.0])
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "model").eval()
    inputs = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs)[0], model(inputs)[0], rtol=0, atol=0)
    assert loaded.attn_mask_probs.tolist() == [0, 0, 0]


def test_class_maps_are_those_of_transformers(folder):
    model = build(folder).eval()
    with torch.no_grad():
        outputs = model(torch.rand(2, 3, 56, 56))
    outputs.masks_queries_logits = 9 * torch.randn_like(
        outputs.masks_queries_logits
    )  # of an untrained model: all alike
    outputs.class_queries_logits = 3 * torch.randn_like(outputs.class_queries_logits)
    processor = EomtImageProcessor(size={"shortest_edge": 56, "longest_edge": 56}, do_split_image=False)
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(40, 60), (30, 30)])
    logits = semantic_logits(outputs, (56, 56))
    for i, class_map in enumerate(expected):
        found = resize_logits(logits[i : i + 1], class_map.shape).argmax(1)[0]
        assert torch.equal(found, class_map.long())


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs a DINOv2 or DINOv3 vision transformer, found resnet"):
        build(ResNetConfig())
    with pytest.raises(UserError, match="multiple of the patch size 14 for --head eomt, got 60"):
        build(CONFIGS["dinov2"], image_size=60)
    base = AutoModel.from_config(CONFIGS["dinov2"])
    with pytest.raises(UserError, match="do not fit EoMT: 18 tensors"):
        copy_transformer(base, build(CONFIGS["dinov2"].__class__(**VIT | {"num_hidden_layers": 3})), "mine")


def test_annealing():
    assert mask_probabilities(0, 600, 4) == [1, 1, 1, 1]
    assert mask_probabilities(600, 600, 4) == [0, 0, 0, 0]
    assert mask_probabilities(150, 600, 4) == pytest.approx([0.5**0.9, 1, 1, 1])
    assert mask_probabilities(250, 600, 4) == pytest.approx([0, 0.5**0.9, 1, 1])
    starts = [next(s for s in range(601) if mask_probabilities(s, 600, 3)[block] < 1) - 1 for block in range(3)]
    assert starts == [100, 250, 400]
    assert mask_probabilities(200, 600, 1) == [0]
