"""Going on from a full DINO checkpoint of the authors, and writing one; `checkpoints.dino` reads them.

Order, names and some shapes of the parameters differ from ours: the optimiser's moments, which the file knows by
position, are mapped by name and reshaped with their weights.
"""

import argparse
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ..atomic import atomic_write
from ..checkpoints.catalog import NORMALIZATIONS
from ..checkpoints.facebook_dino import (
    OPTIMIZER_OPTIONS,
    DinoCheckpoint,
    backbone_sizes,
    read_dino_checkpoint,
    read_setting,
)
from ..checkpoints.reading import check_finite, plain
from ..errors import UserError
from .dino.method import DinoConfig, DinoModel, DinoNetwork
from .frames.crops import CropConfig

_HEAD_FIELDS = ("out_dim", "hidden_dim", "bottleneck_dim", "head_layers", "use_bn_in_head", "norm_last_layer")
_CROP_FIELDS = (
    "global_crops_size",
    "local_crops_size",
    "local_crops_number",
    "global_crops_scale",
    "local_crops_scale",
)


@dataclass
class LoadReport:
    """What `load_dino_checkpoint` took and what it did not, in words.

    Attributes:
        path: the file.
        epoch: number of epochs done.
        taken, left_out: one phrase for each part.
    """

    path: Path
    epoch: int
    taken: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        parts = [f"Taken from {self.path.name}, {self.epoch} epochs done:", *self.taken]
        parts += ["Not taken:", *self.left_out] if self.left_out else []
        return "\n".join(part if part.endswith(":") else f"- {part}" for part in parts)


def dino_settings(checkpoint: DinoCheckpoint) -> dict:
    """What the file tells of the method: `DinoConfig(**dino_settings(checkpoint))`.

    The sizes of the head come from its tensors, the recipe from the command line, by the original's names. What the
    file does not tell is left out.

    Raises:
        ValueError: a setting of another type or outside its limits, or a head whose layers do not fit one another.
    """
    known = {item.name: item.type for item in fields(DinoConfig) if item.name not in _HEAD_FIELDS}
    settings = {
        name: read_setting(checkpoint, name, *((int, float) if kind is float else (kind,)))
        for name, kind in known.items()
        if name in checkpoint.args
    }
    head = {name.removeprefix("head."): t for name, t in checkpoint.student.items() if name.startswith("head.")}
    layers = [t for name, t in head.items() if re.fullmatch(r"mlp\.(\d+\.)?weight", name) and t.dim() == 2]
    if layers and "last_layer.weight_v" in head:
        _check_head(checkpoint, layers, head["last_layer.weight_v"])
        settings["out_dim"], settings["bottleneck_dim"] = head["last_layer.weight_v"].shape
        settings["head_layers"] = len(layers)
        settings["use_bn_in_head"] = any(name.endswith("running_mean") for name in head)
        if len(layers) > 1:
            settings["hidden_dim"] = len(layers[0])
    if checkpoint.norm_last_layer is not None:
        settings["norm_last_layer"] = bool(checkpoint.norm_last_layer)
    # the command line may still replace the default warm-up, which can be longer than the file's epochs
    _check_settings(checkpoint, DinoConfig, {"warmup_epochs": 0, **settings})
    return settings


def _check_settings(checkpoint: DinoCheckpoint, config: Callable, settings: dict) -> None:
    """Raise the errors of a configuration with the path of the file that its settings come from."""
    try:
        config(**settings)
    except ValueError as error:
        raise UserError(
            f"{checkpoint.path}: in its args, {error}. The file may be damaged; download it again"
        ) from error


def _check_head(checkpoint: DinoCheckpoint, layers: list[torch.Tensor], last: torch.Tensor) -> None:
    """Check that the sizes of the head's layers fit, so that a head of these sizes is as large as the file's."""
    found = [tuple(layer.shape) for layer in (*layers, last)]
    widths = [backbone_sizes(checkpoint)["hidden_sizes"][-1], *(len(layer) for layer in layers)]
    hidden = set(widths[1:-1])
    if len(hidden) > 1 or [shape[1:] for shape in found] != [(width,) for width in widths]:
        raise ValueError(f"{checkpoint.path} has a head whose layers do not fit one another or the backbone: {found}")


