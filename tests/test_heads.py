"""Tests of heads on backbones of transformers and timm: outputs, weights, and what is refused."""

import re
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    BeitConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    ResNetConfig,
    SegformerConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from surgenet_hf.errors import UserError
from surgenet_hf.heads import build_classifier, build_segmenter
from surgenet_hf.image_processing import load_image_processor
from surgenet_hf.inference.embeddings import ANY, load_backbone
from surgenet_hf.modeling_surgical import split_tokens
from surgenet_hf.models import resolve_model
from tests.checkpoints.files import tiny

VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
CONFIGS = {
    "timm resnet": TimmWrapperConfig(architecture="test_resnet"),
    "timm convnext": TimmWrapperConfig(architecture="test_convnext"),
    "timm vit": TimmWrapperConfig(architecture="test_vit", model_args={"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "convnext": ConvNextConfig(**STAGES),
    "resnet": ResNetConfig(embedding_size=8, **STAGES),
    "swin": SwinConfig(depths=[1, 1, 1, 1], embed_dim=12, num_heads=[1, 1, 2, 2], image_size=64, window_size=2),
    "dinov2": Dinov2Config(image_size=56, **VIT),
    "dinov2 registers": Dinov2WithRegistersConfig(image_size=56, **VIT),
    "dinov3": DINOv3ViTConfig(image_size=56, num_register_tokens=4, **VIT),
    "vit": ViTConfig(image_size=64, **VIT),
    "segformer": SegformerConfig(num_attention_heads=[1, 1, 1, 2], decoder_hidden_size=16, **STAGES),
    "surgenet": tiny(),
}
LABELS = {i: f"class {i}" for i in range(3)}
OPTIONS = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
SMALL_HEADS = {
    "upernet": {"hidden_size": 16},
    "mask2former": {
        **dict.fromkeys(["hidden_dim", "feature_size", "mask_feature_size"], 32),
        **dict.fromkeys(["encoder_feedforward_dim", "dim_feedforward"], 32),
        **{"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 5},
    },
}
WITHOUT_MAPS = ("timm vit", "vit", "segformer")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return {name: folder with random weights of a base model}."""
    found = {}
    for name, config in CONFIGS.items():
        found[name] = str(tmp_path_factory.mktemp("base"))
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(found[name])
    return found


def pixels(name: str) -> torch.Tensor:
    side = 56 if "dinov2" in name else 64
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def check_saved(model, auto_class, inputs, folder):
    """Check that a saved model loads with an Auto class and predicts the same, and return its output."""
    model.eval().save_pretrained(folder)
    loaded = auto_class.from_pretrained(folder).eval()
    assert loaded.config.num_labels == 3
    with torch.no_grad():
        expected, found = model(inputs), loaded(inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    return expected


@pytest.mark.parametrize("name", CONFIGS)
def test_classification(name, folders, tmp_path):
    model = build_classifier(folders[name], **OPTIONS)
    outputs = check_saved(model, AutoModelForImageClassification, pixels(name), tmp_path)
    assert outputs.logits.shape == (2, 3)
    assert type(model).__name__.startswith("Surgical") == (name == "dinov3")  # the only one without a head of its own


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "surgenet"])
@pytest.mark.parametrize("head", ["fpn", "linear"])
def test_segmentation(name, head, folders, tmp_path):
    model = build_segmenter(folders[name], head, semantic_loss_ignore_index=9, **OPTIONS)
    outputs = check_saved(model, AutoModelForSemanticSegmentation, pixels(name), tmp_path)
    assert outputs.logits.shape == (2, 3, *pixels(name).shape[-2:])
    assert model.config.semantic_loss_ignore_index == 9


@pytest.mark.parametrize("name", ["timm resnet", "convnext", "dinov2 registers", "dinov3", "surgenet"])
@pytest.mark.parametrize("head", ["upernet", "mask2former"])
def test_heads_of_transformers(name, head, folders, tmp_path):
    model = build_segmenter(folders[name], head, semantic_loss_ignore_index=9, **OPTIONS, **SMALL_HEADS[head])
    classes = {"upernet": AutoModelForSemanticSegmentation, "mask2former": AutoModelForUniversalSegmentation}
    check_saved(model, classes[head], pixels(name), tmp_path)


def test_default_head_is_the_models_own(folders):
    names = ("segformer", "surgenet", "vit")
    kinds = {name: type(build_segmenter(folders[name], **OPTIONS)).__name__ for name in names}
    assert kinds == {
        "segformer": "SegformerForSemanticSegmentation",
        "surgenet": "SurgeNetForSemanticSegmentation",
        "vit": "SurgicalForSemanticSegmentation",
    }


@pytest.mark.parametrize("name", ["timm resnet", "timm convnext", "timm vit", "convnext", "dinov3", "vit"])
def test_feature_maps_are_those_of_the_loaded_weights(name, folders):
    """Test that the backbone of a segmentation model computes what the base model computes."""
    base = AutoModel.from_pretrained(folders[name]).eval()
    model = build_segmenter(folders[name], "linear", **OPTIONS).eval()
    inputs = torch.rand(1, 3, 160, 160) if name == "timm vit" else pixels(name)
    with torch.no_grad():
        maps = model.backbone(inputs)
        hidden = base(inputs).last_hidden_state
        if name == "timm vit":  # its feature maps are those before the last norm
            hidden = base.timm_model.forward_intermediates(inputs, indices=1, intermediates_only=True)[0]
    feature_map = split_tokens(base, hidden, inputs.shape[-2:])[1]
    if name == "convnext":  # the backbone class adds a norm
        feature_map = model.backbone.model.hidden_states_norms["stage4"](feature_map)
    torch.testing.assert_close(maps[-1], feature_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm resnet", "convnext", "dinov2", "dinov3"])
def test_incomplete_weights_are_refused(name, folders, tmp_path):
    base = AutoModel.from_pretrained(folders[name])
    base.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in sorted(tensors) if "conv" in key or "dense" in key or "q_proj" in key or "query" in key)
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for build in (partial(build_segmenter, head="fpn"), build_classifier):
        with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} are not complete: 1 parameters"):
            build(str(tmp_path), **OPTIONS)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_repository_of_timm(architecture, hub, client, tmp_path):
    """Test the layout that timm publishes: its own config.json, no image processor, and names of its own."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, pretrained=False, num_classes=7).eval()
    save_for_hf(network, tmp_path, safe_serialization=True)
    hub.add_files("timm/mine", {name: tmp_path / name for name in ("config.json", "model.safetensors")})
    inputs = torch.rand(1, 3, 160, 160)
    segmenter, classifier = build_segmenter("timm/mine", **OPTIONS).eval(), build_classifier("timm/mine", **OPTIONS)
    with torch.no_grad():
        expected = network.forward_intermediates(inputs, indices=1, intermediates_only=True)[0]
        torch.testing.assert_close(segmenter.backbone(inputs)[-1], expected)
        found = classifier.eval().timm_model.forward_features(inputs)
        torch.testing.assert_close(found, network.forward_features(inputs))
    assert (classifier.config.num_labels, segmenter.config.num_labels) == (3, 3)
    for source in ("timm/mine", tmp_path):
        processor = load_image_processor(source)
        assert tuple(processor.image_mean) == network.pretrained_cfg["mean"]
        assert processor.size["height"] == network.pretrained_cfg["input_size"][-1]


@pytest.mark.parametrize("pooling", ["cls", "mean", "topk"])
def test_poolings(pooling, folders):
    model = build_classifier(folders["dinov2 registers"], pooling, pooling_k=4, **OPTIONS).eval()
    inputs = pixels("dinov2")
    with torch.no_grad():
        hidden = model.backbone(inputs).last_hidden_state
        found = model.pool(hidden, inputs.shape[-2:])
    patches = hidden[:, 1 + model.backbone.config.num_register_tokens :]
    assert patches.shape[1] == 9
    largest = patches.sort(1, descending=True).values[:, :4].mean(1)
    expected = {"cls": hidden[:, 0], "mean": patches.mean(1), "topk": largest}[pooling]
    torch.testing.assert_close(found, expected)


def test_no_class_token(folders):
    with pytest.raises(UserError, match="--pooling cls is not possible: ResNetModel has no class token"):
        build_classifier(folders["resnet"], "cls", **OPTIONS)


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        *[(name, "upernet", "--head upernet is not possible on this") for name in WITHOUT_MAPS],
        ("vit", "mask2former", "--head mask2former is not possible on this vit"),
    ],
)
def test_impossible_heads(name, head, message, folders):
    with pytest.raises(UserError, match=message):
        build_segmenter(folders[name], head, **OPTIONS)


def test_impossible_combinations(folders, tmp_path):
    with pytest.raises(UserError, match="SurgeNet has its own pooling"):
        build_classifier(folders["surgenet"], "mean", **OPTIONS)
    build_segmenter(folders["resnet"], "fpn", **OPTIONS).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="already has a head"):
        build_segmenter(str(tmp_path), "linear", **OPTIONS)


