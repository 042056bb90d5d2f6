import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, TrainingArguments

from surgenet_hf import SurgeNetConfig, SurgeNetForSemanticSegmentation
from surgenet_hf.checkpointing import write_record
from surgenet_hf.data.sets.synthetic import load as load_synthetic
from surgenet_hf.errors import UserError
from surgenet_hf.finetuning.arguments import SurgeNetTrainingArguments
from surgenet_hf.finetuning.run import stage_arguments
from surgenet_hf.finetuning.segmentation import build_model, finetune, pixel_weights, segmentation_loss
from surgenet_hf.finetuning.trainer import SurgeNetTrainer, balanced_weights, freeze_backbone, layer_groups

TINY = SurgeNetConfig(
    depths=[1, 1, 2, 1],
    hidden_sizes=[16, 24, 32, 64],
    pyramid_channels=32,
    segmentation_channels=64,
    segmentation_dropout=0.2,
    drop_path_rate=0.2,
)


@pytest.fixture(scope="module")
def data():
    return load_synthetic(num_videos=3, frames_per_video=4, size=(36, 48))


def arguments(output_dir, **changes):
    defaults = {
        "max_steps": 7,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "learning_rate": 1e-3,
    }
    return TrainingArguments(output_dir=str(output_dir), **{**defaults, **changes})


def run(data, args):
    torch.manual_seed(0)
    model, processor = build_model(TINY, data, 32)
    finetune(model, processor, data, args, "strong")
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_in_mid_epoch_it_ends_with_the_same_weights(data, tmp_path, workers):
    """Test that a run resumed in mid-epoch ends with the same weights.

    It resumes in epochs of 4 steps. Augmentation, dropout, and order must continue unchanged in steps 5 to 7.
    """
    steps = {"save_strategy": "steps", "save_steps": 5, "dataloader_num_workers": workers}
    expected = run(data, arguments(tmp_path / "a", **steps))
    assert len(data.splits["train"]) == 8
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "checkpoint-5", tmp_path / "b" / "checkpoint-5")  # left by a killed run
    torch.manual_seed(1)
    np.random.seed(1)
    found = run(data, arguments(tmp_path / "b", resume_from_checkpoint="true", **steps))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = run(data, arguments(tmp_path / "c", seed=1))
    assert not all(torch.equal(other[name], expected[name]) for name in expected)


def test_bf16_remains_after_an_evaluation_and_a_checkpoint(data, tmp_path, monkeypatch):
    found = {}

    def training_step(self, model, inputs, num_items_in_batch=None):
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        hook = layer.register_forward_hook(lambda _, __, output: found.update({self.state.global_step: output.dtype}))
        with hook:
            return original(self, model, inputs, num_items_in_batch)

    original = SurgeNetTrainer.training_step
    monkeypatch.setattr(SurgeNetTrainer, "training_step", training_step)
    each_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run(data, arguments(tmp_path, max_steps=3, bf16=True, **each_step))
    assert found == dict.fromkeys(range(3), torch.bfloat16)


TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    "config",
    [
        AutoConfig.for_model("dinov2_with_registers", **TRANSFORMER, image_size=28),
        AutoConfig.for_model("dinov3_vit", **TRANSFORMER),
        AutoConfig.for_model("swin", embed_dim=12, depths=[1, 1], num_heads=[1, 2], image_size=32),
    ],
    ids=lambda config: config.model_type,
)
def test_checkpoints_whose_names_differ_from_those_of_the_model(config, data, tmp_path, caplog):
    """Test that all weights of the best checkpoint and of a resumed one are loaded."""
    model = AutoModel.from_config(config)
    trainer = SurgeNetTrainer(args=arguments(tmp_path), data=data, task_metric="loss", model=model)
    trainer.save_model(tmp_path / "checkpoint-1")
    assert set(load_file(tmp_path / "checkpoint-1" / "model.safetensors")) != set(model.state_dict())
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def change():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)

    for load in (trainer._load_best_model, lambda: trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))):
        change()
        trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
        load()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    save_file({"other": torch.ones(1)}, tmp_path / "checkpoint-1" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"checkpoint-1 does not fit the model: .* tensors are missing"):
        trainer._load_best_model()


