"""DINO, self-distillation with no labels (Caron et al., ICCV 2021), of a SurgeNet backbone.

One step is `training_step`; it does what the original training loop does, and waits for the device nowhere.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ...checkpoints.conversion import parameter_map
from ...modeling_surgenet import SurgeNetModel
from .head import DinoHead
from .loss import DinoLoss
from .schedules import Schedules, StepValues, cosine_schedule, scaled_learning_rate, teacher_temperatures

_MAX_EPOCHS = 100_000  # schedules hold values of every step; 100 times as long as published trainings
NUM_GLOBAL_CROPS = 2  # the teacher sees these, the first of each sample; the student sees all
# what suits some thousand frames: fewer prototypes, a faster teacher, a longer warm-up; and a sharper teacher, since
# with 0.04 the outputs drifted to uniform ones (343 frames, small CAFormer, momentum 0.99 and 0.996)
SMALL = {
    "out_dim": 4096,
    "momentum_teacher": 0.99,
    "warmup_epochs": 20,
    "warmup_teacher_temp": 0.02,
    "teacher_temp": 0.02,
}


def _option(default, help: str, **metadata):
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class DinoConfig:
    """Hyper-parameters of the method, by the names of the original; the defaults are SurgeNet's recipe."""

    epochs: int = _option(50, "Length of all schedules.", aliases=["--num_train_epochs"])
    lr: float = _option(
        5e-4,
        "Learning rate after the warm-up for 256 frames a step; scaled linearly with the total batch.",
        aliases=["--learning_rate"],
    )
    min_lr: float = _option(1e-6, "Learning rate at the end.")
    warmup_epochs: int = _option(10, "Warm-up of the learning rate, from 0.")
    weight_decay: float = _option(0.04, "Weight decay at the start, of all but biases and vectors.")
    weight_decay_end: float = _option(0.4, "Weight decay at the end.")
    clip_grad: float = _option(3.0, "Largest L2 norm of the gradient of each single parameter; 0: no clipping.")
    freeze_last_layer: int = _option(1, "Epochs in which the last layer of the head stays as it is.")
    momentum_teacher: float = _option(0.996, "Momentum of the teacher's moving average at the start; rises to 1.")
    warmup_teacher_temp: float = _option(0.04, "The teacher's temperature at the start.")
    teacher_temp: float = _option(0.04, "The teacher's temperature after its warm-up.")
    warmup_teacher_temp_epochs: int = _option(0, "Length of that warm-up.")
    student_temp: float = _option(0.1, "The student's temperature.")
    center_momentum: float = _option(0.9, "Of the running mean of the teacher's logits.")
    out_dim: int = _option(65_536, "Prototypes of the head.")
    hidden_dim: int = _option(2048, "Width of the head's hidden layers.")
    bottleneck_dim: int = _option(256, "Width of the head's output before the prototypes.")
    head_layers: int = _option(3, "Layers of the head's MLP.")
    use_bn_in_head: bool = _option(False, "Batch norm in the head.")
    norm_last_layer: bool = _option(True, "Fix the norm of each prototype to 1: more stable.")

    def __post_init__(self):
        for name, value in vars(self).items():
            if not abs(value) <= 1e9:  # also refuses NaN, and integers that no float can hold
                raise ValueError(f"{name} must be finite and at most 1e9, got {value}")
        for name in ("warmup_teacher_temp", "teacher_temp", "student_temp", "epochs", "out_dim"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("lr", "min_lr", "weight_decay", "weight_decay_end", "clip_grad", "freeze_last_layer"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("momentum_teacher", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.epochs > _MAX_EPOCHS:
            raise ValueError(f"epochs must be at most {_MAX_EPOCHS:,}, got {self.epochs:,}")
        for name in ("warmup_epochs", "warmup_teacher_temp_epochs"):
            if not 0 <= getattr(self, name) <= self.epochs:
                raise ValueError(f"{name} must be in [0, epochs], got {getattr(self, name)} of {self.epochs} epochs")


class DinoNetwork(nn.Module):
    """Backbone and head; the student is one, the teacher another."""

    def __init__(self, backbone: SurgeNetModel, head: DinoHead):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[torch.Tensor]) -> torch.Tensor:
        """N crops of each of B samples, each (B, 3, h, w) with sizes of their own, to logits (N, B, out_dim).

        The backbone runs once for each size, the head once for all.

        Raises:
            ValueError: crops of different numbers of samples.
        """
        if len({len(crop) for crop in crops}) != 1:
            raise ValueError(f"each crop needs the same samples, got batches of {[len(crop) for crop in crops]}")
        by_size: dict[torch.Size, list[int]] = {}
        for i, crop in enumerate(crops):
            by_size.setdefault(crop.shape, []).append(i)
        embeddings: list[torch.Tensor] = [None] * len(crops)
        for indices in by_size.values():
            pooled = self.backbone(torch.cat([crops[i] for i in indices])).pooler_output
            for i, embedding in zip(indices, pooled.chunk(len(indices)), strict=True):
                embeddings[i] = embedding
        return self.head(torch.cat(embeddings)).unflatten(0, (len(crops), -1))

    def original_names(self) -> dict[str, tuple[str, torch.Size]]:
        """Our parameter names -> (name, shape) in the original DINO checkpoints: `backbone.*`, `head.*`."""
        names = {
            f"backbone.{ours}": (f"backbone.{name}", shape)
            for ours, (name, shape) in parameter_map(self.backbone, "original").items()
        }
        return names | {f"head.{name}": (f"head.{name}", t.shape) for name, t in self.head.state_dict().items()}


class DinoModel(nn.Module):
    """Student, teacher and loss.

    The teacher starts equal to the student, has no gradients and no drop path, and follows by `update_teacher`. Both
    stay in training mode, as in the original: a head with batch norm takes the statistics of the batch in both.

    Args:
        backbone: where student and teacher start; it becomes the student's. Its `config.drop_path_rate` is the
            student's.
    """

    def __init__(self, backbone: SurgeNetModel, config: DinoConfig):
        super().__init__()
        self.config = config
        head = DinoHead(
            backbone.config.hidden_sizes[-1],
            config.out_dim,
            config.hidden_dim,
            config.bottleneck_dim,
            config.head_layers,
            config.use_bn_in_head,
            config.norm_last_layer,
        )
        teacher_config = copy.deepcopy(backbone.config)
        teacher_config.drop_path_rate = 0.0
        self.student = DinoNetwork(backbone, head)
        self.teacher = DinoNetwork(SurgeNetModel(teacher_config), copy.deepcopy(head))
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.loss = DinoLoss(config.out_dim, config.student_temp, config.center_momentum)
        self.train()

    @torch.no_grad()
    def update_teacher(self, momentum: float, keep: torch.Tensor):
        """teacher <- momentum * teacher + (1 - momentum) * student, for each parameter, if `keep` (bool scalar)."""
        teacher = list(self.teacher.parameters())
        weight = keep * (1 - momentum)  # `where` would move the numbers to the device and wait for it
        torch._foreach_lerp_(teacher, list(self.student.parameters()), [weight] * len(teacher))


def build_schedules(config: DinoConfig, steps_per_epoch: int, total_batch_size: int) -> Schedules:
    """The schedules of a whole run.

    Args:
        steps_per_epoch: number of optimiser steps.
        total_batch_size: frames of one optimiser step, over all processes and accumulated batches.
    """
    num_steps = config.epochs * steps_per_epoch
    warmup_steps = config.warmup_epochs * steps_per_epoch
    lr = scaled_learning_rate(config.lr, total_batch_size)
    temperatures = teacher_temperatures(
        config.warmup_teacher_temp, config.teacher_temp, config.epochs, config.warmup_teacher_temp_epochs
    )
    return Schedules(
        lr=cosine_schedule(lr, config.min_lr, num_steps, warmup_steps),
        weight_decay=cosine_schedule(config.weight_decay, config.weight_decay_end, num_steps),
        momentum=cosine_schedule(config.momentum_teacher, 1.0, num_steps),
        teacher_temp=np.repeat(temperatures, steps_per_epoch),
        freeze_last_layer=np.arange(num_steps) < config.freeze_last_layer * steps_per_epoch,
    )


def parameter_groups(student: DinoNetwork) -> list[dict]:
    """Two groups for AdamW: decayed parameters; biases and vectors (norms, scales), which are not decayed.

    Fixed parameters are in neither. What counts as a vector is told by the shapes of the original, which decays the
    (1, 1, 1, C) parameters of ConvNeXtV2's response normalisation.
    """
    names = student.original_names()
    decayed, others = [], []
    for ours, parameter in student.named_parameters():
        name, shape = names[ours]
        if parameter.requires_grad:
            (others if name.endswith(".bias") or len(shape) == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def build_optimizer(student: DinoNetwork) -> torch.optim.AdamW:
    """AdamW over the `parameter_groups`; fused, because only that can leave out a step without asking the device."""
    return torch.optim.AdamW(parameter_groups(student), lr=0.0, fused=True)  # the schedules set lr and weight decay


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradient of each parameter down to an L2 norm of `max_norm` (0: not at all), each by itself.

    Returns:
        the norms before (n,), of the n parameters that have a gradient.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    if max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norms + 1e-6)).clamp(max=1.0).unbind())
    return norms


