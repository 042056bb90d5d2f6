"""Loading of full DINO checkpoints into a DINO training, and saving of a training as such a checkpoint.

Order, names, and some shapes of the parameters differ between the two. `DinoTraining.names` maps them. The optimizer's
moments are mapped by name and reshaped with their weights.
"""

import argparse
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ...atomic import atomic_write
from ...errors import UnavailableError, UserError
from ..catalog import NORMALIZATIONS
from ..reading import check_finite, plain
from .reading import OPTIMIZER_OPTIONS, DinoCheckpoint
from .settings import backbone_sizes, head_settings


@dataclass
class DinoTraining:
    """Parts of a DINO training that a full DINO checkpoint contains.

    Attributes:
        student, teacher: networks with the same parameter names.
        center: center of the loss, (1, out_dim). It is modified in place.
        names: parameter or buffer name -> (name, shape) in the original: `backbone.*`, `head.*`.
        optimizer: AdamW over the student's decayed and other parameters, in two groups. None: the moments are not
            loaded.
        sizes: sizes of the networks, with the names of `SurgeNetConfig` and `HEAD_SETTINGS`. They are compared with
            the file.
    """

    student: nn.Module
    teacher: nn.Module
    center: torch.Tensor
    names: Mapping[str, tuple[str, torch.Size]]
    optimizer: torch.optim.Optimizer | None = None
    sizes: Mapping = field(default_factory=dict)


@dataclass
class LoadReport:
    """Parts of a file that `load_dino_checkpoint` loaded and omitted.

    Attributes:
        path: the file.
        epoch: number of completed epochs.
        loaded, omitted: one phrase for each part.
    """

    path: Path
    epoch: int
    loaded: list[str]
    omitted: list[str]

    def __str__(self) -> str:
        parts = [f"Loaded from {self.path.name} after {self.epoch} epochs:", *self.loaded]
        parts += ["Not loaded:", *self.omitted] if self.omitted else []
        return "\n".join(part if part.endswith(":") else f"- {part}" for part in parts)


def load_dino_checkpoint(checkpoint: DinoCheckpoint, training: DinoTraining) -> LoadReport:
    """Set student, teacher, center, and optimizer to the content of a full DINO checkpoint.

    After an error, nothing is changed. The optimizer takes the moments, learning rate, weight decay, betas, and
    epsilon. Moments that the file does not have start from zero.

    Args:
        checkpoint: content of the file.
        training: networks of the file's sizes, see `backbone_config` and `head_settings`.

    Returns:
        Report of the parts that were loaded and omitted.

    Raises:
        UserError: the sizes of the networks differ, or weights are missing, unexpected, of the wrong shape, or not
            finite. For other sizes, the message gives the arguments to pass.
    """
    _compare_sizes(checkpoint, training.sizes)
    own = training.student.state_dict()
    wanted = {name: (shape, own[ours].dtype) for ours, (name, shape) in training.names.items()}
    networks = {"student": checkpoint.student, "teacher": checkpoint.teacher}
    center, center_wanted = {"center": checkpoint.center}, {"center": (training.center.shape, training.center.dtype)}
    faults = [fault for part, tensors in networks.items() for fault in _find_faults(part, tensors, wanted)]
    faults += _find_faults("dino_loss", center, center_wanted)
    if faults:
        raise UserError(
            f"{checkpoint.path} does not match the model:\n"
            + "".join(f"- {fault}\n" for fault in faults[:20])
            + (f"- and {len(faults) - 20} more\n" if len(faults) > 20 else "")
            + "Nothing was loaded."
        )
    check_finite(
        # As float32, like in the model, because float64 values can be too large for it.
        {
            f"{part}.{name}": tensor.to(torch.float32)
            for part, tensors in (networks | {"dino_loss": center}).items()
            for name, tensor in tensors.items()
        },
        str(checkpoint.path),
    )
    for part, tensors in networks.items():
        weights = {ours: tensors[name].reshape(own[ours].shape) for ours, (name, _) in training.names.items()}
        getattr(training, part).load_state_dict(weights)
    training.center.copy_(checkpoint.center)
    report = LoadReport(
        checkpoint.path,
        checkpoint.epoch,
        ["student and teacher, backbone and head", f"center of {training.center.numel():,} prototypes"],
        [f"{name}: not used here" for name in checkpoint.others],
    )
    if training.optimizer is None:
        report.omitted.append("moments of the optimizer: not requested")
    elif checkpoint.no_moments:
        report.omitted.append(f"moments of the optimizer, which start from zero: {checkpoint.no_moments}")
    else:
        _load_moments(checkpoint, training, report)
    return report


def _compare_sizes(checkpoint: DinoCheckpoint, sizes: Mapping) -> None:
    found = backbone_sizes(checkpoint) | head_settings(checkpoint)
    if others := {name: size for name, size in found.items() if name in sizes and sizes[name] != size}:
        raise UserError(
            f"{checkpoint.path} contains a network of other sizes; pass "
            + ", ".join(f"{name}={size!r} (the model has {sizes[name]!r})" for name, size in others.items())
        )


