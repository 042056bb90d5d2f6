"""Tests of the tasks on converted vision transformers of DINOv1, v2, and v3."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModel

import surgenet_hf
from surgenet_hf import convert_checkpoint
from surgenet_hf.checkpoints.vit import vit_config
from surgenet_hf.cli import export
from surgenet_hf.data import load_data
from surgenet_hf.errors import UserError
from surgenet_hf.finetuning import classification, segmentation
from surgenet_hf.heads import build_classifier, build_segmenter, load_base
from surgenet_hf.image_processing import load_image_processor
from surgenet_hf.inference.embeddings import load_backbone
from surgenet_hf.modeling_surgenet_phase import SurgeNetForPhaseRecognition
from surgenet_hf.models import load_config
from surgenet_hf.publishing.prepare import prepare_finetuned
from surgenet_hf.publishing.vit_cards import LICENSE_FILE
from tests.checkpoints.files import small_vit
from tests.conftest import TWO_STEPS

NAMES = {"dinov1": "dinov1_vits16", "dinov2": "dinov2_vits14", "dinov3": "dinov3_vits16"}
LABELS = {i: f"class {i}" for i in range(3)}
OPTIONS = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}


def patch_size(family: str) -> int:
    return 14 if family == "dinov2" else 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return {family: folder of a converted network with four layers}, for images of four patches per side."""
    root = tmp_path_factory.mktemp("vits")
    for family, name in NAMES.items():
        torch.save(small_vit(name, layers=4), root / f"{family}.pth")
        registers = 4 if family == "dinov2" else 0
        config = vit_config(family, 4, 64, image_size=4 * patch_size(family), registers=registers)
        convert_checkpoint(root / f"{family}.pth", config=config, output_dir=root / family)
    return {family: str(root / family) for family in NAMES}


@pytest.mark.parametrize("family", NAMES)
def test_every_head_keeps_the_features(family, folders):
    """Test that the heads of all tasks get the features of the converted weights, with images of another size."""
    base = AutoModel.from_pretrained(folders[family]).eval()
    side = 6 * patch_size(family)
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = base(images).last_hidden_state
        patches = hidden[:, 1 + base.config.num_register_tokens :]
        for head in ("linear", "fpn"):
            model = build_segmenter(folders[family], head, **OPTIONS).eval()
            torch.testing.assert_close(model.backbone(images)[-1].flatten(2).transpose(1, 2), patches)
            assert model(images).logits.shape == (1, 3, side, side)
        classifier = build_classifier(folders[family], **OPTIONS).eval()
        assert torch.equal(classifier.base_model.embeddings.cls_token, base.embeddings.cls_token)
        assert classifier(images).logits.shape == (1, 3)
        backbone, _ = load_backbone(folders[family])
        torch.testing.assert_close(backbone.eval()(images).pooler_output, hidden[:, 0])
        loaded = load_base(folders[family], load_config(folders[family]))
        phases = SurgeNetForPhaseRecognition.from_backbone(loaded, **OPTIONS).eval()
        assert phases(images[None]).logits.shape == (1, 1, 3)
        torch.testing.assert_close(phases.surgenet(images).pooler_output, hidden[:, 0])


@pytest.mark.parametrize("family", NAMES)
def test_eomt_has_the_settings_of_the_authors(family, folders):
    model = build_segmenter(folders[family], "eomt", **OPTIONS).eval()
    config, side = model.config, 4 * patch_size(family)
    assert (config.num_queries, config.num_blocks, config.image_size) == (3, 3, side)
    assert config.num_upscale_blocks == (1 if family == "dinov2" else 2)
    assert config.num_register_tokens == (4 if family == "dinov2" else 0)
    if family == "dinov3":
        assert (config.key_bias, config.pos_embed_rescale) == (True, None)
    base = AutoModel.from_pretrained(folders[family], output_hidden_states=True).eval()
    images, states = torch.rand(1, 3, side, side), []
    model.layers[1].register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    with torch.no_grad():
        assert model(images).class_queries_logits.shape == (1, 3, 4)
        # the first layer has no queries, and the second one has them in front
        torch.testing.assert_close(states[0][:, 3:], base(images).hidden_states[1])
    large = vit_config(family, 24, 64, image_size=side)
    assert build_segmenter(large, "eomt", **OPTIONS).config.num_blocks == 4
    assert build_segmenter(vit_config(family, 12, 64, image_size=side), "eomt", **OPTIONS).config.num_blocks == 3


