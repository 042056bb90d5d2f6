"""DINO, self-distillation with no labels (Caron et al., ICCV 2021), for a SurgeNet backbone or a vision transformer.

`training_step` is one step of the original training loop. It never waits for the device.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import Dinov2WithRegistersModel

from ...checkpoints.conversion import parameter_map
from ...modeling_surgenet import SurgeNetModel
from ..arguments import NUM_GLOBAL_CROPS, DinoConfig
from .head import DinoHead
from .loss import DinoLoss
from .schedules import Schedules, StepValues, cosine_schedule, scaled_learning_rate, teacher_temperatures
from .vit import fused_parameters, prepare_vit

Backbone = SurgeNetModel | Dinov2WithRegistersModel


class DinoNetwork(nn.Module):
    """Backbone and head of the student or the teacher."""

    def __init__(self, backbone: Backbone, head: DinoHead):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute logits (N, B, out_dim) of N crops of each of B samples.

        The backbone runs once for each crop size, the head once for all crops.

        Args:
            crops: N tensors (B, 3, h, w) of any sizes.
        """
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
        """Map our parameter names to (name, shape) in the original checkpoints: `backbone.*`, `head.*`.

        Raises:
            TypeError: the backbone is a vision transformer, whose checkpoints this package does not write.
        """
        if not isinstance(self.backbone, SurgeNetModel):
            raise TypeError(f"expected a SurgeNetModel, got {type(self.backbone).__name__}")
        names = {
            f"backbone.{ours}": (f"backbone.{name}", shape)
            for ours, (name, shape) in parameter_map(self.backbone, "original").items()
        }
        return names | {f"head.{name}": (f"head.{name}", t.shape) for name, t in self.head.state_dict().items()}


class DinoModel(nn.Module):
    """Student, teacher, and loss.

    The teacher is initialized with the student's weights and updated by `update_teacher`. It has no gradients and no
    drop path. As in the original code, both networks stay in training mode, so batch normalization in the head uses
    batch statistics in both.

    Args:
        backbone: start weights of student and teacher. It becomes the student's backbone, and its
            `config.drop_path_rate` is the student's. A vision transformer is changed by `vit.prepare_vit`.
        config: hyperparameters of the method.
    """

    def __init__(self, backbone: Backbone, config: DinoConfig):
        super().__init__()
        self.config = config
        sizes: Any = backbone.config
        head = DinoHead(
            sizes.hidden_size if isinstance(backbone, Dinov2WithRegistersModel) else sizes.hidden_sizes[-1],
            config.out_dim,
            config.hidden_dim,
            config.bottleneck_dim,
            config.head_layers,
            config.use_bn_in_head,
            config.norm_last_layer,
        )
        teacher_config: Any = copy.deepcopy(backbone.config)
        teacher_config.drop_path_rate = 0.0
        self.student = DinoNetwork(backbone, head)
        self.teacher = DinoNetwork(type(backbone)(teacher_config), copy.deepcopy(head))
        for network in (self.student, self.teacher):
            if isinstance(network.backbone, Dinov2WithRegistersModel):
                prepare_vit(network.backbone)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.loss = DinoLoss(config.out_dim, config.student_temp, config.center_momentum)
        self.train()

    @torch.no_grad()
    def update_teacher(self, momentum: float, keep: torch.Tensor):
        """Set each teacher parameter to momentum * teacher + (1 - momentum) * student.

        Args:
            momentum: weight of the teacher.
            keep: bool scalar on the device. If it is false, nothing changes.
        """
        teacher = list(self.teacher.parameters())
        weight = keep * (1 - momentum)  # `where` would copy the numbers to the device and wait for it
        torch._foreach_lerp_(teacher, list(self.student.parameters()), [weight] * len(teacher))


def build_schedules(config: DinoConfig, steps_per_epoch: int, total_batch_size: int) -> Schedules:
    """Build the schedules of a whole run.

    Args:
        config: hyperparameters of the method.
        steps_per_epoch: number of optimizer steps in an epoch.
        total_batch_size: number of frames in one optimizer step, over all processes and accumulated batches.
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
    """Return two parameter groups for AdamW.

    The first group has weight decay. The second, of biases and vectors (norms, scales), has none. Fixed parameters are
    in neither. A parameter is a vector if it is one in the original code. The original code therefore decays the
    (1, 1, 1, C) parameters of ConvNeXtV2's response normalization.
    """
    is_vit = isinstance(student.backbone, Dinov2WithRegistersModel)
    names = {} if is_vit else student.original_names()  # a vision transformer has vectors where the original has them
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for ours, parameter in student.named_parameters():
        name, shape = names.get(ours, (ours, parameter.shape))
        if parameter.requires_grad:
            (others if name.endswith(".bias") or len(shape) == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def build_optimizer(student: DinoNetwork) -> torch.optim.AdamW:
    """Build AdamW over the `parameter_groups`.

    It is the fused implementation, because only that one can skip a step without waiting for the device.
    """
    return torch.optim.AdamW(parameter_groups(student), lr=0.0, fused=True)  # the schedules set lr and weight decay


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, fused: Sequence[Sequence[nn.Parameter]] = ()
) -> torch.Tensor:
    """Scale the gradient of each parameter separately, to an L2 norm of at most `max_norm`.

    Args:
        parameters: parameters, with or without a gradient.
        max_norm: largest norm. 0: no clipping.
        fused: groups of equally many of these parameters, all with a gradient. The parameters of a group have one
            norm, as if they were one tensor.

    Returns:
        Norms (n,) before scaling of the n parameters that have a gradient, those of `fused` first.
    """
    together = [parameter for group in fused for parameter in group]
    members = set(map(id, together))
    ordered = [*together, *(parameter for parameter in parameters if id(parameter) not in members)]
    gradients = [parameter.grad for parameter in ordered if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    if fused:
        joint = norms[: len(together)].view(len(fused), -1)
        joint = joint.norm(dim=1, keepdim=True).expand_as(joint)
        norms = torch.cat([joint.flatten(), norms[len(together) :]])
    if max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norms + 1e-6)).clamp(max=1.0).unbind())
    return norms


class Outputs(NamedTuple):
    """Loss of this process's samples with its graph, and the inputs of the loss without their graph."""

    loss: torch.Tensor
    student_logits: torch.Tensor  # (S, B, K)
    teacher_logits: torch.Tensor  # (T, B, K)
    center: torch.Tensor  # (1, K)