class Outputs(NamedTuple):
    """The loss of this process's samples with its graph; and what it was computed of, without."""

    loss: torch.Tensor
    student_logits: torch.Tensor  # (S, B, K)
    teacher_logits: torch.Tensor  # (T, B, K)
    center: torch.Tensor  # (1, K)


def compute_loss(
    model: DinoModel, crops: Sequence[torch.Tensor], teacher_temp: float, student: nn.Module | None = None
) -> Outputs:
    """The forward pass.

    Args:
        crops: N tensors (B, 3, h, w), the two global crops first.
        student: `model.student` as wrapped for distributed training; default: `model.student`.
    """
    with torch.no_grad():
        teacher_logits = model.teacher(crops[:NUM_GLOBAL_CROPS])
    student_logits = (model.student if student is None else student)(crops)
    loss = model.loss(student_logits, teacher_logits, teacher_temp)
    return Outputs(loss, student_logits.detach(), teacher_logits, model.loss.center.clone())


def apply_gradients(
    model: DinoModel, optimizer: torch.optim.Optimizer, values: StepValues, teacher_means: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The second half of a step: clip, optimise, and let centre and teacher follow. Gradients are used up.

    Where a gradient is not finite, nothing changes. Gradients are the mean over all processes, so all agree; and
    nobody waits for the device.

    Args:
        optimizer: from `build_optimizer`, perhaps as Accelerate wraps it.
        values: of this step, from `Schedules.at`.
        teacher_means: mean teacher logits (K,) of each of the step's batches in this process.

    Returns:
        whether all gradients were finite: a bool scalar on the device.
    """
    for group, weight_decay in zip(optimizer.param_groups, (values.weight_decay, 0.0), strict=True):
        group["lr"] = values.lr
        group["weight_decay"] = weight_decay
    inner, scaler = getattr(optimizer, "optimizer", optimizer), getattr(optimizer, "scaler", None)
    if scaler is not None:  # of fp16: what is clipped must be the gradients and not their multiples
        scaler.unscale_(inner)
    finite = clip_gradients(model.student.parameters(), model.config.clip_grad).isfinite().all()
    if values.freeze_last_layer:  # without a gradient there is no decay and no moment either
        for parameter in model.student.head.last_layer.parameters():
            parameter.grad = None
    inner.found_inf = (~finite).float()  # a scaler has found the same
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.loss.update_center(torch.stack(list(teacher_means)).unsqueeze(1), finite)
    model.update_teacher(values.momentum, finite)
    return finite


class StepResult(NamedTuple):
    """All on the device: mean loss of this process's samples, whether the step was taken, and its last outputs."""

    loss: torch.Tensor
    finite: torch.Tensor
    outputs: Outputs


def training_step(
    model: DinoModel,
    optimizer: torch.optim.Optimizer,
    schedules: Schedules,
    batches: Iterable[Sequence[torch.Tensor]],
    step: int,
    num_batches: int = 1,
    student: nn.Module | None = None,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> StepResult:
    """One step of DINO, over one batch or the accumulated gradients of several.

    With several processes, each gives the same number of samples of its own, and `student` in a
    DistributedDataParallel wrapper. What is optimised is then the mean of their losses, that of the whole batch.

    Args:
        optimizer: from `build_optimizer`.
        batches: crops of each batch: N tensors (B, 3, h, w), the two global crops first. Read one by one.
        step: number of optimiser steps before this one, over all epochs.
        num_batches: their number.
        student: `model.student` as wrapped for distributed training; default: `model.student`.
        backward: what computes gradients, e.g. `Accelerator.backward`.
        autocast: a context for the forward pass, e.g. `Accelerator.autocast`.
    """
    values = schedules.at(step)
    student = model.student if student is None else student
    losses, teacher_means = [], []
    for number, crops in enumerate(batches, 1):
        # processes exchange gradients once a step
        alone = student.no_sync() if number < num_batches and hasattr(student, "no_sync") else nullcontext()
        with alone:
            with autocast():
                outputs = compute_loss(model, crops, values.teacher_temp, student)
            backward(outputs.loss / num_batches)
        losses.append(outputs.loss.detach())
        teacher_means.append(outputs.teacher_logits.float().mean(dim=(0, 1)))
    finite = apply_gradients(model, optimizer, values, teacher_means)
    return StepResult(torch.stack(losses).mean(), finite, outputs._replace(loss=losses[-1]))
