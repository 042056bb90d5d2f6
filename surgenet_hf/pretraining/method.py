"""DINO, self-distillation with no labels (Caron et al., ICCV 2021), of a SurgeNet backbone.

One step is `training_step`; it does what the original training loop does, and waits for the device nowhere.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..checkpoints.conversion import parameter_map
from ..modeling_surgenet import SurgeNetModel
from .head import DinoHead
from .loss import DinoLoss
from .schedules import Schedules, StepValues, cosine_schedule, scaled_learning_rate, teacher_temperatures

NUM_GLOBAL_CROPS = 2  # the teacher sees these, the first of each sample; the student sees all


@dataclass
class DinoConfig:
    """Hyper-parameters of the method, by the names of the original; the defaults are SurgeNet's recipe.

    Args:
        epochs: length of all schedules.
        lr: learning rate after the warm-up for 256 images a step; scaled linearly with the total batch.
        min_lr: learning rate at the end.
        warmup_epochs: of the learning rate, from 0.
        weight_decay: at the start, of all but biases and vectors.
        weight_decay_end: at the end.
        clip_grad: largest L2 norm of the gradient of each single parameter; 0 leaves gradients as they are.
        freeze_last_layer: number of epochs in which the last layer of the head stays as it is.
        momentum_teacher: of the teacher's moving average at the start; 1 at the end.
        warmup_teacher_temp: the teacher's temperature at the start.
        teacher_temp: the same after its warm-up.
        warmup_teacher_temp_epochs: length of that warm-up.
        student_temp: the student's temperature.
        center_momentum: of the running mean of the teacher's logits.
        out_dim, hidden_dim, bottleneck_dim, head_layers, use_bn_in_head, norm_last_layer: see `DinoHead`.
    """

    epochs: int = 50
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: int = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip_grad: float = 3.0
    freeze_last_layer: int = 1
    momentum_teacher: float = 0.996
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: int = 0
    student_temp: float = 0.1
    center_momentum: float = 0.9
    out_dim: int = 65_536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    head_layers: int = 3
    use_bn_in_head: bool = False
    norm_last_layer: bool = True

    def __post_init__(self):
        for name in ("warmup_teacher_temp", "teacher_temp", "student_temp"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("momentum_teacher", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("warmup_epochs", "warmup_teacher_temp_epochs"):
            if not 0 <= getattr(self, name) <= self.epochs:
                raise ValueError(f"{name} must be in [0, epochs], got {getattr(self, name)} of {self.epochs} epochs")

    @classmethod
    def small(cls, **changes) -> "DinoConfig":
        """For data sets of some thousand frames: fewer prototypes, a faster teacher, a longer warm-up."""
        return cls(**{"out_dim": 4096, "momentum_teacher": 0.99, "warmup_epochs": 20, **changes})


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
    def update_teacher(self, momentum: float):
        """teacher <- momentum * teacher + (1 - momentum) * student, for each parameter."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)


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


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float):
    """Scale the gradient of each parameter down to an L2 norm of `max_norm`, each by itself."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        norms = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, (max_norm / (norms + 1e-6)).clamp(max=1.0).unbind())


def compute_loss(
    model: DinoModel, crops: Sequence[torch.Tensor], teacher_temp: float, student: nn.Module | None = None
) -> torch.Tensor:
    """The loss of this process's samples, with its graph; afterwards the centre is moved.

    Args:
        crops: N tensors (B, 3, h, w), the two global crops first.
        student: `model.student` as wrapped for distributed training; default: `model.student`.
    """
    with torch.no_grad():
        teacher_logits = model.teacher(crops[:NUM_GLOBAL_CROPS])
    student_logits = (model.student if student is None else student)(crops)
    loss = model.loss(student_logits, teacher_logits, teacher_temp)
    model.loss.update_center(teacher_logits)
    return loss


def apply_gradients(model: DinoModel, optimizer: torch.optim.Optimizer, values: StepValues):
    """The second half of a step: clip, optimise, and let the teacher follow. Gradients are used up.

    Args:
        optimizer: over the `parameter_groups` of `model.student`.
        values: of this step, from `Schedules.at`.
    """
    for group, weight_decay in zip(optimizer.param_groups, (values.weight_decay, 0.0), strict=True):
        group["lr"] = values.lr
        group["weight_decay"] = weight_decay
    if model.config.clip_grad:
        clip_gradients(model.student.parameters(), model.config.clip_grad)
    if values.freeze_last_layer:  # without a gradient there is no decay and no moment either
        for parameter in model.student.head.last_layer.parameters():
            parameter.grad = None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.update_teacher(values.momentum)


def training_step(
    model: DinoModel,
    optimizer: torch.optim.Optimizer,
    schedules: Schedules,
    crops: Sequence[torch.Tensor],
    step: int,
    student: nn.Module | None = None,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> torch.Tensor:
    """One step of DINO.

    With several processes, each gives the same number of samples of its own, and `student` in a
    DistributedDataParallel wrapper. What is optimised is then the mean of their losses, that of the whole batch.

    Args:
        optimizer: over the `parameter_groups` of `model.student`.
        crops: N tensors (B, 3, h, w), the two global crops first.
        step: number of optimiser steps before this one, over all epochs.
        student: `model.student` as wrapped for distributed training; default: `model.student`.
        backward: what computes gradients, e.g. `Accelerator.backward`.

    Returns:
        The loss of this process's samples, a detached scalar on the device.
    """
    values = schedules.at(step)
    loss = compute_loss(model, crops, values.teacher_temp, student)
    backward(loss)
    apply_gradients(model, optimizer, values)
    return loss.detach()
