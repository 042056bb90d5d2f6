"""Tests of training, saving, and evaluating models on backbones of other families."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    SegformerConfig,
    TrainerState,
    ViTConfig,
)

import surgenet_hf
from surgenet_hf.errors import UserError
from surgenet_hf.finetuning.universal import AnnealMasks, mask_targets
from surgenet_hf.heads import build_segmenter, load_base
from surgenet_hf.image_processing import common_image_processor
from surgenet_hf.inference.prediction import query_logits
from surgenet_hf.models import load_config
from tests.conftest import TWO_STEPS

STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
CONFIGS = {
    "segformer": SegformerConfig(num_attention_heads=[1, 1, 1, 2], decoder_hidden_size=16, **STAGES),
    "dinov2": Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    ),
    "dinov3": DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64
    ),
    "vit": ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64),
}
OPTIONS = TWO_STEPS | {"image_size": 64}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Return {name: folder with the config.json of a small model, or a name of timm}."""
    root = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        config.save_pretrained(root / name)
    return {name: str(root / name) for name in CONFIGS} | {"timm": "timm/test_resnet"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [("timm", None), ("segformer", None), ("dinov2", "linear"), ("dinov2", "eomt")],
)
def test_segmentation(name, head, configs, masks, tmp_path):
    """Test that the saved model has the metrics of the trained one, and that a second training starts from it."""
    out = tmp_path / "out"
    found = surgenet_hf.finetune_segmentation(
        backbone=configs[name], dataset="folder", data_dir=masks, output_dir=out, head=head, **OPTIONS
    )
    again = surgenet_hf.evaluate(str(out), dataset="folder", data_dir=masks, split=found["data"]["split"])
    assert json.dumps(again["metrics"]) == json.dumps(found["metrics"])  # with NaN
    assert found["data"]["image_size"] == [64, 64]
    assert "not recorded" not in found["data"]["leakage"]  # random weights, so all of its training is recorded
    processor = AutoImageProcessor.from_pretrained(out / "model")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    more = surgenet_hf.finetune_segmentation(
        model=str(out),
        dataset="folder",
        data_dir=masks,
        output_dir=tmp_path / "more",
        **OPTIONS | {"image_size": None},
    )
    assert more["data"]["image_size"] == [64, 64]
    assert more["model"]["type"] == found["model"]["type"]
    assert "not recorded" not in more["data"]["leakage"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooling"), [("timm", None), ("vit", None), ("dinov2", "topk")])
def test_classification(name, pooling, configs, labeled, tmp_path):
    found = surgenet_hf.finetune_classification(
        backbone=configs[name], dataset="csv", data_dir=labeled, output_dir=tmp_path, pooling=pooling, **OPTIONS
    )
    again = surgenet_hf.evaluate(str(tmp_path), dataset="csv", data_dir=labeled, split=found["data"]["split"])
    assert again["metrics"] == found["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm", "dinov3"])
def test_phases(name, configs, tmp_path):
    """Test that both stages train, that the saved model has the same metrics, and that a stream equals the video."""
    rng = np.random.default_rng(0)
    videos = {split: [] for split in ("train", "validation", "test")}
    for video, split in (("a", "train"), ("b", "train"), ("c", "validation"), ("d", "test")):
        for i in range(6):
            image = rng.integers(0, 99, (48, 64, 3), np.uint8)
            image[..., i % 2] += 100
            row = {"image": Image.fromarray(image), "label": i % 2, "video": video, "frame": i}
            videos[split].append(row)
    data = {split: Dataset.from_list(rows) for split, rows in videos.items()}
    found = surgenet_hf.finetune_phase(
        backbone=configs[name],
        dataset=data,
        labels=["even", "odd"],
        output_dir=tmp_path / "out",
        tcn_epochs=2,
        **OPTIONS,
    )
    again = surgenet_hf.evaluate(
        str(tmp_path / "out"), dataset=data, labels=["even", "odd"], task="phase-recognition", split="test"
    )
    assert again["metrics"]["accuracy"] == found["metrics"]["accuracy"]
    model = AutoModel.from_pretrained(tmp_path / "out" / "model").eval()
    frames = torch.rand(1, 4, 3, 64, 64)
    with torch.no_grad():
        whole = model(frames).logits[0]
    state, streamed = None, []
    for i in range(4):
        logits, state = model.stream(frames[:, i], state)
        streamed.append(logits[0])
    torch.testing.assert_close(torch.stack(streamed), whole, rtol=1e-4, atol=1e-5)
    assert len(model.config.finetuning) == 1  # recorded once for both stages
    stage1 = str(tmp_path / "out" / "stage1" / "model")
    trained = load_base(stage1, load_config(stage1)).state_dict()
    for key, tensor in model.surgenet.model.state_dict().items():
        assert torch.equal(tensor, trained[key]), key