def test_own_heads_that_the_configuration_does_not_allow():
    config = BeitConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(UserError, match=r"for beit is not possible .* Choose --head fpn or linear"):
        build_segmenter(config)


def test_ignored_pixels_have_no_loss(folders):
    model = build_segmenter(folders["resnet"], "linear", semantic_loss_ignore_index=255, **OPTIONS)
    labels = torch.full((2, 64, 64), 255)
    assert model(pixels("resnet"), labels=labels).loss == 0
    labels[:, 0, 0] = 1
    assert model(pixels("resnet"), labels=labels).loss > 0


@pytest.mark.parametrize("name", ["timm vit", "resnet", "dinov3", "swin"])
def test_embeddings(name, folders):
    backbone, kind = load_backbone(folders[name])
    backbone.eval()
    inputs = pixels(name)
    with torch.no_grad():
        outputs = backbone(inputs)
        hidden = (
            AutoModel.from_pretrained(folders[name]).eval()(inputs).last_hidden_state if name != "timm vit" else None
        )
    assert kind == ANY
    assert outputs.last_hidden_state.ndim == 4
    expected = {"dinov3": lambda: hidden[:, 0], "resnet": lambda: hidden.mean((2, 3)), "swin": lambda: hidden.mean(1)}
    if name in expected:
        torch.testing.assert_close(outputs.pooler_output, expected[name]())
    assert outputs.pooler_output.shape == outputs.last_hidden_state.shape[:2]


def test_unknown_name_of_timm():
    with pytest.raises(UserError, match="timm has no model resnet181; did you mean resnet18"):
        resolve_model(None, "timm/resnet181")