def crop_settings(checkpoint: DinoCheckpoint) -> dict:
    """Return what the command line tells of the crops, by the names of `CropConfig`; the original fixes their sizes.

    Raises:
        ValueError: a setting of another type or outside its limits.
    """
    found = {
        name: read_setting(checkpoint, name, *((list, tuple) if name.endswith("scale") else (int,)))
        for name in _CROP_FIELDS
        if name in checkpoint.args
    }
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    _check_settings(checkpoint, CropConfig, settings)
    return settings


def load_dino_checkpoint(
    source: str | os.PathLike | DinoCheckpoint, model: DinoModel, optimizer: torch.optim.Optimizer | None = None
) -> LoadReport:
    """Set student, teacher, centre and optimiser to what a full DINO checkpoint holds; all of it, or nothing.

    Args:
        source: the file, or what `read_dino_checkpoint` gave.
        model: of the file's sizes: `backbone_config` and `dino_settings` give them.
        optimizer: AdamW over the `parameter_groups` of `model.student`; it takes the moments, learning rate, weight
            decay, betas and epsilon. Moments that the file does not have are begun anew. Default: none is taken.

    Raises:
        FileNotFoundError, ValueError: as `read_dino_checkpoint`; or weights of another network, with what to pass,
            or missing, unexpected, of another shape, or not finite.
    """
    checkpoint = source if isinstance(source, DinoCheckpoint) else read_dino_checkpoint(source)
    _compare_sizes(checkpoint, model)
    names = model.student.original_names()
    own = model.student.state_dict()
    wanted = {name: (shape, own[ours].dtype) for ours, (name, shape) in names.items()}
    center = {"center": checkpoint.center}
    faults = [
        *_find_faults("student", checkpoint.student, wanted),
        *_find_faults("teacher", checkpoint.teacher, wanted),
        *_find_faults("dino_loss", center, {"center": (model.loss.center.shape, model.loss.center.dtype)}),
    ]
    if faults:
        raise ValueError(
            f"{checkpoint.path} does not fit the model:\n"
            + "".join(f"- {fault}\n" for fault in faults[:20])
            + (f"- and {len(faults) - 20} more\n" if len(faults) > 20 else "")
            + "Nothing was loaded."
        )
    parts = {"student": checkpoint.student, "teacher": checkpoint.teacher, "dino_loss": center}
    check_finite(
        # as the model will have them: float64 values can be too large for float32
        {
            f"{part}.{name}": tensor.to(torch.float32)
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        },
        str(checkpoint.path),
    )
    for network, tensors in ((model.student, checkpoint.student), (model.teacher, checkpoint.teacher)):
        network.load_state_dict({ours: tensors[name].reshape(own[ours].shape) for ours, (name, _) in names.items()})
    model.loss.center.copy_(checkpoint.center)
    report = LoadReport(
        checkpoint.path,
        checkpoint.epoch,
        ["student and teacher, backbone and head", f"centre of {model.loss.center.numel():,} prototypes"],
        [f"{name}: not used here" for name in checkpoint.others],
    )
    if optimizer is None:
        report.left_out.append("moments of the optimiser: not asked for")
    elif checkpoint.no_moments:
        report.left_out.append(f"moments of the optimiser, which start anew: {checkpoint.no_moments}")
    else:
        _set_moments(checkpoint, model.student, optimizer, report)
    return report


