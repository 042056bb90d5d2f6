import copy
import json
import logging
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import metaformer
from torch.export import Dim
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from surgenet_hf import (
    SurgeNetBackbone,
    SurgeNetForImageClassification,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)
from surgenet_hf.modeling_surgenet import ConvNeXtBlock, MetaFormerBlock, PvtV2Block

BLOCKS = (MetaFormerBlock, ConvNeXtBlock, PvtV2Block)
HEADS = (SurgeNetForImageClassification, SurgeNetForSemanticSegmentation)
CLASSES = (SurgeNetModel, SurgeNetBackbone, *HEADS)
LOADERS = {
    SurgeNetModel: AutoModel,
    SurgeNetBackbone: SurgeNetBackbone,  # AutoBackbone looks for a local folder on the Hub
    SurgeNetForImageClassification: AutoModelForImageClassification,
    SurgeNetForSemanticSegmentation: AutoModelForSemanticSegmentation,
}
all_classes = pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
both_heads = pytest.mark.parametrize("model_class", HEADS, ids=lambda c: c.__name__)


@pytest.fixture(autouse=True)
def seeded():
    set_seed(0)


def images(batch=2, height=64, width=64, channels=3):
    return torch.randn(batch, channels, height, width)


def labels_for(model, pixel_values):
    """Return random class ids, one per image or one per pixel."""
    batch, _, height, width = pixel_values.shape
    per_pixel = isinstance(model, SurgeNetForSemanticSegmentation)
    return torch.randint(model.config.num_labels, (batch, height, width) if per_pixel else (batch,))


def first_tensors(output):
    """Return the outputs of a model of any class as a list of tensors."""
    values = output.to_tuple()
    return [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **(tolerance or {"rtol": 0, "atol": 0}))


# ---------------------------------------------------------------------------------------------------- the wrapper


def timm_network(config):
    """Return timm's network of the same name, with the depths and widths of `config`."""
    if config.backbone != "caformer_s18":
        widths = {"convnextv2_tiny": "dims", "pvt_v2_b2": "embed_dims"}[config.backbone]
        sizes = {"depths": tuple(config.depths), widths: tuple(config.hidden_sizes)}
        return timm.create_model(config.backbone, pretrained=False, num_classes=0, **sizes)
    # caformer_s18 accepts no sizes, so build the network from the arguments that it passes on
    with mock.patch.object(metaformer, "_create_metaformer", side_effect=lambda *args, **kwargs: kwargs):
        arguments = metaformer.caformer_s18()
    arguments.pop("pretrained", None)
    if config.activation == "relu":
        arguments |= {"mlp_act": torch.nn.ReLU, "act1_layer": torch.nn.ReLU}
    arguments |= {"depths": tuple(config.depths), "dims": tuple(config.hidden_sizes), "num_classes": 0}
    return metaformer.MetaFormer(**arguments)


@pytest.mark.parametrize(
    ("backbone", "activation"),
    [("caformer_s18", "relu"), ("caformer_s18", "star_relu"), ("convnextv2_tiny", None), ("pvt_v2_b2", None)],
)
def test_features_are_those_of_timm_bit_for_bit(backbone, activation, tiny_config):
    config = tiny_config(backbone, activation=activation, depths=[1, 2, 2, 1])
    model = SurgeNetModel(config).eval()
    for parameter in model.parameters():  # zeros or ones could hide a difference
        parameter.data += 0.1 * torch.randn_like(parameter)
    network = timm_network(config).eval()
    prefix = {"pvt_v2_b2": "patch_embed."}.get(backbone, "stem.")
    weights = model.encoder.state_dict()
    weights = {key.replace("stem.", prefix, 1) if key.startswith("stem.") else key: w for key, w in weights.items()}
    if model.layernorm is not None:
        weights |= {f"head.norm.{key}": w for key, w in model.layernorm.state_dict().items()}
    network.load_state_dict(weights)

    pixel_values = images(2, 96, 64)
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
        last, expected = network.forward_intermediates(pixel_values, norm=False)
        pooled = network.forward_head(last, pre_logits=True)
    assert len(expected) == 4
    for ours, theirs in zip(outputs.hidden_states[1:], expected, strict=True):
        assert_same(ours, theirs)
    assert_same(outputs.last_hidden_state, last)
    assert_same(outputs.pooler_output, pooled, rtol=1e-5, atol=1e-6)


