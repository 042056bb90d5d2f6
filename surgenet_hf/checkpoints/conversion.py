"""Conversion between original weight files and our models, with one mapping of names for both directions."""

import copy
import functools
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
)

from ..configuration_surgenet import SurgeNetConfig
from ..errors import UnavailableError, UserError
from ..image_processing import check_image_size, image_processor_for
from ..modeling_surgenet import (
    SurgeNetForImageClassification,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
    SurgeNetPreTrainedModel,
)
from .catalog import ENDOVIT, find_by_sha256
from .matching import check_tensors
from .normalization import choose_normalization
from .reading import CheckpointFile, check_finite, read_checkpoint
from .vit import build_vit, describe_vit, is_vit, to_original_vit

logger = logging.getLogger(__name__)

TASKS = {
    "backbone": SurgeNetModel,
    "image-classification": SurgeNetForImageClassification,
    "semantic-segmentation": SurgeNetForSemanticSegmentation,
}
SEGMENTATION_WRAPPERS = {"caformer_s18": "metaformer.", "convnextv2_tiny": "convnext.", "pvt_v2_b2": "pvtv2."}

# (pattern of our name, replacement). All matching patterns are applied in this order, heads first.
_ORIGINAL_FPN = [
    (r"^decode_head\.classifier\.", "FPN.segmentation_head.0."),
    (r"^decode_head\.lateral\.3\.", "FPN.p5."),
    *[(rf"^decode_head\.lateral\.{i}\.", f"FPN.p{i + 2}.skip_conv.") for i in range(3)],
    *[(rf"^decode_head\.levels\.{i}\.(\d)\.", rf"FPN.seg_blocks.{3 - i}.block.\1.block.") for i in range(4)],
]
_ORIGINAL_NAMES = {
    "caformer_s18": [
        *_ORIGINAL_FPN,
        (r"^classifier\.", "head."),
        (r"^layernorm\.", "norm."),
        (r"^encoder\.stem\.conv\.", "downsample_layers.0.conv."),
        (r"^encoder\.stem\.norm\.", "downsample_layers.0.post_norm."),
        (r"^encoder\.stages\.(\d)\.downsample\.conv\.", r"downsample_layers.\1.conv."),
        (r"^encoder\.stages\.(\d)\.downsample\.norm\.", r"downsample_layers.\1.pre_norm."),
        (r"^encoder\.stages\.(\d)\.blocks\.", r"stages.\1."),
    ],
    "convnextv2_tiny": [
        *_ORIGINAL_FPN,
        (r"^classifier\.", "head."),
        (r"^layernorm\.", "norm."),
        (r"^encoder\.stem\.", "downsample_layers.0."),
        (r"^encoder\.stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^encoder\.stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
        (r"\.mlp\.grn\.weight$", ".grn.gamma"),
        (r"\.mlp\.grn\.bias$", ".grn.beta"),
    ],
    "pvt_v2_b2": [
        *_ORIGINAL_FPN,
        (r"^classifier\.", "head."),
        (r"^encoder\.stem\.", "patch_embed1."),
        *[(rf"^encoder\.stages\.{i}\.downsample\.", f"patch_embed{i + 1}.") for i in range(4)],
        *[(rf"^encoder\.stages\.{i}\.blocks\.", f"block{i + 1}.") for i in range(4)],
        *[(rf"^encoder\.stages\.{i}\.norm\.", f"norm{i + 1}.") for i in range(4)],
        (r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
    ],
}
_TIMM_NAMES = {
    "caformer_s18": [(r"^classifier\.", "head.fc."), (r"^layernorm\.", "head.norm."), (r"^encoder\.", "")],
    "convnextv2_tiny": [(r"^classifier\.", "head.fc."), (r"^layernorm\.", "head.norm."), (r"^encoder\.", "")],
    "pvt_v2_b2": [(r"^classifier\.", "head."), (r"^encoder\.stem\.", "patch_embed."), (r"^encoder\.", "")],
}
_NAMINGS = {"original": _ORIGINAL_NAMES, "timm": _TIMM_NAMES}
# Parameter names that identify the backbone family and the naming.
_SIGNATURES = {
    "downsample_layers.0.conv.weight": ("caformer_s18", "original"),
    "downsample_layers.0.0.weight": ("convnextv2_tiny", "original"),
    "patch_embed1.proj.weight": ("pvt_v2_b2", "original"),
    "stem.conv.weight": ("caformer_s18", "timm"),
    "stem.0.weight": ("convnextv2_tiny", "timm"),
    "patch_embed.proj.weight": ("pvt_v2_b2", "timm"),
}
# Heads that a file may contain although the requested model has none.
_KNOWN_HEADS = re.compile(
    r"(norm|head|head\.norm|head\.(fc\.)?(fc1|norm|fc2)|head\.fc"
    r"|FPN\.(p5|p[234]\.skip_conv|seg_blocks\.[0-3]\.block\.[0-2]\.block\.[01]|segmentation_head\.0))\.(weight|bias)"
)


def convert_checkpoint(
    path: str | os.PathLike,
    task: str = "auto",
    network: str = "teacher",
    normalization: str = "auto",
    labels: Sequence[str] | None = None,
    config: PreTrainedConfig | None = None,
    output_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
) -> PreTrainedModel:
    """Convert a weight file of the authors, of their code, or of timm to a model of this package or of transformers.

    The content of the file decides, not its name. The vision transformers of DINOv1 and v2 become
    `Dinov2WithRegistersModel`, those of DINOv3 `DINOv3ViTModel`, and all other networks SurgeNet models. The encoder
    of a masked autoencoder, such as EndoViT, has the layout of DINOv1.

    Every tensor is checked. The model keeps the dtype of the weights. If they have several, it gets the smallest dtype
    that represents all of them exactly, e.g. float32 for float16 and float32.

    Args:
        path: a teacher file, a full DINO checkpoint, or a classification or segmentation checkpoint.
        task: "backbone", "image-classification", "semantic-segmentation", or "auto" for the head in the file.
        network: network of a full DINO checkpoint, "teacher" or "student".
        normalization: "surgenet", "imagenet", "endovit", or "auto". See `choose_normalization`.
        labels: names of the classes in the order of the head's outputs.
        config: configuration of a network whose sizes differ from the published ones.
        output_dir: new folder for the model and its image processor. By default nothing is written. `save_pretrained`
            of the model alone would write no image processor.
        image_size: height and width in pixels that the written image processor resizes to. Default: 224, or the size
            in the pretraining of a vision transformer.

    Returns:
        The model in evaluation mode. `config.pretraining` has the source and the normalization of the weights.
        `image_processor_for(model)` builds the matching image processor.

    Raises:
        MissingFileError: the file does not exist.
        UserError: `output_dir` exists and is not an empty folder, or the file is rejected. The message gives the
            reason, or all tensors that are missing, unexpected, or of the wrong shape. Also raised if `image_size` is
            not a multiple of the patch size.
        UnavailableError: `output_dir` cannot be written.
    """
    checkpoint = read_checkpoint(path, network)
    if is_vit(checkpoint.tensors):
        model = _convert_vit(checkpoint, task, labels, config)
    else:
        model = _convert_surgenet(checkpoint, task, labels, config)
    normalization, reason = choose_normalization(checkpoint, model.config, normalization)
    entry = find_by_sha256(checkpoint.sha256)
    model.config.pretraining = {
        **(getattr(model.config, "pretraining", None) or {}),
        "name": entry.name if entry else ENDOVIT if normalization == "endovit" else "unknown",
        "source": checkpoint.path.name,
        "source_sha256": checkpoint.sha256,
        "network": checkpoint.network,
        "epoch": checkpoint.epoch,
        "normalization": normalization,
        "normalization_reason": reason,
    }
    model.eval()
    if output_dir is not None:
        processor = image_processor_for(model, image_size)
        check_image_size(model.config, processor.size["height"])
        save_converted(model, processor, output_dir)
    return model


def _convert_surgenet(
    checkpoint: CheckpointFile, task: str, labels: Sequence[str] | None, config: PreTrainedConfig | None
) -> SurgeNetPreTrainedModel:
    backbone, naming = _identify(checkpoint)
    task = _choose_task(checkpoint, task)
    if config is None:
        config = SurgeNetConfig(backbone=backbone, activation=_activation(checkpoint, backbone))
    elif not isinstance(config, SurgeNetConfig) or config.backbone != backbone:
        raise UserError(
            f"{checkpoint.path} contains a {backbone}, but the config is for a "
            f"{getattr(config, 'backbone', config.model_type)}; give the config of this network"
        )
    config = copy.deepcopy(config)
    # Check the file first, because `_set_labels` trusts the size of its head.
    check_fit(checkpoint, config, task, naming)
    _set_labels(config, checkpoint, task, naming, labels)
    with torch.device("meta"):
        model = TASKS[task](config)
    model.load_state_dict(_rename(checkpoint, model, naming), strict=True, assign=True)
    config.pretraining = None
    return model


def _convert_vit(
    checkpoint: CheckpointFile, task: str, labels: Sequence[str] | None, config: PreTrainedConfig | None
) -> PreTrainedModel:
    if task not in ("auto", "backbone") or labels is not None:
        raise UserError(
            f"{checkpoint.path} contains a vision transformer without a head for a task; omit task and labels. To "
            "add a head, give the converted folder to a command that fine-tunes"
        )
    model = build_vit(checkpoint.tensors, config, str(checkpoint.path))
    if checkpoint.heads:
        heads = ", ".join(f"{name} ({count} tensors)" for name, count in checkpoint.heads.items())
        logger.warning(f"Omitted heads of the pretraining: {heads}")
    return model


def to_original_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights of a converted model with the names and shapes of the original code.

    The original networks load them with `strict=True`. The exception is a classification norm and head that the
    original segmentation networks have and never use.
    """
    if isinstance(model, Dinov2WithRegistersModel | DINOv3ViTModel):
        return to_original_vit(model)
    if not isinstance(model, SurgeNetPreTrainedModel) or not isinstance(model, tuple(TASKS.values())):
        raise ValueError(f"expected one of {[cls.__name__ for cls in TASKS.values()]}, got {type(model).__name__}")
    segmentation = isinstance(model, SurgeNetForSemanticSegmentation)
    wrapper = SEGMENTATION_WRAPPERS[model.config.backbone] if segmentation else ""
    tensors = model.state_dict()
    return {
        name if name.startswith("FPN.") else wrapper + name: tensors[ours].reshape(shape)
        for ours, (name, shape) in parameter_map(model, "original").items()
    }


def parameter_map(model: SurgeNetPreTrainedModel, naming: str) -> dict[str, tuple[str, torch.Size]]:
    """Return {our parameter name: (name, shape)} in the layout "original" or "timm", without prefixes of wrappers."""
    mapping = {}
    for ours, tensor in model.state_dict().items():
        name = _translate(ours, model.config.backbone, naming)
        mapping[ours] = (name, _original_shape(name, tensor.shape) if naming == "original" else tensor.shape)
    return mapping


def _translate(name: str, backbone: str, naming: str) -> str:
    name = name.removeprefix("surgenet.")
    for pattern, replacement in _NAMINGS[naming][backbone]:
        name = re.sub(pattern, replacement, name)
    return name


def _original_shape(name: str, shape: torch.Size) -> torch.Size:
    """Return the original shape of a parameter.

    The original CAFormer has linear layers instead of 1x1 convolutions. The original GRN parameters have 4 dimensions.
    """
    if name.endswith((".grn.gamma", ".grn.beta")):
        return torch.Size((1, 1, 1, *shape))
    if len(shape) == 4 and shape[2:] == (1, 1) and not name.startswith("FPN."):
        return shape[:2]
    return shape


def _identify(checkpoint: CheckpointFile) -> tuple[str, str]:
    """Return the backbone family and the naming of the tensors."""
    for signature, family in _SIGNATURES.items():
        if signature in checkpoint.tensors:
            return family
    raise UserError(
        f"{checkpoint.path} contains none of the backbones CAFormer-S18, ConvNeXtV2-Tiny, and PVTv2-B2 in the "
        f"original or timm naming, and no vision transformer of DINO; its {len(checkpoint.tensors)} parameters begin "
        f"with {sorted(checkpoint.tensors)[:5]}. Give a file of one of these"
    )


def describe_network(checkpoint: CheckpointFile) -> dict:
    """Return backbone, activation, naming, head, and its number of outputs, or the `problem` of an unknown network.

    For a vision transformer, the result also has its sizes, see `describe_vit`.
    """
    try:
        if is_vit(checkpoint.tensors):
            sizes = describe_vit(checkpoint.tensors, str(checkpoint.path))
            return {**sizes, "activation": None, "naming": "original", "head": None, "num_labels": None}
        backbone, naming = _identify(checkpoint)
    except UserError as error:
        return {"backbone": None, "problem": str(error)}
    head = _choose_task(checkpoint, "auto")
    bias = checkpoint.tensors.get(_last_bias(head, backbone, naming)) if head != "backbone" else None
    return {
        "backbone": backbone,
        "activation": _activation(checkpoint, backbone),
        "naming": naming,
        "head": None if head == "backbone" else head,
        "num_labels": None if bias is None else bias.numel(),
    }


def _activation(checkpoint: CheckpointFile, backbone: str) -> str | None:
    if backbone != "caformer_s18":
        return None
    star_relu = any(name.endswith((".act.scale", ".act1.scale")) for name in checkpoint.tensors)
    return "star_relu" if star_relu else "relu"


def _last_bias(task: str, backbone: str, naming: str) -> str:
    """Return the name of the bias of the last layer of the head, which has one element per class."""
    ours = "decode_head.classifier.bias"
    if task == "image-classification":
        ours = "classifier.fc2.bias" if backbone == "caformer_s18" else "classifier.bias"
    return _translate(ours, backbone, naming)


def _choose_task(checkpoint: CheckpointFile, task: str) -> str:
    if task not in (*TASKS, "auto"):
        raise UserError(f"task must be 'auto' or one of {sorted(TASKS)}, got {task!r}")
    heads = {
        "semantic-segmentation": any(name.startswith("FPN.") for name in checkpoint.tensors),
        # With num_classes=0, the original code builds a head without outputs.
        "image-classification": any(
            re.fullmatch(r"head\.(fc\.)?(fc2\.)?weight", name) and tensor.numel()
            for name, tensor in checkpoint.tensors.items()
        ),
    }
    found = next((head for head, present in heads.items() if present), "backbone")
    if task == "auto":
        return found
    if not heads.get(task, True):
        raise UserError(
            f"{checkpoint.path} has no {task} head, it is a {found} checkpoint. Convert it as 'backbone', and load "
            f"the result with {TASKS[task].__name__}.from_pretrained, which adds a new head"
        )
    return task


def _set_labels(
    config: SurgeNetConfig, checkpoint: CheckpointFile, task: str, naming: str, labels: Sequence[str] | None
) -> None:
    """Set the number and names of the classes from the bias of the last layer."""
    if task == "backbone":
        if labels is not None:
            raise UserError(f"labels were given, but {checkpoint.path} is converted without a head; omit the labels")
        return
    num_labels = len(checkpoint.tensors[_last_bias(task, config.backbone, naming)])
    if labels is None:
        config.num_labels = num_labels
    elif len(labels) != num_labels or len(set(labels)) != num_labels:
        raise UserError(
            f"the head of {checkpoint.path} has {num_labels} outputs; got {len(labels)} labels, "
            f"{len(set(labels))} of them different: {list(labels)}. Give one name per output"
        )
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}


def check_fit(checkpoint: CheckpointFile, config: SurgeNetConfig, task: str, naming: str) -> None:
    """Check names, shapes, and then values of a file's tensors against the model of a config.

    The model is built without memory for its weights. The number of labels is that of the head in the file.

    Raises:
        UserError: lists all tensors that are missing, unexpected, of the wrong shape, or of integers. If there are
            none, names the first tensor with values that are not finite.
    """
    with torch.device("meta"):
        model = TASKS[task](config)
    wanted = dict(parameter_map(model, naming).values())
    found = checkpoint.tensors
    if task != "backbone" and (bias := _last_bias(task, config.backbone, naming)) in found:
        weight = bias.removesuffix("bias") + "weight"
        num_labels = found[bias].numel()
        wanted |= {weight: torch.Size((num_labels, *wanted[weight][1:])), bias: torch.Size((num_labels,))}
    activation = f" with {config.activation}" if config.activation else ""
    check_tensors(
        found,
        wanted,
        str(checkpoint.path),
        f"{config.backbone}{activation} ({naming} naming, task {task})",
        "Give a complete file of this network, or its config if its sizes differ.",
        _KNOWN_HEADS,
    )
    check_finite({name: found[name] for name in wanted}, str(checkpoint.path))


def _rename(checkpoint: CheckpointFile, model: SurgeNetPreTrainedModel, naming: str) -> dict[str, torch.Tensor]:
    """Return the file's tensors, which passed `check_fit`, with our names and shapes and in one dtype."""
    mapping = parameter_map(model, naming)
    found = checkpoint.tensors
    if dropped := sorted(found.keys() - {name for name, _ in mapping.values()}):
        logger.info(f"Omitted parameters that {type(model).__name__} does not have: {', '.join(dropped)}")
    dtype = functools.reduce(torch.promote_types, {found[name].dtype for name, _ in mapping.values()})
    shapes = {ours: tensor.shape for ours, tensor in model.state_dict().items()}
    # Copy, because the file is memory-mapped and may be deleted before the model.
    return {ours: found[name].reshape(shapes[ours]).to(dtype, copy=True) for ours, (name, _) in mapping.items()}


def save_converted(model: PreTrainedModel, processor: SegformerImageProcessor, output_dir: str | os.PathLike):
    """Write model and image processor to a new folder. After an error, the folder does not exist.

    Raises:
        UserError: `output_dir` exists and is not an empty folder.
        UnavailableError: `output_dir` cannot be written.
    """
    output_dir = Path(output_dir)
    try:
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise UserError(f"{output_dir} exists and is not an empty folder; choose another output_dir")
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as temporary:
            written = Path(temporary, "model")
            model.save_pretrained(written)
            processor.save_pretrained(written)
            written.replace(output_dir)
    except (OSError, SafetensorError) as error:
        raise UnavailableError(f"{output_dir} cannot be written: {error}. Choose another output_dir") from error
