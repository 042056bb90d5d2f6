"""Reading of full DINO checkpoints: weights, center, and the optimizer's state by name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...errors import UserError
from ..catalog import find_by_sha256
from ..reading import (
    CheckpointFile,
    check_finite,
    dino_args,
    dino_center,
    dino_epoch,
    file_sha256,
    is_dino,
    is_state_dict,
    plain,
    read_content,
    strip_wrappers,
)

OPTIMIZER_OPTIONS = ("lr", "betas", "eps", "weight_decay", "amsgrad")
_FIXED = "head.last_layer.weight_g"  # fixed with norm_last_layer, and then not in the optimizer
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class DinoCheckpoint:
    """Content of a full DINO checkpoint, with the original names `backbone.*` and `head.*`.

    Attributes:
        path, sha256: the file and its SHA-256.
        student, teacher: weights and buffers in the original order and shapes.
        center: center of the loss, (1, out_dim).
        epoch: number of completed epochs.
        args: command line of the training.
        moments: optimizer state of each parameter that has one: `step`, `exp_avg`, `exp_avg_sq`.
        options: options of the optimizer's groups (decayed, not decayed): `lr`, `betas`, ... Empty without moments.
        norm_last_layer: whether the norm of the last layer was fixed. None: unknown.
        no_moments: reason why there are no moments, or "".
        others: other entries of the file, for example "fp16_scaler".
    """

    path: Path
    sha256: str
    student: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]
    center: torch.Tensor
    epoch: int
    args: dict
    moments: dict[str, dict] = field(default_factory=dict)
    options: list[dict] = field(default_factory=list)
    norm_last_layer: bool | None = None
    no_moments: str = ""
    others: list[str] = field(default_factory=list)

    @property
    def backbone(self) -> CheckpointFile:
        """Return the backbone of the teacher in the type that the functions of `checkpoints.conversion` take."""
        names = {n.removeprefix("backbone."): t for n, t in self.teacher.items() if n.startswith("backbone.")}
        return CheckpointFile(self.path, self.sha256, names, "dino", "teacher", args=self.args, epoch=self.epoch)

    @property
    def pretraining(self) -> dict:
        """Return the origin of the weights, as in `SurgeNetConfig.pretraining`.

        It comes from the file's `args` if this package wrote the file, else from its checksum.
        """
        if isinstance(self.args.get("pretraining"), dict):  # written by this package
            return plain(self.args["pretraining"])
        entry = find_by_sha256(self.sha256)
        return {
            "name": entry.name if entry else "unknown",
            "source": self.path.name,
            "source_sha256": self.sha256,
            "epoch": self.epoch,
        }


def read_dino_checkpoint(path: str | os.PathLike) -> DinoCheckpoint:
    """Read a full DINO checkpoint without running code from it.

    Tensors are memory-mapped, so do not delete the file. Moments that cannot be assigned to parameters are omitted,
    and `no_moments` gives the reason.

    Raises:
        UserError: the file does not exist, cannot be read safely, is not a full DINO checkpoint, or lacks a part.
    """
    path = Path(path)
    content = read_content(path)
    if not is_dino(content):
        raise UserError(
            f"{path} is not a full DINO checkpoint (student, teacher, optimizer, ...). If it contains the weights of "
            "a teacher, convert it with `surgenet convert` and start from the resulting folder"
        )
    center = dino_center(content)
    parts = {
        "student": is_state_dict(content.get("student")),
        "teacher": is_state_dict(content.get("teacher")),
        "a valid epoch": dino_epoch(content) is not None,
        "dino_loss.center": center is not None,
    }
    if missing := [name for name, present in parts.items() if not present]:
        raise UserError(
            f"{path} lacks {', '.join(missing)}, so training cannot be resumed from it; it contains "
            f"{', '.join(sorted(map(str, content)))}"
        )
    checkpoint = DinoCheckpoint(
        path=path,
        sha256=file_sha256(path),
        student=strip_wrappers(dict(content["student"]))[0],
        teacher=strip_wrappers(dict(content["teacher"]))[0],
        center=center,
        epoch=content["epoch"],
        args=dino_args(content),
        others=sorted(map(str, content.keys() - {"student", "teacher", "optimizer", "epoch", "args", "dino_loss"})),
    )
    checkpoint.norm_last_layer = checkpoint.args.get("norm_last_layer")
    try:
        _read_moments(checkpoint, content.get("optimizer"))
    except UserError as error:
        checkpoint.moments, checkpoint.options, checkpoint.no_moments = {}, [], str(error)
    return checkpoint


def _read_moments(checkpoint: DinoCheckpoint, optimizer) -> None:
    """Assign the optimizer's state to parameters, and set `moments`, `options`, and `norm_last_layer`.

    Raises:
        UserError: the state cannot be used. The message gives the reason.
    """
    optimizer = optimizer if isinstance(optimizer, Mapping) else {}
    state, groups = optimizer.get("state"), optimizer.get("param_groups")
    if not isinstance(state, Mapping) or not state or not isinstance(groups, list):
        raise UserError("the file contains no optimizer state")
    if not all(isinstance(group, Mapping) and _is_positions(group.get("params")) for group in groups):
        raise UserError("the optimizer's groups do not list the positions of their parameters")
    sizes = [len(group["params"]) for group in groups]
    for fixed in (True, False):
        names = _original_groups(checkpoint.student, fixed)
        if [len(group) for group in names] == sizes:
            checkpoint.norm_last_layer = fixed
            break
    else:
        raise UserError(
            f"the optimizer's groups have {sizes} parameters, expected {[len(group) for group in names]} for the "
            "student (decayed, not decayed)"
        )
    by_position = {
        position: name
        for group, group_names in zip(groups, names, strict=True)
        for position, name in zip(group["params"], group_names, strict=True)
    }
    needed = {"step", "exp_avg", "exp_avg_sq"}
    if any(group.get("amsgrad") for group in groups):
        needed.add("max_exp_avg_sq")
    for position, moments in state.items():
        name = by_position.get(position)
        if name is None or not isinstance(moments, Mapping) or not needed <= moments.keys():
            raise UserError(f"the optimizer's state {position} is not the AdamW state of a parameter")
        for key, value in moments.items():
            if key == "step":
                count = plain(value)
                if not isinstance(count, int | float) or not 0 <= count < 2**63:
                    raise UserError(f"step of {name} is not a number of steps")
            elif not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise UserError(f"{key} of {name} is not a tensor of floats")
            elif value.shape != checkpoint.student[name].shape:
                expected = tuple(checkpoint.student[name].shape)
                raise UserError(f"{key} of {name} has shape {tuple(value.shape)}, expected {expected}")
            elif key.endswith("exp_avg_sq") and (value < 0).any():
                raise UserError(f"{key} of {name} has negative values")
        checkpoint.moments[name] = dict(moments)
    check_finite(
        {
            f"{key} of {name}": value
            for name, moments in checkpoint.moments.items()
            for key, value in moments.items()
            if key != "step"
        },
        "the optimizer's state",
    )
    checkpoint.options = [{key: group[key] for key in OPTIMIZER_OPTIONS if key in group} for group in groups]
    for options in checkpoint.options:
        try:
            torch.optim.AdamW([torch.zeros(1)], **options)
        except (IndexError, TypeError, ValueError) as error:
            raise UserError(f"the optimizer's options are invalid: {error}") from error


def _is_positions(value) -> bool:
    return isinstance(value, list) and all(isinstance(position, int) for position in value)


def _original_groups(student: dict[str, torch.Tensor], norm_last_layer: bool) -> list[list[str]]:
    """Return the names of the decayed and of the other parameters, selected and ordered as in the original code."""
    groups: list[list[str]] = [[], []]
    for name, tensor in student.items():
        if not name.endswith(_BUFFERS) and not (norm_last_layer and name == _FIXED):
            groups[name.endswith(".bias") or tensor.dim() == 1].append(name)
    return groups
