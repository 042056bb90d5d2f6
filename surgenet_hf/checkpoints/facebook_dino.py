"""Full DINO checkpoints of the authors, read: weights, centre, and the optimiser's state by name.

The layout is that of facebookresearch/dino (main_dino.py): `student`, `teacher`, `optimizer`, `epoch`, `args`,
`dino_loss` and perhaps `fp16_scaler`. The optimiser knows its parameters by position alone: those of the student in
the order of its state dict, fixed ones left out, in two groups, decayed and not.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..configuration_surgenet import SurgeNetConfig
from .catalog import find_by_sha256
from .conversion import check_fit, describe_network
from .reading import (
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
_FIXED = "head.last_layer.weight_g"  # fixed with norm_last_layer, and then unknown to the optimiser
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# the first layer of each stage: of CAFormer and ConvNeXtV2, of PVTv2
_DOWNSAMPLING = re.compile(r"backbone\.(?:downsample_layers\.(\d)\.(?:conv|\d)|patch_embed(\d)\.proj)\.weight")
_BLOCK = re.compile(r"backbone\.(?:stages\.(\d)|block(\d))\.(\d{1,3})\.")


@dataclass
class DinoCheckpoint:
    """What a full DINO checkpoint holds, by the original's names `backbone.*` and `head.*`.

    Attributes:
        path, sha256: of the file.
        student, teacher: weights and buffers in the original's order and shapes.
        center: of the loss, (1, out_dim).
        epoch: number of epochs done.
        args: the command line of the training.
        moments: the optimiser's state of each parameter that has one: `step`, `exp_avg`, `exp_avg_sq`.
        options: of the optimiser's two groups (decayed, not decayed): `lr`, `betas`, ...; empty without moments.
        norm_last_layer: whether the last layer's norm was fixed; None where the file does not tell.
        no_moments: why there are none, "" where there are.
        others: what else the file holds, e.g. "fp16_scaler".
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
        """The teacher's backbone, as the functions of `checkpoints.conversion` take it."""
        names = {n.removeprefix("backbone."): t for n, t in self.teacher.items() if n.startswith("backbone.")}
        return CheckpointFile(self.path, self.sha256, names, "dino", "teacher", args=self.args, epoch=self.epoch)

    @property
    def pretraining(self) -> dict:
        """Where the weights come from, as in `SurgeNetConfig.pretraining`: what the file says, else its checksum.

        The normalization is `conversion.choose_normalization(checkpoint.backbone, config)`.
        """
        if isinstance(self.args.get("pretraining"), dict):  # a file of ours
            return plain(self.args["pretraining"])
        entry = find_by_sha256(self.sha256)
        return {
            "name": entry.name if entry else "unknown",
            "source": self.path.name,
            "source_sha256": self.sha256,
            "epoch": self.epoch,
        }


def read_dino_checkpoint(path: str | os.PathLike) -> DinoCheckpoint:
    """Read a full DINO checkpoint; runs no code from it. Tensors are memory-mapped: the file must stay.

    Moments that cannot be told to belong to a parameter are left out, and `no_moments` says why.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read safely, is no full DINO checkpoint, or lacks a part.
    """
    path = Path(path)
    content = read_content(path)
    if not is_dino(content):
        raise ValueError(
            f"{path} is not a full DINO checkpoint (student, teacher, optimizer, ...). If it holds the weights of a "
            "teacher, convert it with scripts/convert_checkpoint.py and start from the folder that this gives"
        )
    center = dino_center(content)
    parts = {
        "student": is_state_dict(content.get("student")),
        "teacher": is_state_dict(content.get("teacher")),
        "a valid epoch": dino_epoch(content) is not None,
        "dino_loss.center": center is not None,
    }
    if missing := [name for name, present in parts.items() if not present]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}, so training cannot go on from it; it holds "
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
    except ValueError as error:
        checkpoint.moments, checkpoint.options, checkpoint.no_moments = {}, [], str(error)
    return checkpoint