def test_outputs_have_the_documented_shapes(backbone, tiny_config):
    config = tiny_config(backbone, out_features=["stem", "stage2", "stage4"])
    widths = [config.hidden_sizes[0], *config.hidden_sizes]
    maps = [(2, width, 96 // s, 64 // s) for width, s in zip(widths, (4, 4, 8, 16, 32), strict=True)]
    pixel_values = images(2, 96, 64)

    outputs = SurgeNetModel(config)(pixel_values, output_hidden_states=True)
    assert outputs.last_hidden_state.shape == maps[-1]
    assert outputs.pooler_output.shape == (2, widths[-1])
    assert [tuple(hidden.shape) for hidden in outputs.hidden_states] == maps
    assert SurgeNetModel(config)(pixel_values).hidden_states is None
    last, pooled = SurgeNetModel(config)(pixel_values, return_dict=False)
    assert (last.shape, pooled.shape) == (maps[-1], (2, widths[-1]))

    model = SurgeNetBackbone(config)
    assert [tuple(f.shape) for f in model(pixel_values).feature_maps] == [maps[0], maps[2], maps[4]]
    assert model.channels == [widths[0], widths[2], widths[4]]

    model = SurgeNetForImageClassification(config)
    assert model(pixel_values).logits.shape == (2, 3)
    assert isinstance(model.classifier, metaformer.MlpHead if backbone == "caformer_s18" else torch.nn.Linear)
    outputs = SurgeNetForSemanticSegmentation(config)(pixel_values, output_hidden_states=True)
    assert outputs.logits.shape == (2, 3, 96, 64)
    assert [tuple(hidden.shape) for hidden in outputs.hidden_states] == maps
    assert outputs.loss is None


def test_a_single_image_without_batch_is_refused(tiny_config):
    for model_class in (SurgeNetModel, SurgeNetBackbone, SurgeNetForSemanticSegmentation):
        model = model_class(tiny_config())
        for wrong in (torch.rand(3, 64, 64), np.zeros((64, 64, 3), np.uint8), torch.rand(1, 1, 3, 64, 64)):
            shape = str(tuple(wrong.shape)).replace("(", r"\(").replace(")", r"\)")
            with pytest.raises(ValueError, match=rf"\(B, num_channels, H, W\), got {shape}: .*image processor"):
                model(wrong)


def test_labels_beyond_the_classes_are_named(tiny_config):
    pixel_values = torch.rand(2, 3, 32, 32)
    segmenter, classifier = (
        model_class(tiny_config()) for model_class in (SurgeNetForSemanticSegmentation, SurgeNetForImageClassification)
    )
    with pytest.raises(ValueError, match=r"class id 9, but the model has 3 classes, ids 0 to 2 \(255 is ignored\)"):
        segmenter(pixel_values, labels=torch.full((2, 32, 32), 9))
    with pytest.raises(ValueError, match=r"class id 3, but the model has 3 classes"):
        classifier(pixel_values, labels=torch.tensor([0, 3]))
    assert classifier(pixel_values, labels=torch.tensor([0, -100])).loss.isfinite()


def test_missing_pixel_values_are_named(tiny_config):
    with pytest.raises(ValueError, match="pixel_values is missing"):
        SurgeNetModel(tiny_config())(None)


@pytest.mark.parametrize("size", [(270, 480), (97, 131), (32, 33)])
def test_any_size_and_a_batch_of_one(backbone, size, tiny_config):
    pixel_values = images(1, *size)
    config = tiny_config(backbone, segmentation_channels=64)  # 32 channels would give group norm one value per group
    with torch.no_grad():
        logits = SurgeNetForSemanticSegmentation(config).eval()(pixel_values).logits
        scores = SurgeNetForImageClassification(config).eval()(pixel_values).logits
    assert logits.shape == (1, 3, *size)
    assert scores.shape == (1, 3)
    assert logits.isfinite().all()
    assert scores.isfinite().all()


@pytest.mark.parametrize("channels", [1, 5])
def test_other_numbers_of_channels(backbone, channels, tiny_config, tmp_path):
    model = SurgeNetForSemanticSegmentation(tiny_config(backbone, num_channels=channels)).eval()
    model.save_pretrained(tmp_path)
    pixel_values = images(channels=channels)
    with torch.no_grad():
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert_same(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both_heads
def test_half_precision(backbone, model_class, dtype, tiny_config, tmp_path):
    model = model_class(tiny_config(backbone)).eval()
    model.save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=dtype).eval()
    pixel_values = images(2, 256, 256)  # the loss summed over this many pixels exceeds the range of fp16
    labels = labels_for(model, pixel_values)
    with torch.no_grad():
        expected = model(pixel_values, labels=labels)
        outputs = half(pixel_values.to(dtype), labels=labels)
    assert outputs.logits.dtype == dtype
    tolerance = 0.05 * expected.logits.abs().max().item()
    assert_same(outputs.logits.float(), expected.logits, rtol=0, atol=tolerance)
    assert_same(outputs.loss.float(), expected.loss, rtol=0.05, atol=0.01)


def test_mixed_precision_training_step(backbone, tiny_config):
    model = SurgeNetForSemanticSegmentation(tiny_config(backbone))
    pixel_values = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(pixel_values, labels=labels_for(model, pixel_values)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# ------------------------------------------------------------------------------------------------ saving and loading


@all_classes
def test_save_and_load(backbone, model_class, tiny_config, tmp_path):
    provenance = {"name": "SurgeNetXL", "sha256": "0" * 64}
    model = model_class(tiny_config(backbone, pretraining=provenance, out_features=["stage1", "stage3"])).eval()
    model.save_pretrained(tmp_path)
    loaded, info = LOADERS[model_class].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not any(info.values()), info
    assert not loaded.training
    assert loaded.config.pretraining == provenance
    pixel_values = images()
    with torch.no_grad():
        actual, expected = first_tensors(loaded(pixel_values)), first_tensors(model(pixel_values))
    assert actual
    assert_same(actual, expected)


def test_chosen_stages_survive_save_and_load(backbone, tiny_config, tmp_path):
    SurgeNetBackbone(tiny_config(backbone, out_features=["stage1", "stage3"])).save_pretrained(tmp_path)
    loaded = SurgeNetBackbone.from_pretrained(tmp_path)
    assert (loaded.out_features, loaded.out_indices) == (["stage1", "stage3"], [1, 3])
    assert [f.shape[-1] for f in loaded(images()).feature_maps] == [16, 4]
    chosen = SurgeNetBackbone.from_pretrained(tmp_path, out_indices=[0, 4])
    assert chosen.out_features == ["stem", "stage4"]
    assert [f.shape[-1] for f in chosen(images()).feature_maps] == [16, 2]
    assert isinstance(AutoBackbone.from_config(loaded.config), SurgeNetBackbone)


@pytest.mark.parametrize(("saved", "wanted"), [("relu", "star_relu"), ("star_relu", "relu")])
@all_classes
def test_weights_of_the_other_activation_are_refused(model_class, saved, wanted, tiny_config, tmp_path):
    SurgeNetModel(tiny_config(activation=saved)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation": wanted}))
    with pytest.raises(ValueError, match=f"activation {wanted}.*{'missing' if wanted == 'star_relu' else 'unexp'}"):
        LOADERS[model_class].from_pretrained(tmp_path)


@all_classes
def test_an_incomplete_file_is_refused(backbone, model_class, tiny_config, tmp_path):
    model_class(tiny_config(backbone)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if "encoder.stages.2.blocks" in key)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 parameters missing.*{lost}"):
        LOADERS[model_class].from_pretrained(tmp_path)


def test_weights_of_another_backbone_are_refused(backbone, tiny_config, tmp_path):
    SurgeNetModel(tiny_config(backbone)).save_pretrained(tmp_path)
    for other in {"caformer_s18", "convnextv2_tiny", "pvt_v2_b2"} - {backbone}:
        with pytest.raises((ValueError, RuntimeError), match=r"do not match this backbone|ignore_mismatched_sizes"):
            SurgeNetForSemanticSegmentation.from_pretrained(tmp_path, config=tiny_config(other))
        with pytest.raises(ValueError, match="do not match this backbone"):  # that option is meant for heads
            SurgeNetModel.from_pretrained(tmp_path, config=tiny_config(other), ignore_mismatched_sizes=True)


def test_a_backbone_of_another_shape_is_refused_even_with_a_new_head(backbone, tiny_config, tmp_path):
    SurgeNetModel(tiny_config(backbone)).save_pretrained(tmp_path)
    config = tiny_config(backbone, num_channels=4)
    with pytest.raises(ValueError, match=r"1 parameters of another shape.*stem"):
        SurgeNetForImageClassification.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)


@both_heads
def test_a_new_head_is_only_warned_about(backbone, model_class, tiny_config, tmp_path):
    base = SurgeNetModel(tiny_config(backbone))
    base.save_pretrained(tmp_path)
    model, info = LOADERS[model_class].from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"]
    assert all(key.startswith(("classifier.", "decode_head.")) for key in info["missing_keys"])
    assert_same(model.surgenet.encoder.state_dict(), base.encoder.state_dict())
    _, info = SurgeNetBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    # the reverse: the backbone of a fine-tuned model
    model.save_pretrained(tmp_path / "fine-tuned")
    backbone_again = SurgeNetBackbone.from_pretrained(tmp_path / "fine-tuned")
    assert_same(backbone_again.encoder.state_dict(), base.encoder.state_dict())


@both_heads
def test_another_number_of_labels_needs_consent(backbone, model_class, tiny_config, tmp_path):
    model = model_class(tiny_config(backbone))
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        model_class.from_pretrained(tmp_path, num_labels=7)
    changed = model_class.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert changed(images()).logits.shape[1] == 7
    assert_same(changed.surgenet.state_dict(), model.surgenet.state_dict())


# ---------------------------------------------------------------------------------------------------- losses, training


def test_classification_losses(tiny_config):
    pixel_values = images(4)

    def loss_and_logits(labels, **changes):
        model = SurgeNetForImageClassification(tiny_config(**changes)).eval()
        outputs = model(pixel_values, labels=labels)
        return outputs.loss, outputs.logits

    labels = torch.tensor([0, 2, 1, 1])
    loss, logits = loss_and_logits(labels, problem_type="single_label_classification")
    assert_same(loss, F.cross_entropy(logits, labels))
    labels = torch.rand(4, 3)  # soft targets, e.g. the mean of three annotators
    loss, logits = loss_and_logits(labels, problem_type="multi_label_classification")
    assert_same(loss, F.binary_cross_entropy_with_logits(logits, labels))
    loss, logits = loss_and_logits(labels, problem_type="regression")
    assert_same(loss, F.mse_loss(logits, labels))
    labels = torch.rand(4)
    loss, logits = loss_and_logits(labels, problem_type="regression", num_labels=1)
    assert_same(loss, F.mse_loss(logits[:, 0], labels))


@pytest.mark.parametrize("ignored", [255, 0, -100])
def test_segmentation_loss_leaves_ignored_pixels_out(ignored, tiny_config):
    model = SurgeNetForSemanticSegmentation(tiny_config(semantic_loss_ignore_index=ignored)).eval()
    pixel_values = images()
    labels = labels_for(model, pixel_values)
    labels[:, :20] = ignored
    outputs = model(pixel_values, labels=labels)
    valid = labels != ignored
    expected = F.cross_entropy(outputs.logits.permute(0, 2, 3, 1)[valid], labels[valid])
    assert_same(outputs.loss, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_ignored_pixels_costs_nothing(tiny_config):
    model = SurgeNetForSemanticSegmentation(tiny_config())
    loss = model(images(), labels=torch.full((2, 64, 64), 255)).loss
    assert loss.item() == 0
    loss.backward()
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}
    assert all(not gradient.any() for gradient in gradients(model).values())


@both_heads
def test_every_parameter_is_trained(backbone, model_class, tiny_config):
    model = model_class(tiny_config(backbone))
    pixel_values = images()
    model(pixel_values, labels=labels_for(model, pixel_values)).loss.backward()
    # distributed training refuses parameters without a gradient
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}


@both_heads
def test_a_frozen_backbone_trains_only_the_head(backbone, model_class, tiny_config):
    model = model_class(tiny_config(backbone))
    model.surgenet.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pixel_values = images()
    model(pixel_values, labels=labels_for(model, pixel_values)).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("classifier.", "decode_head.")) for name in changed)


