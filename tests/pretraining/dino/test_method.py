import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from surgenet_hf import SurgeNetModel
from surgenet_hf.checkpoints.conversion import parameter_map
from surgenet_hf.pretraining.arguments import SMALL, DinoConfig
from surgenet_hf.pretraining.dino.method import (
    DinoModel,
    apply_gradients,
    build_optimizer,
    build_schedules,
    clip_gradients,
    compute_loss,
    parameter_groups,
    training_step,
)

SMALL_HEAD = {"out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8, "epochs": 2, "warmup_epochs": 0}


@pytest.fixture
def build(tiny_config):
    def build(backbone="caformer_s18", drop_path_rate=0.0, **changes) -> DinoModel:
        torch.manual_seed(0)
        network = SurgeNetModel(tiny_config(backbone, drop_path_rate=drop_path_rate)).eval()
        return DinoModel(network, DinoConfig(**{**SMALL_HEAD, **changes}))

    return build


def crops(*sizes: int, batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, size, size, generator=generator) for size in sizes]


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def run(model: DinoModel, steps: range, images: list[torch.Tensor], optimizer=None) -> torch.optim.Optimizer:
    optimizer = optimizer or build_optimizer(model.student)
    schedules = build_schedules(model.config, steps_per_epoch=2, total_batch_size=256)
    for step in steps:
        result = training_step(model, optimizer, schedules, [images], step)
        assert result.finite
        assert result.loss.isfinite()
    return optimizer


def test_teacher_starts_equal_and_only_follows(build, backbone):
    model = build(backbone, drop_path_rate=0.3)
    assert not changed(model.teacher, state(model.student))
    assert all(module.training for module in model.modules())
    assert model.student.backbone.config.drop_path_rate == 0.3
    rates = {
        name: [m.drop_prob for m in getattr(model, name).modules() if hasattr(m, "drop_prob")]
        for name in ("student", "teacher")
    }
    assert max(rates["student"], default=0) > 0
    assert max(rates["teacher"], default=0) == 0

    compute_loss(model, crops(64, 64, 32), teacher_temp=0.04).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    without = {name for name, p in model.student.named_parameters() if p.grad is None}
    # distributed training requires a gradient for every other parameter
    assert without == {"head.last_layer.weight_g"}


def test_moving_average(build):
    model = build()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    before = state(model.teacher)
    model.update_teacher(0.75, torch.tensor(True))
    for name, tensor in model.teacher.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * model.student.state_dict()[name])


@pytest.mark.parametrize("sizes", [(64, 64), (64, 64, 32, 32, 32), (64, 32, 64, 32, 48)])
def test_crops_of_any_sizes_and_numbers(build, sizes):
    model, images = build(), crops(*sizes)
    passes = []
    model.student.backbone.register_forward_hook(lambda module, inputs, outputs: passes.append(len(inputs[0])))
    model.student.head.register_forward_hook(lambda module, inputs, outputs: passes.append("head"))
    logits = model.student(images)
    assert passes == [3 * sizes.count(size) for size in dict.fromkeys(sizes)] + ["head"]
    assert logits.shape == (len(sizes), 3, 12)
    for crop, found in zip(images, logits, strict=True):
        expected = model.student.head(model.student.backbone(crop).pooler_output)
        torch.testing.assert_close(found, expected)


def test_teacher_sees_the_global_crops(build):
    model, seen = build(), []
    model.teacher.register_forward_hook(lambda module, inputs, outputs: seen.extend(inputs[0]))
    images = crops(64, 48, 32, 32)
    outputs = compute_loss(model, images, 0.04)
    assert [image.shape[-1] for image in seen] == [64, 48]
    teacher_logits = model.teacher(images[:2])
    torch.testing.assert_close(outputs.teacher_logits, teacher_logits)
    torch.testing.assert_close(outputs.loss, model.loss(model.student(images), teacher_logits, 0.04))


def test_center_follows_after_the_loss(build):
    model, images = build(), crops(64, 64)
    with torch.no_grad():
        mean = model.teacher(images).mean(dim=(0, 1))
        expected = model.loss(model.student(images), model.teacher(images), 0.04)  # with the old center
    schedules = build_schedules(model.config, steps_per_epoch=2, total_batch_size=256)
    result = training_step(model, build_optimizer(model.student), schedules, [images], 0)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(model.loss.center[0], 0.1 * mean)


