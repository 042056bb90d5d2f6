"""Settings of full DINO checkpoints: sizes of backbone and head from the tensors, others from `args`."""

import re
from collections import defaultdict

import torch

from ...configuration_surgenet import SurgeNetConfig
from ...errors import UserError
from ..conversion import check_fit, describe_network
from ..reading import plain
from .reading import DinoCheckpoint

# Settings of the head, which are read from the tensors and optimizer groups of a file.
HEAD_SETTINGS = ("out_dim", "hidden_dim", "bottleneck_dim", "head_layers", "use_bn_in_head", "norm_last_layer")
# First layer of each stage: CAFormer and ConvNeXtV2, then PVTv2.
_DOWNSAMPLING = re.compile(r"backbone\.(?:downsample_layers\.(\d)\.(?:conv|\d)|patch_embed(\d)\.proj)\.weight")
_BLOCK = re.compile(r"backbone\.(?:stages\.(\d)|block(\d))\.(\d{1,3})\.")


def backbone_sizes(checkpoint: DinoCheckpoint) -> dict:
    """Return `backbone`, `activation`, `depths`, and `hidden_sizes` of `SurgeNetConfig`, from the file's tensors.

    Raises:
        UserError: the network is none of the three backbones in the original naming.
    """
    if "backbone.cls_token" in checkpoint.teacher:
        raise UserError(
            f"{checkpoint.path} is a full DINO checkpoint of a vision transformer, from which a training cannot be "
            "resumed. Convert its teacher with `surgenet convert`, and start from the folder with --model_name_or_path"
        )
    network = describe_network(checkpoint.backbone)
    if "layers" in network:
        raise UserError(
            f"{checkpoint.path} contains a vision transformer ({network['backbone']}), from which training cannot be "
            "resumed. Convert it with `surgenet convert`"
        )
    widths, blocks = {}, defaultdict(set)
    for name, tensor in checkpoint.teacher.items():
        if (match := _DOWNSAMPLING.fullmatch(name)) and tensor.dim() == 4 and tensor.numel():
            widths[match[1] or match[2]] = len(tensor)
        if match := _BLOCK.match(name):
            blocks[match[1] or match[2]].add(int(match[3]))
    whole = len(widths) == len(blocks) == 4 and all(max(found) == len(found) - 1 for found in blocks.values())
    if network["backbone"] is None or network["naming"] != "original" or not whole:
        raise UserError(
            network.get("problem")
            or f"{checkpoint.path} contains no complete {network['backbone']} in the original naming"
        )
    return {
        "backbone": network["backbone"],
        "activation": network["activation"],
        "depths": [len(blocks[stage]) for stage in sorted(blocks)],
        "hidden_sizes": [widths[stage] for stage in sorted(widths)],
    }


def backbone_config(checkpoint: DinoCheckpoint) -> SurgeNetConfig:
    """Return the config of the backbone: sizes from the tensors, and `drop_path_rate` from `args` (default: 0).

    Raises:
        UserError: see `backbone_sizes`. Also raised if the teacher does not have the parameters of that backbone.
    """
    rate = read_setting(checkpoint, "drop_path_rate", int, float) if "drop_path_rate" in checkpoint.args else 0.0
    sizes = backbone_sizes(checkpoint)
    try:
        config = SurgeNetConfig(**sizes, drop_path_rate=rate, pretraining=checkpoint.pretraining)
    except ValueError as error:
        raise UserError(f"{checkpoint.path} contains a network that cannot be built: {error}") from error
    # Check before the model is built, because a small file can declare the sizes of a huge model.
    check_fit(checkpoint.backbone, config, "backbone", "original")
    return config


def head_settings(checkpoint: DinoCheckpoint) -> dict:
    """Return the settings of the head in the file, with the names in `HEAD_SETTINGS`.

    Settings that the file does not contain are omitted.

    Raises:
        UserError: the sizes of the layers do not match each other or the backbone.
    """
    head = {name.removeprefix("head."): t for name, t in checkpoint.student.items() if name.startswith("head.")}
    layers = [t for name, t in head.items() if re.fullmatch(r"mlp\.(\d+\.)?weight", name) and t.dim() == 2]
    settings = {}
    if layers and "last_layer.weight_v" in head:
        _check_head(checkpoint, layers, head["last_layer.weight_v"])
        settings["out_dim"], settings["bottleneck_dim"] = head["last_layer.weight_v"].shape
        settings["head_layers"] = len(layers)
        settings["use_bn_in_head"] = any(name.endswith("running_mean") for name in head)
        if len(layers) > 1:
            settings["hidden_dim"] = len(layers[0])
    if checkpoint.norm_last_layer is not None:
        settings["norm_last_layer"] = bool(checkpoint.norm_last_layer)
    return settings


def _check_head(checkpoint: DinoCheckpoint, layers: list[torch.Tensor], last: torch.Tensor) -> None:
    """Check that the sizes of the layers match, because a small file can declare the sizes of a huge head."""
    found = [tuple(layer.shape) for layer in (*layers, last)]
    widths = [backbone_sizes(checkpoint)["hidden_sizes"][-1], *(len(layer) for layer in layers)]
    hidden = set(widths[1:-1])
    if len(hidden) > 1 or [shape[1:] for shape in found] != [(width,) for width in widths]:
        raise UserError(
            f"{checkpoint.path} has a head whose layer sizes do not match each other or the backbone: {found}"
        )


def read_setting(checkpoint: DinoCheckpoint, name: str, *types: type):
    """Return a setting of the training command line as a plain value.

    Args:
        checkpoint: content of the file.
        name: name of a setting in its `args`.
        types: accepted types. True and False are not integers.

    Raises:
        UserError: the value has another type.
    """
    value = plain(checkpoint.args[name])
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(item.__name__ for item in types)
        raise UserError(
            f"{checkpoint.path}: {name} in its args is {str(value)[:80]!r}, expected {expected}. The file may be "
            "damaged; download it again"
        )
    return value