@both_heads
def test_gradient_checkpointing_recomputes_and_changes_nothing(backbone, model_class, tiny_config):
    model = model_class(tiny_config(backbone, depths=[1, 2, 1, 1], drop_path_rate=0.3)).train()
    pixel_values = images(4)
    labels = labels_for(model, pixel_values)
    calls = []
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    assert len(blocks) == 5
    # hook inside the block, since some versions of transformers keep the block's own hooks outside
    for block in blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))

    def step():
        calls.clear()
        model.zero_grad()
        torch.manual_seed(0)  # drop the same blocks
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        return loss.detach(), {name: gradient.clone() for name, gradient in gradients(model).items()}, len(calls)

    loss, expected, plain_calls = step()
    model.gradient_checkpointing_enable()
    checkpointed_loss, checkpointed, checkpointed_calls = step()
    assert (plain_calls, checkpointed_calls) == (5, 10)
    assert_same(checkpointed_loss, loss)
    assert_same(checkpointed, expected)
    model.gradient_checkpointing_disable()
    assert step()[2] == 5


def test_stochastic_depth_acts_in_training_only(backbone, tiny_config):
    model = SurgeNetModel(tiny_config(backbone, drop_path_rate=0.9))
    pixel_values = images(8)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(pixel_values).pooler_output, model(pixel_values).pooler_output)
        model.eval()
        without = SurgeNetModel(tiny_config(backbone)).eval()
        without.load_state_dict(model.state_dict())
        assert_same(model(pixel_values).pooler_output, without(pixel_values).pooler_output)