def test_what_is_refused(masks, tmp_path):
    common = {"dataset": "folder", "data_dir": masks, "output_dir": tmp_path}
    with pytest.raises(UserError, match="--layer_decay is for SurgeNet backbones, not for surgical"):
        surgenet_hf.finetune_segmentation(backbone="timm/test_resnet", layer_decay=0.9, **common, **OPTIONS)
    with pytest.raises(UserError, match="has its own loss"):
        surgenet_hf.finetune_segmentation(
            backbone="timm/test_resnet", head="mask2former", class_weights="balanced", **common, **OPTIONS
        )
    with pytest.raises(UserError, match="--backbone test_resnet is unknown"):
        surgenet_hf.finetune_segmentation(backbone="test_resnet", **common, **OPTIONS)


@pytest.mark.slow
def test_fast_gradients_change_only_the_rounding(masks, tmp_path):
    """Test weights after two steps of SGD, whose updates are proportional to the gradients."""
    common = {"backbone": "tiny", "dataset": "folder", "data_dir": masks, "optim": "sgd", "learning_rate": 0.1}
    for fast in (False, True):
        surgenet_hf.finetune_segmentation(output_dir=tmp_path / str(fast), fast_gradients=fast, **common, **OPTIONS)
    slow, fast = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("False", "True"))
    assert any(not torch.equal(slow[name], fast[name]) for name in slow)
    for name in slow:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_model_without_a_part_of_its_weights_is_not_evaluated(configs, masks, tmp_path):
    surgenet_hf.finetune_segmentation(
        backbone=configs["timm"], dataset="folder", data_dir=masks, output_dir=tmp_path, **OPTIONS
    )
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["head.classifier.bias"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"are not complete: 1 parameters .*head\.classifier\.bias"):
        surgenet_hf.evaluate(str(tmp_path), dataset="folder", data_dir=masks)


def test_frozen_backbone(masks, tmp_path):
    from surgenet_hf.finetuning.trainer import freeze_backbone
    from surgenet_hf.heads import build_classifier, build_segmenter
    from surgenet_hf.models import resolve_model

    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    config = resolve_model(None, "timm/test_resnet")
    for model, head in (
        (build_classifier(config, **labels), ("timm_model.fc.",)),
        (build_classifier(config, "mean", **labels), ("classifier.",)),
        (build_segmenter(config, "fpn", **labels), ("head.",)),
        (build_segmenter(config, "upernet", **labels), ("decode_head.",)),
    ):
        freeze_backbone(model)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained == [name for name, _ in model.named_parameters() if name.startswith(head)]


def test_image_processors_of_other_models():
    class Timm:
        data_config = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 240, 240)}  # noqa: RUF012

    found = common_image_processor(Timm())
    assert tuple(found.image_mean) == (0.1, 0.2, 0.3)
    assert tuple(found.image_std) == (0.4, 0.5, 0.6)
    assert dict(found.size) == {"height": 240, "width": 240}

    class Cropped:
        image_mean, image_std, do_center_crop = [0.5] * 3, [0.5] * 3, True
        size, crop_size = {"shortest_edge": 256}, {"height": 224, "width": 224}

    assert dict(common_image_processor(Cropped()).size) == {"height": 224, "width": 224}
    assert dict(common_image_processor(Cropped(), 96).size) == {"height": 96, "width": 96}


def test_masks_are_annealed_and_in_the_end_not_random():
    options = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=16
    )
    model = build_segmenter(config, "eomt", **options)
    callback, state = AnnealMasks(), TrainerState(global_step=150, max_steps=600)
    callback.on_step_begin(None, state, None, model=model)
    assert model.attn_mask_probs.tolist() == pytest.approx([0.5**0.9, 1, 1])
    callback.on_train_end(None, state, None, model=model)
    assert model.attn_mask_probs.tolist() == [1, 1, 1]


def test_targets_of_universal_models():
    labels = torch.tensor([[[0, 0], [2, 255]], [[255, 255], [255, 255]]])
    batch = mask_targets(255)([{"pixel_values": torch.zeros(3, 2, 2), "labels": each} for each in labels])
    assert [each.tolist() for each in batch["class_labels"]] == [[0, 2], []]
    assert batch["mask_labels"][0].tolist() == [[[1, 1], [0, 0]], [[0, 0], [1, 0]]]
    assert batch["mask_labels"][1].shape == (0, 2, 2)


def test_queries_are_combined_to_classes():
    classes = torch.tensor([[[9.0, 0, 0], [0, 9, 0], [0, 0, 9]]])  # the last query is "no object"
    masks = torch.tensor([[[[9.0, -9]], [[-9, 9]], [[9, 9]]]])
    found = query_logits(classes, masks)
    assert found.shape == (1, 2, 1, 2)
    assert found.argmax(1).tolist() == [[[0, 1]]]