@pytest.mark.slow
def test_accumulated_batches_are_one_batch(build):
    images = crops(64, 64, 32, batch=4)
    schedules = build_schedules(DinoConfig(**SMALL_HEAD, lr=0.5), steps_per_epoch=2, total_batch_size=256)
    whole, halves = build(momentum_teacher=0.5), build(momentum_teacher=0.5)
    for model, batches in ((whole, [images]), (halves, [[c[:2] for c in images], [c[2:] for c in images]])):
        # SGD, since AdamW would hide gradients of another scale
        optimizer = torch.optim.SGD(parameter_groups(model.student), fused=True)
        for step in range(3):
            result = training_step(model, optimizer, schedules, batches, step, num_batches=len(batches))
    torch.testing.assert_close(whole.loss.center, halves.loss.center, rtol=1e-4, atol=1e-6)
    for name, tensor in halves.teacher.state_dict().items():
        torch.testing.assert_close(tensor, whole.teacher.state_dict()[name], rtol=1e-3, atol=1e-5)
    assert result.finite


def test_step_without_finite_gradients_changes_nothing(build):
    model = build(freeze_last_layer=0)
    optimizer = run(model, range(2), crops(64, 64, 32))
    before, moments = state(model), copy.deepcopy(optimizer.state_dict())
    broken = crops(64, 64, 32)
    broken[2][1] = torch.nan
    schedules = build_schedules(model.config, steps_per_epoch=2, total_batch_size=256)
    result = training_step(model, optimizer, schedules, [broken], 2)
    assert not result.finite
    assert not result.loss.isfinite()
    assert not changed(model, before)
    for found, expected in zip(optimizer.state_dict()["state"].values(), moments["state"].values(), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    run(model, range(3, 4), crops(64, 64, 32), optimizer)  # the next step works again
    assert changed(model, before)


def test_parameter_groups(build, backbone):
    student = build(backbone).student
    decayed, others = parameter_groups(student)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, others)]
    assert "weight_decay" not in decayed
    assert others["weight_decay"] == 0
    assert groups[0] | groups[1] == set(names.values()) - {"head.last_layer.weight_g"}
    vectors = {name for name, parameter in student.named_parameters() if parameter.ndim == 1}
    grn = {name for name in vectors if ".grn." in name}  # (1, 1, 1, C) in the original
    assert bool(grn) is (backbone == "convnextv2_tiny")
    assert groups[1] == vectors - grn
    assert "head.mlp.0.bias" in groups[1]
    assert {"head.mlp.0.weight", "head.last_layer.weight_v"} < groups[0]


def test_trainable_norm_of_the_last_layer_is_decayed_as_in_the_original(build):
    student = build(norm_last_layer=False).student
    assert any(parameter is student.head.last_layer.weight_g for parameter in parameter_groups(student)[0]["params"])


def test_original_names(build, backbone):
    student = build(backbone).student
    names = student.original_names()
    assert list(names) == list(student.state_dict())
    for ours, (name, shape) in parameter_map(student.backbone, "original").items():
        assert names[f"backbone.{ours}"] == (f"backbone.{name}", shape)
    assert names["head.last_layer.weight_v"] == ("head.last_layer.weight_v", (12, 8))


def test_step_follows_the_schedules(build):
    model = build(lr=0.01)
    before, optimizer = state(model.teacher), run(model, range(1), crops(64, 64, 32))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.04), 0.0]
    student = model.student.state_dict()
    for name, tensor in model.teacher.state_dict().items():
        torch.testing.assert_close(tensor, before[name].lerp(student[name], 0.004))
    assert all(parameter.grad is None for parameter in model.student.parameters())
    run(model, range(1, 3), crops(64, 64, 32), optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.22), 0.0]


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_last_layer_is_frozen_in_the_first_epoch(build, norm_last_layer):
    model = build(norm_last_layer=norm_last_layer)
    before, last = state(model.student), {"head.last_layer.weight_v", "head.last_layer.weight_g"}
    optimizer = run(model, range(2), crops(64, 64))
    assert changed(model.student, before) == before.keys() - last
    assert model.student.head.last_layer.weight_v not in optimizer.state
    run(model, range(2, 3), crops(64, 64), optimizer)
    trained = last if not norm_last_layer else {"head.last_layer.weight_v"}
    assert changed(model.student, before) == before.keys() - last | trained


def test_each_gradient_is_clipped_by_itself():
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([[0.3], [0.4]]), torch.zeros(2)]
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    clip_gradients([*parameters, torch.nn.Parameter(torch.zeros(1))], max_norm=1.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.8]))
    assert torch.equal(parameters[1].grad, gradients[1])
    assert torch.equal(parameters[2].grad, gradients[2])


