"""Tests of nine steps of a small vision transformer against `train_one_epoch` of facebookresearch/dino."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from surgenet_hf.pretraining.arguments import DinoConfig
from surgenet_hf.pretraining.dino.method import DinoModel, DinoNetwork, build_optimizer, build_schedules, training_step
from surgenet_hf.pretraining.dino.vit import ARCHITECTURE
from tests.goldens import fill

GOLDENS = Path(__file__).parents[1] / "goldens"
MANIFEST = json.loads((GOLDENS / "dino_vit_manifest.json").read_text())
RUN = MANIFEST["config"]
SAMPLES = 16  # values of each tensor in the goldens
FIXED = ("lambda1", "mask_token", "register_tokens")
RENAMES = (  # from transformers' names, those of earlier versions included
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"encoder\.layer\.", "blocks."),
    (r"attention\.(?:o_proj|output\.dense)", "attn.proj"),
    (r"attention\.(?:attention\.)?(?:[qkv]_proj|query|key|value)", "attn.qkv"),
    (r"layernorm", "norm"),
)


def original_parts(network: DinoNetwork) -> dict[str, list[torch.Tensor]]:
    """Return the tensors of a network by their original names, where query, key, and value are parts of one tensor."""
    parts = defaultdict(list)
    for name, tensor in network.state_dict().items():
        if not name.endswith(FIXED):
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            parts[name].append(tensor)
    return parts


def golden_model() -> DinoModel:
    names = ["epochs", "lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "momentum_teacher"]
    names += ["clip_grad", "freeze_last_layer", "warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs"]
    names += ["out_dim", "hidden_dim", "bottleneck_dim"]
    config = Dinov2WithRegistersConfig(
        **ARCHITECTURE,
        hidden_size=RUN["hidden_size"],
        num_hidden_layers=RUN["layers"],
        num_attention_heads=RUN["heads"],
        image_size=RUN["image_size"],
        drop_path_rate=RUN["drop_path_rate"],
    )
    model = DinoModel(Dinov2WithRegistersModel(config), DinoConfig(**{name: RUN[name] for name in names}))
    for network in (model.student, model.teacher):
        parts = original_parts(network)
        assert parts.keys() == MANIFEST["parameters"].keys()
        for name, shape in MANIFEST["parameters"].items():
            full = f"{RUN['tag']}/{name}"
            if name.endswith(("cls_token", "pos_embed")):
                values = fill.uniform(full, shape) - 0.5
            else:
                values = np.ones(shape) if name.endswith("weight_g") else fill.parameter(full, shape)
            chunks = torch.from_numpy(values.astype(np.float32)).chunk(len(parts[name]))
            for tensor, chunk in zip(parts[name], chunks, strict=True):
                tensor.copy_(chunk)
    return model


def crops_of_step(step: int) -> list[torch.Tensor]:
    crops = []
    for i, size in enumerate(RUN["crop_sizes"]):
        pixels = (fill.uniform(f"{RUN['tag']}/step{step}/crop{i}", (RUN["batch_size"], 3, size, size)) - 0.5) * 4
        crops.append(torch.from_numpy(pixels.astype(np.float32)))
    return crops


def test_nine_steps():
    """Test loss, center, and weights of student and teacher after each of nine steps.

    In the first epoch, the last layer is frozen. At least a quarter of the gradients are clipped in each step. The
    student drops paths with the original's draws. The local crops have two sizes.
    """
    model = golden_model()
    optimizer = build_optimizer(model.student)
    schedules = build_schedules(model.config, RUN["iterations_per_epoch"], RUN["batch_size"])
    found = defaultdict(list, {name: list(getattr(schedules, name)) for name in ("lr", "weight_decay", "momentum")})
    for step in range(len(schedules.lr)):
        torch.manual_seed(step)
        result = training_step(model, optimizer, schedules, [crops_of_step(step)], step)
        found["losses"].append(result.loss.item())
        found["centers"].append(model.loss.center[0].clone())
        for network in ("student", "teacher"):
            for name, parts in original_parts(getattr(model, network)).items():
                values = torch.cat(parts).flatten()
                found[f"{network}/{name}"].append(values[:: -(-len(values) // SAMPLES)].clone())
    with np.load(GOLDENS / "dino_vit.npz") as goldens:
        assert goldens.keys() == found.keys()
        for name, expected in goldens.items():
            error = np.abs(np.array(found[name]) - expected)
            if name.endswith("qkv.bias"):
                # The gradient of the key's bias is 0 up to rounding, which AdamW scales to steps of any sign. This
                # bias has no effect on the output.
                error = np.delete(error, slice(error.shape[1] // 3, 2 * error.shape[1] // 3 + 1), axis=1)
            print(f"{name} off by {error.max():.1e}")
            assert error.max() < 1e-5, f"{name} is off by {error.max():.1e}"


def test_parameters_without_a_counterpart_are_fixed():
    model = golden_model()
    fixed = {name for name, parameter in model.student.named_parameters() if not parameter.requires_grad}
    assert fixed == {name for name in model.student.state_dict() if name.endswith((*FIXED, "weight_g"))}
    before = {name: tensor.clone() for name, tensor in model.student.state_dict().items()}
    optimizer = build_optimizer(model.student)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sum(map(torch.Tensor.numel, trained)) == sum(
        np.prod(shape) for name, shape in MANIFEST["parameters"].items() if not name.endswith("weight_g")
    )
    schedules = build_schedules(model.config, RUN["iterations_per_epoch"], RUN["batch_size"])

    def check(loss):
        loss.backward()
        # distributed training requires a gradient for every parameter that is not fixed
        assert {name for name, p in model.student.named_parameters() if p.grad is None} == fixed

    training_step(model, optimizer, schedules, [crops_of_step(0)], 5, backward=check)
    after = model.student.state_dict()
    assert {name for name in before if torch.equal(before[name], after[name])} == fixed
    assert all(torch.equal(model.teacher.state_dict()[name], before[name]) for name in fixed)