def _read_moments(checkpoint: DinoCheckpoint, optimizer) -> None:
    """Name the optimiser's state; sets `moments`, `options` and `norm_last_layer`.

    Raises:
        ValueError: with the reason why it cannot be used.
    """
    optimizer = optimizer if isinstance(optimizer, Mapping) else {}
    state, groups = optimizer.get("state"), optimizer.get("param_groups")
    if not isinstance(state, Mapping) or not state or not isinstance(groups, list):
        raise ValueError("the file holds no state of an optimizer")
    if not all(isinstance(group, Mapping) and _is_positions(group.get("params")) for group in groups):
        raise ValueError("the optimizer's groups do not list the positions of their parameters")
    sizes = [len(group["params"]) for group in groups]
    for fixed in (True, False):
        names = _original_groups(checkpoint.student, fixed)
        if [len(group) for group in names] == sizes:
            checkpoint.norm_last_layer = fixed
            break
    else:
        raise ValueError(
            f"the optimizer's groups have {sizes} parameters, those of the student would have "
            f"{[len(group) for group in names]} (decayed, not decayed)"
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
            raise ValueError(f"the optimizer's state {position} is not AdamW's of a parameter")
        for key, value in moments.items():
            if key == "step":
                count = plain(value)
                if not isinstance(count, int | float) or not 0 <= count < 2**63:
                    raise ValueError(f"step of {name} is not a number of steps")
            elif not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise ValueError(f"{key} of {name} is not a tensor of floats")
            elif value.shape != checkpoint.student[name].shape:
                expected = tuple(checkpoint.student[name].shape)
                raise ValueError(f"{key} of {name} is {tuple(value.shape)}, the parameter is {expected}")
            elif key.endswith("exp_avg_sq") and (value < 0).any():
                raise ValueError(f"{key} of {name} has negative values")
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
            raise ValueError(f"the optimizer's options are unusable: {error}") from error


def _is_positions(value) -> bool:
    return isinstance(value, list) and all(isinstance(position, int) for position in value)


def _original_groups(student: dict[str, torch.Tensor], norm_last_layer: bool) -> list[list[str]]:
    """Names of the decayed and of the other parameters, by the original's rule, in its order: the state dict's."""
    groups = [[], []]
    for name, tensor in student.items():
        if not name.endswith(_BUFFERS) and not (norm_last_layer and name == _FIXED):
            groups[name.endswith(".bias") or tensor.dim() == 1].append(name)
    return groups


def backbone_sizes(checkpoint: DinoCheckpoint) -> dict:
    """`backbone`, `activation`, `depths` and `hidden_sizes` of `SurgeNetConfig`, from the file's tensors.

    Raises:
        ValueError: it is none of the three backbones in the original naming.
    """
    network = describe_network(checkpoint.backbone)
    widths, blocks = {}, defaultdict(set)
    for name, tensor in checkpoint.teacher.items():
        if (match := _DOWNSAMPLING.fullmatch(name)) and tensor.dim() == 4 and tensor.numel():
            widths[match[1] or match[2]] = len(tensor)
        if match := _BLOCK.match(name):
            blocks[match[1] or match[2]].add(int(match[3]))
    whole = len(widths) == len(blocks) == 4 and all(max(found) == len(found) - 1 for found in blocks.values())
    if network["backbone"] is None or network["naming"] != "original" or not whole:
        raise ValueError(
            network.get("problem") or f"{checkpoint.path} holds no whole {network['backbone']} of the original code"
        )
    return {
        "backbone": network["backbone"],
        "activation": network["activation"],
        "depths": [len(blocks[stage]) for stage in sorted(blocks)],
        "hidden_sizes": [widths[stage] for stage in sorted(widths)],
    }


def backbone_config(checkpoint: DinoCheckpoint) -> SurgeNetConfig:
    """The config of the backbone in the file, from its tensors; `drop_path_rate` from the command line if it is there.

    Raises:
        ValueError: as `backbone_sizes`; or the teacher does not have the parameters of that backbone.
    """
    rate = read_setting(checkpoint, "drop_path_rate", int, float) if "drop_path_rate" in checkpoint.args else 0.0
    sizes = backbone_sizes(checkpoint)
    try:
        config = SurgeNetConfig(**sizes, drop_path_rate=rate, pretraining=checkpoint.pretraining)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path} holds a network that cannot be built: {error}") from error
    # before anyone builds the model: a small file can declare the sizes of a huge one
    check_fit(checkpoint.backbone, config, "backbone", "original")
    return config


def read_setting(checkpoint: DinoCheckpoint, name: str, *types: type):
    """Return a setting of the training command line as a plain value.

    Args:
        checkpoint: the file.
        name: of a setting that its `args` have.
        types: types that the value may have.

    Raises:
        ValueError: the value has another type; True and False are no integers.
    """
    value = plain(checkpoint.args[name])
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(item.__name__ for item in types)
        raise ValueError(
            f"{checkpoint.path}: {name} in its args is {str(value)[:80]!r}, expected {expected}. The file may be "
            "damaged; download it again"
        )
    return value