@pytest.mark.slow
@pytest.mark.parametrize(("clip_grad", "norm"), [(0.5, 0.5), (0, 100)])
def test_gradients_reach_the_optimizer_clipped(build, clip_grad, norm):
    model = build(clip_grad=clip_grad)
    for parameter in model.student.parameters():
        parameter.grad = torch.full_like(parameter, 100 / parameter.numel() ** 0.5)
    optimizer = torch.optim.SGD(parameter_groups(model.student), lr=1.0, fused=True)
    values = build_schedules(model.config, 2, 256).at(2)._replace(lr=1.0, weight_decay=0.0)
    before = copy.deepcopy(model.student)
    apply_gradients(model, optimizer, values, [torch.zeros(12)])
    for old, new in zip(before.parameters(), model.student.parameters(), strict=True):
        if old.requires_grad:
            assert (old - new).norm().item() == pytest.approx(norm, rel=1e-3)


class NoWaiting(TorchDispatchMode):
    """Dispatch mode that raises an error at operations that make the host wait for a GPU.

    These read numbers from it, move numbers to it, or create shapes that depend on values.
    """

    READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select")
    in_autograd = False  # autograd creates its own numbers on the device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in self.READS, func
        if func.name() == "aten::where.self" and not self.in_autograd:
            assert all(x.ndim for x in args[1:]), "torch.where moves a number to the device"
        return func(*args, **(kwargs or {}))

    def backward(self, loss: torch.Tensor) -> None:
        self.in_autograd = True
        loss.backward()
        self.in_autograd = False


def test_step_waits_for_the_device_nowhere(build):
    model = build()
    optimizer = run(model, range(1), crops(64, 64, 32))
    schedules = build_schedules(model.config, steps_per_epoch=2, total_batch_size=256)
    images = crops(64, 64, 32)
    with NoWaiting() as mode:
        training_step(model, optimizer, schedules, [images, images], 2, num_batches=2, backward=mode.backward)


@pytest.fixture
def accelerate_state():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("accelerate_state")
def test_loss_scaling_changes_nothing(build):
    """Test that loss scaling changes nothing.

    Under fp16, Accelerate scales the loss. Clipping, the step, and the mask must use the true gradients.
    """
    images, models = crops(64, 64, 32), []
    for scale in (None, 1024.0):
        model = build(clip_grad=1e-3, lr=0.1)
        optimizer, backward = (
            torch.optim.SGD(parameter_groups(model.student), lr=0.0, fused=True),
            torch.Tensor.backward,
        )
        if scale is not None:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            optimizer = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
            backward = lambda loss, scaler=scaler: scaler.scale(loss).backward()  # noqa: E731
        schedules = build_schedules(model.config, steps_per_epoch=1, total_batch_size=256)
        for step in range(2):
            assert training_step(model, optimizer, schedules, [images], step, backward=backward).finite
        models.append(model)
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], tensor)
    before = state(models[1])
    result = training_step(
        models[1], optimizer, schedules, [[image * torch.nan for image in images]], 1, backward=backward
    )
    assert not result.finite
    assert not changed(models[1], before)
    assert scaler.get_scale() == 512


def test_batch_norm_head_trains(build, tmp_path):
    model = build(use_bn_in_head=True)
    before = state(model.teacher)
    run(model, range(3), crops(64, 64, 32))
    assert model.student.head.mlp[1].num_batches_tracked == 3
    # the teacher's statistics come from its own passes; its weights follow the student's
    assert {"head.mlp.1.running_mean", "head.mlp.1.weight", "head.mlp.0.weight"} <= changed(model.teacher, before)
    no_decay = parameter_groups(model.student)[1]["params"]
    assert any(parameter is model.student.head.mlp[1].weight for parameter in no_decay)


def test_teacher_backbone_is_a_model_of_ours(build, tmp_path):
    model = build(drop_path_rate=0.1)
    run(model, range(3), crops(64, 64))
    model.teacher.backbone.save_pretrained(tmp_path)
    loaded = SurgeNetModel.from_pretrained(tmp_path)
    assert not changed(loaded, state(model.teacher.backbone))
    assert changed(loaded, state(model.student.backbone))


def test_config():
    recipe, small = DinoConfig(), DinoConfig(**SMALL | {"epochs": 100})
    assert (recipe.out_dim, recipe.momentum_teacher, recipe.clip_grad, recipe.lr) == (65_536, 0.996, 3.0, 5e-4)
    assert small.epochs == 100
    assert small.out_dim < recipe.out_dim
    assert small.momentum_teacher < recipe.momentum_teacher
    assert small.warmup_epochs > recipe.warmup_epochs
    impossible = {"teacher_temp": 0.0, "momentum_teacher": 1.5, "warmup_epochs": 51, "lr": float("nan")}
    impossible |= {"student_temp": float("inf"), "weight_decay": 10**400, "epochs": 10**7}
    for name, value in impossible.items():
        with pytest.raises(ValueError, match=f"{name} must be .* got ({value}|{value:,})"):
            DinoConfig(**{name: value})