def _find_faults(
    part: str, found: dict[str, torch.Tensor], wanted: dict[str, tuple[torch.Size, torch.dtype]]
) -> list[str]:
    faults = [f"{part}: {name} is missing" for name in wanted if name not in found]
    for name, tensor in found.items():
        if name not in wanted:
            faults.append(f"{part}: {name} is unexpected")
        elif tensor.shape != wanted[name][0]:
            faults.append(f"{part}: {name} is {tuple(tensor.shape)}, expected {tuple(wanted[name][0])}")
        elif tensor.is_floating_point() != wanted[name][1].is_floating_point:
            faults.append(f"{part}: {name} has dtype {tensor.dtype}, expected {wanted[name][1]}")
    return faults


def _load_moments(checkpoint: DinoCheckpoint, training: DinoTraining, report: LoadReport) -> None:
    """Set the optimizer's state by name. Reshaping it to our parameters is exact, because AdamW is elementwise."""
    optimizer = training.optimizer
    original = {p: training.names[ours][0] for ours, p in training.student.named_parameters() if p.requires_grad}
    content = optimizer.state_dict()
    for group, saved, options in zip(optimizer.param_groups, content["param_groups"], checkpoint.options, strict=True):
        saved |= options
        for position, parameter in zip(saved["params"], group["params"], strict=True):
            moments = checkpoint.moments.get(original[parameter])
            if moments is None:
                content["state"].pop(position, None)
                continue
            # Clone, because the file is memory-mapped and the optimizer modifies its state in place.
            content["state"][position] = {
                key: torch.tensor(float(value)) if key == "step" else value.reshape(parameter.shape).clone()
                for key, value in moments.items()
            }
    optimizer.load_state_dict(content)
    report.loaded.append(f"moments of the optimizer for {len(checkpoint.moments)} of {len(original)} parameters")
    if without := [name for name in original.values() if name not in checkpoint.moments]:
        report.omitted.append(f"moments that the file does not have: {', '.join(without)}")


def save_dino_checkpoint(
    path: str | os.PathLike,
    training: DinoTraining,
    epoch: int,
    args: Mapping,
    pretraining: dict | None = None,
    normalization: str | None = None,
) -> None:
    """Write a full DINO checkpoint, from which the original loop and `load_dino_checkpoint` resume.

    Args:
        path: the file. It is written atomically.
        training: networks and optimizer.
        epoch: number of completed epochs.
        args: settings of the training, with the names of the original code.
        pretraining: as in `SurgeNetConfig.pretraining`, written into `args`.
        normalization: "surgenet" or "imagenet", written into `args` as `data_mean` and `data_std`.

    Raises:
        UnavailableError: the file cannot be written.
    """
    args = dict(args)
    if pretraining is not None:
        args["pretraining"] = pretraining
    if normalization is not None:
        args["data_mean"], args["data_std"] = NORMALIZATIONS[normalization]
    # With batch normalization in the head, the original code also wraps its teacher for distributed training.
    batch_norm = any(name.endswith("running_mean") for name, _ in training.names.values())
    content = {
        "student": _original_state_dict(training.student, training.names, "module."),
        "teacher": _original_state_dict(training.teacher, training.names, "module." if batch_norm else ""),
        "optimizer": _original_optimizer(training),
        "epoch": epoch,
        "args": argparse.Namespace(**{name: plain(value) for name, value in args.items()}),
        "dino_loss": {"center": training.center.cpu()},
    }
    try:
        with atomic_write(path, durable=True) as temporary:
            torch.save(content, temporary)
    except OSError as error:
        raise UnavailableError(f"{path} could not be written ({error}): free some space and try again") from error


def _original_order(names: Mapping[str, tuple[str, torch.Size]]) -> Iterable[str]:
    """Sort our names in the original order, which begins with the list of all downsampling layers if there is one."""
    return sorted(names, key=lambda ours: not names[ours][0].startswith("backbone.downsample_layers."))


def _original_state_dict(
    network: nn.Module, names: Mapping[str, tuple[str, torch.Size]], prefix: str
) -> OrderedDict[str, torch.Tensor]:
    tensors = network.state_dict()
    return OrderedDict(
        (prefix + names[ours][0], tensors[ours].reshape(names[ours][1]).cpu()) for ours in _original_order(names)
    )


def _original_optimizer(training: DinoTraining) -> dict:
    """Return the state dict of the original optimizer.

    It has parameters by position and moments in the original shapes.
    """
    names, optimizer = training.names, training.optimizer
    parameters = dict(training.student.named_parameters())
    ordered = [ours for ours in _original_order(names) if ours in parameters]
    state, groups, position = {}, [], 0
    for group in optimizer.param_groups:
        members = set(group["params"])
        groups.append({**{key: plain(group[key]) for key in OPTIMIZER_OPTIONS}, "params": []})
        for ours in (ours for ours in ordered if parameters[ours] in members):
            groups[-1]["params"].append(position)
            if moments := optimizer.state.get(parameters[ours]):
                state[position] = {
                    key: value.cpu() if key == "step" else value.reshape(names[ours][1]).cpu()
                    for key, value in moments.items()
                }
            position += 1
    return {"state": state, "param_groups": groups}