def test_stages_resume_where_the_run_was(tmp_path):
    assert stage_arguments(arguments(tmp_path), str(tmp_path / "s1"), max_steps=3).max_steps == 3
    (tmp_path / "s1" / "checkpoint-3").mkdir(parents=True)
    write_record(tmp_path / "s1" / "checkpoint-3", {})
    with pytest.raises(UserError, match="earlier run"):
        stage_arguments(arguments(tmp_path), str(tmp_path / "s1"))
    resumed = arguments(tmp_path, resume_from_checkpoint="true")
    assert stage_arguments(resumed, str(tmp_path / "s1")).resume_from_checkpoint == "true"
    # the second stage has not started
    assert stage_arguments(resumed, str(tmp_path / "s2")).resume_from_checkpoint is None


def test_learning_rate_falls_with_depth():
    model = SurgeNetForSemanticSegmentation(TINY)
    groups = layer_groups(model, 0.5, learning_rate=1.0, weight_decay=0.1)
    rates = {}
    for group in groups:
        for parameter in group["params"]:
            rates[id(parameter)] = (group["lr"], group["weight_decay"])
    assert len(rates) == len(list(model.parameters()))
    encoder = model.surgenet.encoder
    assert rates[id(model.decode_head.classifier.weight)] == (1.0, 0.1)
    assert rates[id(encoder.stages[3].blocks[0].mlp.fc1.weight)] == (0.5, 0.1)
    assert rates[id(encoder.stages[3].downsample.conv.bias)] == (0.5, 0.0)
    assert rates[id(encoder.stages[2].blocks[0].mlp.fc1.weight)] == (0.125, 0.1)
    assert rates[id(encoder.stem.conv.weight)] == (0.5**6, 0.1)


def test_layer_decay_and_frozen_backbone_reach_the_training(data, tmp_path):
    model, processor = build_model(TINY, data, 32)
    freeze_backbone(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetune(model, processor, data, arguments(tmp_path, max_steps=2), layer_decay=0.5)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("decode_head.") for name in changed)


@pytest.mark.slow
def test_the_best_checkpoint_is_the_tasks(data, tmp_path):
    """Test that the metric selects the best checkpoint, not the loss, which is the default of Trainer."""
    args = SurgeNetTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=4,
        per_device_train_batch_size=2,
        disable_tqdm=True,
        learning_rate=3e-3,
    )
    model, processor = build_model(TINY, data, 32)
    trainer = finetune(model, processor, data, args)
    evaluations = {
        log["step"]: log["eval_pooled_dice"] for log in trainer.state.log_history if "eval_pooled_dice" in log
    }
    assert len(evaluations) == 4
    best = max(evaluations, key=evaluations.get)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.state.best_metric == evaluations[best]
    assert trainer.evaluate()["eval_pooled_dice"] == evaluations[best]


def test_losses():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randint(0, 3, (2, 5, 6))
    labels[0, :2] = 255
    plain = segmentation_loss("cross_entropy")(logits, labels)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(logits, labels, ignore_index=255))
    weights = torch.tensor([1.0, 2.0, 0.5])
    weighted = segmentation_loss("cross_entropy", weights=weights)(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255, weight=weights)
    torch.testing.assert_close(weighted, expected)

    perfect = torch.nn.functional.one_hot(labels.where(labels != 255, 0), 3).movedim(-1, 1) * 100.0
    assert segmentation_loss("cross_entropy+dice")(perfect, labels) < 1e-3
    assert 0.5 < segmentation_loss("cross_entropy+dice")(logits, labels) - plain < 1
    nothing = segmentation_loss("cross_entropy+dice")(logits, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.isnan().any()
    with pytest.raises(ValueError, match="loss must be one of"):
        segmentation_loss("dice")


def test_balanced_weights(data):
    weights = balanced_weights(torch.tensor([90, 10, 0]))
    torch.testing.assert_close(weights, torch.tensor([0.2, 1.8, 0.0]))
    weights = pixel_weights(data)
    pixels = np.bincount(np.concatenate([row["mask"].ravel() for row in data.splits["train"]]), minlength=256)
    assert weights.argmin() == pixels[: len(data.labels)].argmax()