@pytest.mark.slow
@pytest.mark.parametrize(("model_class", "backbone"), [(HEADS[0], "caformer_s18"), (HEADS[1], "pvt_v2_b2")])
def test_trainer_with_and_without_accumulation(model_class, backbone, tiny_config, tmp_path):
    initial = model_class(tiny_config(backbone))
    pixel_values = images(8)
    labels = labels_for(initial, pixel_values)
    data = [{"pixel_values": x, "labels": y} for x, y in zip(pixel_values, labels, strict=True)]

    def train(batch_size, accumulation):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            learning_rate=0.05,
            optim="sgd",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        model = copy.deepcopy(initial)
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model.state_dict()

    losses, weights = train(batch_size=4, accumulation=1)
    accumulated_losses, accumulated_weights = train(batch_size=2, accumulation=2)
    assert len(losses) == 3
    assert not torch.equal(
        weights["surgenet.encoder.stages.0.blocks.0.mlp.fc1.weight"],
        initial.state_dict()["surgenet.encoder.stages.0.blocks.0.mlp.fc1.weight"],
    )
    np.testing.assert_allclose(accumulated_losses, losses, rtol=1e-4)
    assert_same(accumulated_weights, weights, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------- compile and export


ALL_BACKBONES_AND_ALL_CLASSES = [
    *((SurgeNetForSemanticSegmentation, backbone) for backbone in ("caformer_s18", "convnextv2_tiny", "pvt_v2_b2")),
    *((model_class, "caformer_s18") for model_class in CLASSES if model_class != SurgeNetForSemanticSegmentation),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_class", "backbone"), ALL_BACKBONES_AND_ALL_CLASSES)
def test_compiles_into_one_graph(model_class, backbone, tiny_config):
    torch._dynamo.reset()  # all models share one function of transformers, and the number of recompilations is limited
    model = model_class(tiny_config(backbone)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    pixel_values = images(2, 64, 96)
    with torch.no_grad():
        assert_same(first_tensors(compiled(pixel_values)), first_tensors(model(pixel_values)))


@pytest.mark.slow
def test_inductor(tiny_config):
    torch._dynamo.reset()
    # later stages, which would take 20 s more, are excluded from the compiled graph
    model = SurgeNetBackbone(tiny_config("convnextv2_tiny", out_features=["stage1", "stage2"])).eval()
    pixel_values = images()
    with torch.no_grad():
        expected = model(pixel_values).feature_maps
        actual = torch.compile(model, fullgraph=True)(pixel_values).feature_maps
    assert_same(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_export_and_onnx_with_dynamic_batch_and_size(tiny_config, tmp_path):
    """Test segmentation. tests/inference/test_export.py exports a classifier on another backbone in this way."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = SurgeNetForSemanticSegmentation(tiny_config("caformer_s18")).eval().requires_grad_(False)
    shapes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    program = torch.export.export(model, (), {"pixel_values": images(2, 64, 96)}, dynamic_shapes=shapes)
    exported = program.module()
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    torch.onnx.export(program, f=tmp_path / "model.onnx", verbose=False, **names)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size in ((1, 97, 131), (3, 64, 64)):
        pixel_values = images(*size)
        expected = model(pixel_values).logits
        tolerance = {"rtol": 0, "atol": 1e-4 * expected.abs().max().item()}
        assert_same(exported(pixel_values=pixel_values).logits, expected, **tolerance)
        (onnx,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        assert_same(torch.from_numpy(onnx), expected, **tolerance)


# ------------------------------------------------------------------------------------------------------- the ecosystem


@pytest.mark.slow
@both_heads
def test_lora(backbone, model_class, tiny_config, tmp_path):
    peft = pytest.importorskip("peft")
    model = model_class(tiny_config(backbone))
    base = copy.deepcopy(model)
    head = "classifier" if model_class is SurgeNetForImageClassification else "decode_head"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=[head]))
    before = copy.deepcopy(adapted.state_dict())
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    pixel_values = images()
    for _ in range(2):  # the first step moves only the B matrices, since they start at zero
        optimizer.zero_grad()
        adapted(pixel_values=pixel_values, labels=labels_for(model, pixel_values)).loss.backward()
        optimizer.step()
    changed = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    assert any("stages.3.blocks.0.mlp.fc2.lora_A" in name for name in changed)
    assert all(".lora_" in name or f"{head}.modules_to_save" in name for name in changed)

    adapted.save_pretrained(tmp_path)
    adapted.eval()
    with torch.no_grad():
        expected = adapted(pixel_values).logits
        assert (expected - base.eval()(pixel_values).logits).abs().max() > 1e-3
        loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        assert_same(loaded(pixel_values).logits, expected)
        merged = adapted.merge_and_unload()
        assert type(merged) is model_class
        assert_same(merged(pixel_values).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_lora_with_gradient_checkpointing(backbone, reentrant, tiny_config):
    peft = pytest.importorskip("peft")
    model = SurgeNetForImageClassification(tiny_config(backbone))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear")).train()
    adapted(pixel_values=images(), labels=torch.tensor([0, 1])).loss.backward()
    adapters = {name: p.grad for name, p in adapted.named_parameters() if "stages" in name and "lora_B" in name}
    assert adapters
    assert all(gradient is not None and gradient.any() for gradient in adapters.values())


@pytest.fixture
def frame():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 70, 3), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model_class"),
    [
        ("image-classification", SurgeNetForImageClassification),
        ("image-segmentation", SurgeNetForSemanticSegmentation),
        ("image-feature-extraction", SurgeNetModel),
    ],
)
def test_pipelines(task, model_class, backbone, frame, tiny_config, tmp_path, caplog):
    id2label = {0: "background", 1: "grasper", 2: "hook"}
    model = model_class(tiny_config(backbone, id2label=id2label, label2id={v: k for k, v in id2label.items()}))
    model.eval().save_pretrained(tmp_path)
    processor = SegformerImageProcessor(do_convert_rgb=True, size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        run = pipeline(task, str(tmp_path))
        result = run(frame)
    finally:
        logger.removeHandler(caplog.handler)
    assert "not supported" not in caplog.text
    assert isinstance(run.image_processor, SegformerImageProcessor)
    with torch.no_grad():
        outputs = model(**processor(frame, return_tensors="pt"))
    if task == "image-classification":
        scores = outputs.logits.softmax(-1)[0]
        assert {r["label"]: pytest.approx(r["score"], abs=1e-5) for r in result} == {
            id2label[i]: scores[i].item() for i in range(3)
        }
    elif task == "image-segmentation":
        (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 70)])
        assert {r["label"] for r in result} == {id2label[i] for i in found.unique().tolist()}
        for r in result:
            assert np.array_equal(np.asarray(r["mask"]) > 0, (found == model.config.label2id[r["label"]]).numpy())
    else:
        assert_same(torch.tensor(result), outputs.last_hidden_state, rtol=1e-5, atol=1e-5)
        assert_same(torch.tensor(run(frame, pool=True)), outputs.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_the_image_processor_takes_every_kind_of_image(mode, frame, tiny_config, tmp_path):
    SegformerImageProcessor(do_convert_rgb=True, size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, SegformerImageProcessor)
    image = frame.convert(mode)
    pixel_values = processor(image, return_tensors="pt").pixel_values
    assert_same(pixel_values, processor(image.convert("RGB"), return_tensors="pt").pixel_values)
    assert SurgeNetForImageClassification(tiny_config())(pixel_values).logits.shape == (1, 3)