@pytest.mark.parametrize("family", NAMES)
def test_image_sizes_that_patches_do_not_divide(family, folders, masks, labeled, tmp_path):
    near = {"dinov1": "96 or 112", "dinov2": "98 or 112", "dinov3": "96 or 112"}[family]
    message = rf"must be a multiple of the patch size {patch_size(family)} of this \w+ model, got 100; use {near}"
    data = load_data("folder", masks)
    for head in ("linear", "fpn"):
        with pytest.raises(UserError, match=message):
            segmentation.build_model(folders[family], data, image_size=100, head=head)
    with pytest.raises(UserError, match="must be a multiple of the patch size"):
        segmentation.build_model(folders[family], data, image_size=100, head="eomt")
    with pytest.raises(UserError, match=message):
        classification.build_model(folders[family], load_data("csv", labeled), image_size=100)
    config = load_config(folders[family])
    with pytest.raises(UserError, match=message):
        convert_checkpoint(f"{folders[family]}.pth", config=config, output_dir=tmp_path / "out", image_size=100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", NAMES)
def test_prediction(family, folders, tmp_path):
    """Test that files give the class token of a converted folder, and the masks of a model with a linear head."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48, 80, 3), np.uint8)) for _ in range(3)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    processor = load_image_processor(folders[family])
    pixels = processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folders[family]).eval()(pixels).last_hidden_state[:, 0]
    rows = list(surgenet_hf.predict(folders[family], tmp_path, task="embeddings", batch_size=2))
    np.testing.assert_allclose(np.stack([row["embedding"] for row in rows]), expected, atol=1e-5)

    model = build_segmenter(folders[family], "linear", **OPTIONS).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        masks = processor.post_process_semantic_segmentation(model(pixels), [(48, 80)] * 3)
    found = [row["mask"] for row in surgenet_hf.predict(str(tmp_path / "model"), str(tmp_path / "*.png"))]
    assert len(set(np.unique(found))) > 1
    assert np.mean(np.stack(found) == torch.stack(masks).numpy()) > 0.999  # rounding at the borders


@pytest.mark.parametrize("family", NAMES)
def test_saved_sizes_that_patches_do_not_divide(family, folders, tmp_path):
    """Test that prediction and export refuse an image size that would be cropped."""
    folder = shutil.copytree(folders[family], tmp_path / "model")
    message = rf"multiple of the patch size {patch_size(family)} of this \w+ model, got 100"
    with pytest.raises(UserError, match=message):
        load_image_processor(folder, image_size=100)
    command = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out"), "--task", "embeddings"]
    with pytest.raises(SystemExit, match=message):
        export.main([*command, "--image_size", "100"])
    processor = load_image_processor(folder)
    processor.size = {"height": 100, "width": 100}
    processor.save_pretrained(folder)
    Image.new("RGB", (48, 80)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match=message):
        surgenet_hf.predict(str(folder), tmp_path, task="embeddings")


@pytest.mark.slow
def test_export_of_rotary_embeddings(folders, tmp_path):
    """Test that the file of a DINOv3 backbone gives the embeddings of `surgenet_hf.predict`."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)).save(tmp_path / "0.png")
    onnxruntime = pytest.importorskip("onnxruntime")
    command = ["--model_name_or_path", folders["dinov3"], "--output_dir", str(tmp_path / "out")]
    export.main([*command, "--task", "embeddings", "--frames", str(tmp_path)])
    (row,) = surgenet_hf.predict(folders["dinov3"], tmp_path / "0.png", task="embeddings")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    pixels = load_image_processor(folders["dinov3"])(Image.open(tmp_path / "0.png"), return_tensors="np").pixel_values
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
    np.testing.assert_allclose(found[0], row["embedding"], atol=1e-5)


@pytest.mark.slow
def test_training_from_a_converted_folder(folders, masks, tmp_path):
    """Test segmentation with EoMT and both stages of phase recognition, and that provenance remains in the models."""
    found = surgenet_hf.finetune_segmentation(
        model=folders["dinov3"],
        dataset="folder",
        data_dir=masks,
        head="eomt",
        output_dir=tmp_path / "masks",
        **TWO_STEPS,
    )
    assert found["data"]["image_size"] == [64, 64]
    again = surgenet_hf.evaluate(
        str(tmp_path / "masks"), dataset="folder", data_dir=masks, split=found["data"]["split"]
    )
    assert json.dumps(again["metrics"]) == json.dumps(found["metrics"])
    rng = np.random.default_rng(0)
    rows = {split: [] for split in ("train", "validation", "test")}
    for split in rows:
        for i in range(4):
            image = Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8))
            rows[split].append({"image": image, "label": i % 2, "video": split, "frame": i})
    surgenet_hf.finetune_phase(
        model=folders["dinov2"],
        dataset={split: Dataset.from_list(found) for split, found in rows.items()},
        labels=["even", "odd"],
        output_dir=tmp_path / "phases",
        tcn_epochs=1,
        **TWO_STEPS,
    )
    for name, family in (("masks", "dinov3"), ("phases", "dinov2")):
        pretraining = load_config(tmp_path / name / "model").pretraining
        assert (pretraining["family"], pretraining["normalization"]) == (family, "imagenet")


def test_publishing_a_model_on_dinov3(folders, tmp_path):
    """Test that both licenses, with a copy of Meta's, and the paper remain in the repository of a fine-tuned model."""
    model = build_segmenter(folders["dinov3"], "eomt", **OPTIONS)
    pretraining = load_config(folders["dinov3"]).pretraining
    model.config.pretraining = pretraining | {"name": "SurgeNetXL-DINOv3-ViT-S"}
    model.save_pretrained(tmp_path / "model")
    load_image_processor(folders["dinov3"]).save_pretrained(tmp_path / "model")
    prepare_finetuned(tmp_path / "model", "me/mine", tmp_path / "repository")
    card = (tmp_path / "repository" / "README.md").read_text()
    for expected in (
        "license: other",
        "Two licenses apply to the weights",
        "76 of the 80 videos",
        "dejong2026towards",
    ):
        assert expected in card
    assert "DINOv3 License" in (tmp_path / "repository" / LICENSE_FILE).read_text()
