"""Vision transformers of DINOv1, v2, and v3: between their original layout and the models of transformers.

A network is recognized by the names and shapes of its tensors. DINOv1 and v2 become `Dinov2WithRegistersModel`, and
DINOv3 becomes `DINOv3ViTModel`, with the settings that reproduce the original code. Its position embeddings are
interpolated as timm does it. Differences to the original code are below 1e-5.
"""

import re
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import UserError
from .matching import check_tensors
from .reading import check_finite

FAMILIES = {"dinov1": "DINOv1", "dinov2": "DINOv2", "dinov3": "DINOv3"}
# layers and width by the letter in names such as dinov3_vitl16
SIZES = {"s": (12, 384), "b": (12, 768), "l": (24, 1024)}
HEAD_WIDTH = 64  # channels per attention head, in all sizes
IMAGE_SIZES = {"dinov1": 224, "dinov2": 336, "dinov3": 336}  # pixels, in the pretraining of SurgeNetXL
ROPE_THETA = 100.0
PERIODS = "rope_embed.periods"
# LayerScale of DINOv3 has two names
LAYER_SCALES = {"gamma": "gamma_{}", "ls": "ls{}.gamma"}

# (original name, our name) of layers with weight and bias, in a block and outside. "qkv" is divided into three.
_BLOCK = [("norm1", "norm1"), ("norm2", "norm2"), ("attn.proj", "attention.o_proj")]
_MLP = {"dinov2": [("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]}
_MLP |= {"dinov1": _MLP["dinov2"], "dinov3": [("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj")]}
# names in memory of earlier versions of transformers
_RENAMED: list[tuple[str, Any]] = [
    (r"\.attention\.attention\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
]
_EOMT = re.compile(
    r"(.*\.)?(class_head\.(weight|bias)|mask_head\.\d+\.(weight|bias)|attn_mask_probs|criterion\.empty_weight)"
)


def is_vit(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a state dict is that of a vision transformer in the original layout, or of EoMT."""
    return "cls_token" in tensors or any(map(_EOMT.fullmatch, tensors))


def identify_vit(tensors: Mapping[str, torch.Tensor], source: str) -> str:
    """Return the family of a vision transformer, "dinov1", "dinov2", or "dinov3", from the names of its tensors.

    Args:
        tensors: state dict without prefixes and heads.
        source: path of the file, for messages.

    Raises:
        UserError: it is an EoMT, or has the storage tokens of Meta's own DINOv3.
    """
    if heads := sorted(filter(_EOMT.fullmatch, tensors)):
        phases = sorted(name for name in tensors if "phase" in name)
        found = f"{len(heads)} tensors of its head ({', '.join(heads[:3])})" + (
            f" and {len(phases)} of phases ({', '.join(phases[:3])})" if phases else ""
        )
        raise UserError(
            f"{source} contains a segmentation model, EoMT: {found}. ATLAS's fine-tuned checkpoints are EoMT with "
            "phase tokens, which no model of transformers has. Convert the backbone that it was trained from, and "
            "fine-tune it with --head eomt"
        )
    if "storage_tokens" in tensors:
        raise UserError(
            f"{source} contains storage tokens of shape {tuple(tensors['storage_tokens'].shape)}, as in Meta's own "
            "DINOv3. SurgeNetXL's DINOv3 has none. Load Meta's models with transformers from the Hub, e.g. "
            "facebook/dinov3-vits16-pretrain-lvd1689m. If this is a file of SurgeNet2M, its layout is not supported"
        )
    if "pos_embed" not in tensors:
        return "dinov3"
    return "dinov2" if "mask_token" in tensors or "blocks.0.ls1.gamma" in tensors else "dinov1"


def vit_config(
    family: str,
    layers: int,
    width: int,
    heads: int | None = None,
    patch_size: int | None = None,
    image_size: int | None = None,
    registers: int = 0,
) -> PreTrainedConfig:
    """Return the configuration of transformers that reproduces a vision transformer of DINO.

    Args:
        family: "dinov1", "dinov2", or "dinov3".
        layers: number of blocks.
        width: number of channels.
        heads: number of attention heads. Default: one per 64 channels.
        patch_size: side of the patches, in pixels. Default: 14 for DINOv2, otherwise 16.
        image_size: side of the images in pretraining, in pixels. Default: that of SurgeNetXL.
        registers: number of register tokens. Only DINOv2 can have some.
    """
    common: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads or max(1, width // HEAD_WIDTH),
        "patch_size": patch_size or (14 if family == "dinov2" else 16),
        "image_size": image_size or IMAGE_SIZES[family],
        "num_register_tokens": registers,
        "layer_norm_eps": 1e-6,
    }
    if family == "dinov3":
        common |= {f"{name}_bias": True for name in ("query", "key", "value", "proj", "mlp")}
        common |= {f"pos_embed_{name}": None for name in ("shift", "jitter", "rescale")}
        return DINOv3ViTConfig(**common, intermediate_size=4 * width, rope_theta=ROPE_THETA, use_gated_mlp=False)
    return Dinov2WithRegistersConfig(**common, mlp_ratio=4, qkv_bias=True, use_swiglu_ffn=False)


def infer_config(tensors: Mapping[str, torch.Tensor], source: str) -> PreTrainedConfig:
    """Return the configuration of a vision transformer of DINO, from its tensors.

    Args:
        tensors: state dict in the original layout.
        source: path of the file, for messages.

    Raises:
        UserError: the sizes are none of ViT-S, B, and L, or `identify_vit` raises an error.
    """
    family = identify_vit(tensors, source)
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,3})\.", name))}
    width = tensors["cls_token"].shape[-1] if tensors["cls_token"].dim() else 0
    if (len(blocks), width) not in SIZES.values():
        known = ", ".join(f"ViT-{letter.upper()} ({layers}, {size})" for letter, (layers, size) in SIZES.items())
        raise UserError(
            f"{source} contains a {FAMILIES[family]} vision transformer with {len(blocks)} blocks of {width} channels,"
            f" expected {known}. Give a complete file of one of these, or the config of a network of other sizes"
        )
    patches, positions, registers = (
        tensors[name].shape if name in tensors else ()
        for name in ("patch_embed.proj.weight", "pos_embed", "register_tokens")
    )
    patch_size = patches[-1] if len(patches) == 4 else None
    side = round(max(positions[1] - 1, 0) ** 0.5) if len(positions) == 3 else None
    return vit_config(
        family,
        len(blocks),
        width,
        patch_size=patch_size,
        image_size=side * patch_size if side and patch_size else None,
        registers=registers[1] if family == "dinov2" and len(registers) == 3 else 0,
    )


def architecture(config: PreTrainedConfig, family: str) -> str | None:
    """Return the name of an architecture, e.g. "dinov2_vits14", or None for other sizes than those in `SIZES`."""
    found = (config.num_hidden_layers, config.hidden_size)
    letter = next((letter for letter, size in SIZES.items() if size == found), None)
    return f"{family}_vit{letter}{config.patch_size}" if letter else None


def describe_vit(tensors: Mapping[str, torch.Tensor], source: str) -> dict:
    """Return architecture, layers, width, patch size, register tokens, and naming of LayerScale, in JSON types.

    Args:
        tensors: state dict in the original layout.
        source: path of the file, for messages.

    Raises:
        UserError: see `build_vit`. The values are not checked.
    """
    config = infer_config(tensors, source)
    family = identify_vit(tensors, source)
    check_tensors(
        tensors,
        _original_shapes(config, family, _layer_scale(tensors, family)),
        source,
        f"{FAMILIES[family]} {architecture(config, family)}",
        "Give a complete file of this network.",
    )
    return {
        "backbone": architecture(config, family),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "patch_size": config.patch_size,
        "register_tokens": config.num_register_tokens,
        "layer_scale": _layer_scale(tensors, family),
    }


def build_vit(
    tensors: Mapping[str, torch.Tensor], config: PreTrainedConfig | None = None, source: str = "the state dict"
) -> PreTrainedModel:
    """Build a model of transformers from a state dict of DINOv1, v2, or v3.

    Every tensor is checked. The model gets the smallest dtype that represents all weights exactly. What transformers
    cannot store is recorded in `config.pretraining`: the family, and for DINOv3 the periods of the rotary embeddings
    and the name of LayerScale.

    Args:
        tensors: state dict in the original layout, without prefixes and heads.
        config: configuration of a network whose sizes differ from those of `SIZES`, see `vit_config`.
        source: path of the file, for messages.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: the network is another one, or tensors are missing, unexpected, of another shape, or not finite.
    """
    family = identify_vit(tensors, source)
    config = infer_config(tensors, source) if config is None else type(config).from_dict(config.to_dict())
    wanted_class: Any = DINOv3ViTConfig if family == "dinov3" else Dinov2WithRegistersConfig
    if not isinstance(config, wanted_class):
        raise UserError(
            f"{source} contains a {FAMILIES[family]} vision transformer, but the config is for a {config.model_type}; "
            "give the config of this network"
        )
    scale = _layer_scale(tensors, family)
    name = architecture(config, family) or f"of {config.num_hidden_layers} blocks of {config.hidden_size} channels"
    check_tensors(
        tensors,
        _original_shapes(config, family, scale),
        source,
        f"{FAMILIES[family]} {name}",
        "Give a complete file of this network, or its config if its sizes differ.",
    )
    check_finite(tensors, source)
    record: dict[str, Any] = {"family": family}
    if family == "dinov3":
        record |= {"layer_scale": scale, **_record_periods(tensors[PERIODS], config, source)}
    dtype = reduce(torch.promote_types, {tensor.dtype for key, tensor in tensors.items() if key != PERIODS})
    model = _empty_model(config)
    filled = {}
    for ours, shape in _shapes(model).items():
        original, part = _original_name(_canonical(ours), family, scale)
        if original is not None and original in tensors:
            tensor = tensors[original].chunk(3)[part] if part is not None else tensors[original]
            filled[ours] = tensor.reshape(shape).to(dtype, copy=True, memory_format=torch.contiguous_format)
        else:  # DINOv1 has no LayerScale and no mask token; models without register tokens have an empty tensor
            filled[ours] = (torch.ones if "lambda" in ours else torch.zeros)(shape, dtype=dtype)
    model.load_state_dict(filled, strict=True, assign=True)
    model.config.dtype = dtype
    model.config.pretraining = record
    return model.eval()


def to_original_vit(model: PreTrainedModel, family: str | None = None) -> dict[str, torch.Tensor]:
    """Return the weights of a vision transformer with the names and shapes of the original code.

    Args:
        model: `Dinov2WithRegistersModel` or `DINOv3ViTModel`.
        family: "dinov1", "dinov2", or "dinov3". Default: that in `config.pretraining`, otherwise DINOv2 or v3.

    Raises:
        UserError: DINOv1 cannot represent the model, because LayerScale is not 1, the mask token is not 0, or there
            are register tokens.
    """
    record = getattr(model.config, "pretraining", None) or {}
    family = family or record.get("family") or ("dinov3" if isinstance(model, DINOv3ViTModel) else "dinov2")
    scale = record.get("layer_scale") or ("gamma" if family == "dinov3" else "ls")
    tensors = {_canonical(name): tensor for name, tensor in model.state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    parts: dict[str, list[torch.Tensor]] = {}
    extra = []
    for ours, tensor in tensors.items():
        original, part = _original_name(ours, family, scale)
        if original is None:
            neutral = torch.ones_like(tensor) if "lambda" in ours else torch.zeros_like(tensor)
            extra += [] if torch.equal(tensor, neutral) else [ours]
        elif part is not None:
            parts.setdefault(original, [tensor, tensor, tensor])[part] = tensor
        elif tensor.numel():  # no register tokens
            found[original] = tensor
    if extra:
        raise UserError(
            f"{len(extra)} tensors of the model have no place in {FAMILIES[family]}, and are not neutral: "
            f"{', '.join(extra[:3])}. Freeze them in training"
        )
    found |= {name: torch.cat(three) for name, three in parts.items()}
    if family == "dinov3":
        values = record.get("rope_periods") or _exact_periods(model.config).bfloat16().tolist()
        found[PERIODS] = torch.tensor(values, dtype=getattr(torch, record.get("rope_dtype", "float32")))
    shapes = _original_shapes(model.config, family, scale)
    return {name: found[name].reshape(shape) for name, shape in shapes.items()}


def _original_name(ours: str, family: str, scale: str) -> tuple[str | None, int | None]:
    """Return the original name of a parameter of ours, or None, and which third of the original tensor it is."""
    kind = ours.rpartition(".")[2]
    if match := re.match(r"(?:encoder|model)\.layer\.(\d+)\.(.+)\.\w+$", ours):
        block, layer = f"blocks.{match[1]}.", match[2]
        if layer in ("layer_scale1", "layer_scale2"):
            return (None if family == "dinov1" else block + LAYER_SCALES[scale].format(layer[-1])), None
        if projection := re.fullmatch(r"attention\.([qkv])_proj", layer):
            return f"{block}attn.qkv.{kind}", "qkv".index(projection[1])
        names = {new: old for old, new in _BLOCK + _MLP[family]}
        return f"{block}{names[layer]}.{kind}", None
    if ours.startswith("embeddings.patch_embeddings."):
        return f"patch_embed.proj.{kind}", None
    if ours.startswith(("layernorm.", "norm.")):
        return f"norm.{kind}", None
    if kind in ("mask_token", "register_tokens") and (
        family == "dinov1" or (family == "dinov3" and kind == "register_tokens")
    ):
        return None, None
    return {"position_embeddings": "pos_embed"}.get(kind, kind), None


def _original_shapes(config: PreTrainedConfig, family: str, scale: str) -> dict[str, torch.Size]:
    """Return {original name: shape} of the tensors that a file of this network has."""
    return dict(_original_items(config, family, scale))


def _original_items(config: PreTrainedConfig, family: str, scale: str) -> Iterator[tuple[str, torch.Size]]:
    for ours, shape in _shapes(_empty_model(config)).items():
        original, part = _original_name(_canonical(ours), family, scale)
        if original is None or 0 in shape:
            continue
        if part is not None:
            shape = torch.Size((3 * shape[0], *shape[1:]))
        if original == "mask_token":
            shape = torch.Size((1, config.hidden_size))
        yield original, shape
    if family == "dinov3":
        yield PERIODS, _exact_periods(config).shape


def _empty_model(config: Any) -> PreTrainedModel:
    """Return a model whose parameters have no memory. Its buffer, which no file contains, has its values."""
    with torch.device("meta"):
        model = DINOv3ViTModel(config) if isinstance(config, DINOv3ViTConfig) else Dinov2WithRegistersModel(config)
    if isinstance(model, DINOv3ViTModel):
        model.rope_embeddings = type(model.rope_embeddings)(config)
    return model


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _canonical(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _layer_scale(tensors: Mapping[str, torch.Tensor], family: str) -> str:
    """Return the key of the names of LayerScale in `LAYER_SCALES`."""
    return "gamma" if family == "dinov3" and "blocks.0.ls1.gamma" not in tensors else "ls"


def _exact_periods(config: PreTrainedConfig) -> torch.Tensor:
    """Return the periods of the rotary embeddings, shape (channels of a head / 4,)."""
    count = config.hidden_size // config.num_attention_heads // 4
    return config.rope_theta ** (torch.arange(count, dtype=torch.float32) / count)


def _record_periods(periods: torch.Tensor, config: PreTrainedConfig, source: str) -> dict[str, Any]:
    """Check that the periods of a file are those of the config up to bfloat16, and return their record.

    Raises:
        UserError: the periods differ.
    """
    exact = _exact_periods(config)
    if not torch.allclose(periods.float(), exact, rtol=2**-8, atol=0):
        raise UserError(
            f"{source} has rotary embeddings with periods {periods.tolist()}, expected {exact.tolist()} up to "
            "rounding to bfloat16. transformers cannot represent other periods"
        )
    return {"rope_periods": periods.tolist(), "rope_dtype": str(periods.dtype).removeprefix("torch.")}