def compute_loss(
    model: DinoModel, crops: Sequence[torch.Tensor], teacher_temp: float, student: nn.Module | None = None
) -> Outputs:
    """Run the forward pass.

    Args:
        model: student, teacher, and loss.
        crops: N tensors (B, 3, h, w), the two global crops first.
        teacher_temp: temperature of the teacher's softmax.
        student: `model.student` as wrapped for distributed training. Default: `model.student`.
    """
    with torch.no_grad():
        teacher_logits = model.teacher(crops[:NUM_GLOBAL_CROPS])
    student_logits = (model.student if student is None else student)(crops)
    loss = model.loss(student_logits, teacher_logits, teacher_temp)
    return Outputs(loss, student_logits.detach(), teacher_logits, model.loss.center.clone())


def apply_gradients(
    model: DinoModel, optimizer: torch.optim.Optimizer, values: StepValues, teacher_means: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Run the second half of a step: clip gradients, run the optimizer, and update center and teacher.

    Gradients are reset. If a gradient is not finite, nothing else changes. Gradients are averaged over all processes,
    so all processes agree.

    Args:
        model: student, teacher, and loss.
        optimizer: optimizer from `build_optimizer`, with or without Accelerate's wrapper.
        values: values of this step, from `Schedules.at`.
        teacher_means: mean teacher logits (K,) of each of the step's batches in this process.

    Returns:
        Whether all gradients were finite, as a bool scalar on the device.
    """
    for group, weight_decay in zip(optimizer.param_groups, (values.weight_decay, 0.0), strict=True):
        group["lr"] = values.lr
        group["weight_decay"] = weight_decay
    inner, scaler = getattr(optimizer, "optimizer", optimizer), getattr(optimizer, "scaler", None)
    if scaler is not None:  # with fp16, unscale gradients before they are clipped
        scaler.unscale_(inner)
    backbone = model.student.backbone
    fused = fused_parameters(backbone) if isinstance(backbone, Dinov2WithRegistersModel) else ()
    finite = clip_gradients(model.student.parameters(), model.config.clip_grad, fused).isfinite().all()
    if values.freeze_last_layer:  # without gradients, there is neither weight decay nor a change of moments
        for parameter in model.student.head.last_layer.parameters():
            parameter.grad = None
    inner.found_inf = (~finite).float()  # a scaler has found the same value
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.loss.update_center(torch.stack(list(teacher_means)).unsqueeze(1), finite)
    model.update_teacher(values.momentum, finite)
    return finite


class StepResult(NamedTuple):
    """Mean loss of this process's samples, whether the step was taken, and the last outputs, all on the device."""

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
    """Run one step of DINO, over one batch or the accumulated gradients of several.

    With several processes, each passes the same number of its own samples and a `student` in a DistributedDataParallel
    wrapper. The loss is then the mean over the whole batch.

    Args:
        model: student, teacher, and loss.
        optimizer: optimizer from `build_optimizer`.
        schedules: schedules from `build_schedules`.
        batches: crops of each batch: N tensors (B, 3, h, w), the two global crops first. They are read one by one.
        step: number of optimizer steps before this one, over all epochs.
        num_batches: number of batches.
        student: `model.student` as wrapped for distributed training. Default: `model.student`.
        backward: function that computes gradients, for example `Accelerator.backward`.
        autocast: context of the forward pass, for example `Accelerator.autocast`.
    """
    values = schedules.at(step)
    student = model.student if student is None else student
    losses, teacher_means = [], []
    for number, crops in enumerate(batches, 1):
        # Processes exchange gradients only once per step, with the last batch.
        alone = student.no_sync() if number < num_batches and hasattr(student, "no_sync") else nullcontext()
        with alone:
            with autocast():
                outputs = compute_loss(model, crops, values.teacher_temp, student)
            backward(outputs.loss / num_batches)
        losses.append(outputs.loss.detach())
        teacher_means.append(outputs.teacher_logits.float().mean(dim=(0, 1)))
    finite = apply_gradients(model, optimizer, values, teacher_means)
    return StepResult(torch.stack(losses).mean(), finite, outputs._replace(loss=losses[-1]))