def _compare_sizes(checkpoint: DinoCheckpoint, model: DinoModel) -> None:
    """Refuse a file of another backbone or head."""
    own, sizes, settings = model.student.backbone.config, backbone_sizes(checkpoint), dino_settings(checkpoint)
    pairs = {name: (size, getattr(own, name)) for name, size in sizes.items()}
    pairs |= {name: (settings[name], getattr(model.config, name)) for name in _HEAD_FIELDS if name in settings}
    if others := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        raise ValueError(
            f"{checkpoint.path} holds a network of other sizes; pass "
            + ", ".join(f"{name}={theirs!r} (the model has {ours!r})" for name, (theirs, ours) in others.items())
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


def _set_moments(
    checkpoint: DinoCheckpoint, student: DinoNetwork, optimizer: torch.optim.Optimizer, report: LoadReport
) -> None:
    """Give the optimiser its state, by name and in our shapes; AdamW is elementwise."""
    original = {
        parameter: student.original_names()[ours][0]
        for ours, parameter in student.named_parameters()
        if parameter.requires_grad
    }
    content = optimizer.state_dict()
    for group, saved, options in zip(optimizer.param_groups, content["param_groups"], checkpoint.options, strict=True):
        saved |= options
        for position, parameter in zip(saved["params"], group["params"], strict=True):
            moments = checkpoint.moments.get(original[parameter])
            if moments is None:
                content["state"].pop(position, None)
                continue
            # cloned: the file is memory-mapped, and the optimiser writes to these
            content["state"][position] = {
                key: torch.tensor(float(value)) if key == "step" else value.reshape(parameter.shape).clone()
                for key, value in moments.items()
            }
    optimizer.load_state_dict(content)
    report.taken.append(f"moments of the optimiser for {len(checkpoint.moments)} of {len(original)} parameters")
    if without := [name for name in original.values() if name not in checkpoint.moments]:
        report.left_out.append(f"moments that the file does not have: {', '.join(without)}")


def save_dino_checkpoint(
    path: str | os.PathLike,
    model: DinoModel,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    args: Mapping | argparse.Namespace,
    pretraining: dict | None = None,
) -> None:
    """Write the authors' layout, which the original loop and `load_dino_checkpoint` go on from.

    Args:
        path: the file; it appears whole or not at all.
        optimizer: AdamW over the `parameter_groups` of `model.student`.
        epoch: number of epochs done.
        args: the settings of the training, by the original's names.
        pretraining: as in `SurgeNetConfig.pretraining`; who goes on from the file finds it in `args`, and the image
            statistics as `data_mean` and `data_std`.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    names = model.student.original_names()
    args = dict(args if isinstance(args, Mapping) else vars(args))
    if pretraining is not None:
        args["pretraining"] = pretraining
        args["data_mean"], args["data_std"] = NORMALIZATIONS[pretraining["normalization"]]
    # with batch norm in the head the original wraps its teacher for distributed training, too
    teacher_prefix = "module." if model.config.use_bn_in_head else ""
    content = {
        "student": _original_state_dict(model.student, names, "module."),
        "teacher": _original_state_dict(model.teacher, names, teacher_prefix),
        "optimizer": _original_optimizer(model.student, names, optimizer),
        "epoch": epoch,
        "args": argparse.Namespace(**{name: plain(value) for name, value in args.items()}),
        "dino_loss": {"center": model.loss.center.cpu()},
    }
    with atomic_write(path, durable=True) as temporary:
        torch.save(content, temporary)


def _original_order(names: dict[str, tuple[str, torch.Size]]) -> list[str]:
    """Our names in the original's order: where it keeps all downsampling in one list, that list comes first."""
    return sorted(names, key=lambda ours: not names[ours][0].startswith("backbone.downsample_layers."))


def _original_state_dict(network: DinoNetwork, names: dict[str, tuple[str, torch.Size]], prefix: str) -> OrderedDict:
    tensors = network.state_dict()
    return OrderedDict(
        (prefix + names[ours][0], tensors[ours].reshape(names[ours][1]).cpu()) for ours in _original_order(names)
    )


def _original_optimizer(
    student: DinoNetwork, names: dict[str, tuple[str, torch.Size]], optimizer: torch.optim.Optimizer
) -> dict:
    """The state dict of the original's optimiser: parameters by position, moments in the original's shapes."""
    parameters = dict(student.named_parameters())
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
