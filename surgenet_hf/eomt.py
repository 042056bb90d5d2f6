"""EoMT, a segmentation model that is a plain vision transformer with queries (Kerssies et al., CVPR 2025).

transformers has the model, but no way to start it from a backbone. This module maps the weights of DINOv2 and DINOv3.
"""

from typing import Any

import torch
from torch.nn import functional as F
from transformers import (
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from .errors import UserError

ANNEALING_POWER = 0.9
DINOV3_SETTINGS = (
    *("intermediate_size", "use_gated_mlp", "query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias"),
    *("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
)


def build_eomt(config: PreTrainedConfig, image_size: int | None, **options) -> PreTrainedModel:
    """Build an EoMT with random weights and the sizes of a vision transformer.

    It has one query per class. The queries join in the last 3 layers, or in the last 4 of 24 or more layers, as in the
    fine-tuning of SurgeNet's vision transformers.

    Args:
        config: configuration of a DINOv2 or DINOv3 vision transformer.
        image_size: height and width of the input in pixels, a multiple of the patch size. None: that of `config`.
        options: values of the configuration, with `id2label`.

    Raises:
        UserError: the backbone is of another family, or its patches do not divide the image size.
    """
    if not isinstance(config, Dinov2Config | Dinov2WithRegistersConfig | DINOv3ViTConfig):
        raise UserError(
            f"--head eomt needs a DINOv2 or DINOv3 vision transformer, found {config.model_type}; choose another"
        )
    patch: Any = config.patch_size
    size: Any = image_size or config.image_size
    if size % patch:
        raise UserError(f"--image_size must be a multiple of the patch size {patch} for --head eomt, got {size}")
    layers = config.num_hidden_layers
    options |= {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": config.num_attention_heads,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": config.hidden_act,
        "image_size": size,
        "patch_size": patch,
        "num_blocks": min(4 if layers >= 24 else 3, layers),
        "num_queries": len(options["id2label"]),
        "num_upscale_blocks": max(1, patch.bit_length() - 3),  # a stride of about 4 pixels, from patches of 16
        "num_register_tokens": getattr(config, "num_register_tokens", 0),
    }
    if isinstance(config, DINOv3ViTConfig):
        options |= {name: getattr(config, name) for name in DINOV3_SETTINGS}
        options["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        return EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**options)).float()
    options |= {"mlp_ratio": config.mlp_ratio, "use_swiglu_ffn": config.use_swiglu_ffn}
    return EomtForUniversalSegmentation(EomtConfig(**options)).float()


def copy_transformer(base: PreTrainedModel, model: PreTrainedModel, source: str) -> None:
    """Copy the weights of a DINOv2 or DINOv3 model to an EoMT of the same sizes.

    Position embeddings are interpolated to the grid of the EoMT. The one of the class token is added to that token,
    because EoMT has none for it.

    Args:
        base: the vision transformer.
        model: EoMT from `build_eomt`.
        source: name of the weights, for messages.

    Raises:
        UserError: a tensor of the EoMT's transformer has no counterpart of the same shape.
    """
    # without register tokens, their tensor is empty
    tensors = {name: tensor for name, tensor in base.state_dict().items() if tensor.numel()}
    tensors.pop("embeddings.mask_token", None)
    positions = tensors.pop("embeddings.position_embeddings", None)
    if positions is not None:  # DINOv3 has rotary embeddings instead
        tensors["embeddings.cls_token"] = tensors["embeddings.cls_token"] + positions[:, :1]
        old = round((positions.shape[1] - 1) ** 0.5)
        new = model.config.image_size // model.config.patch_size
        grid = positions[:, 1:].transpose(1, 2).unflatten(2, (old, old))
        if new != old:
            grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False, antialias=True)
        tensors["embeddings.position_embeddings.weight"] = grid.flatten(2)[0].T.contiguous()
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("encoder.layer.", "layers.").replace("model.layer.", "layers.")
        name = f"layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        if positions is not None:
            name = name.replace("attention.o_proj", "attention.out_proj")
        renamed[name] = tensor
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("embeddings.", "layers.", "layernorm.")) and tensor.numel()
    }
    wrong = [name for name in expected if name not in renamed or renamed[name].shape != expected[name].shape]
    wrong += [name for name in renamed if name not in expected]
    if wrong:
        raise UserError(
            f"the weights of {source} do not fit EoMT: {len(wrong)} tensors are missing, unexpected, or have another "
            f"shape ({', '.join(sorted(wrong)[:3])}, ...). Choose another --head"
        )
    model.load_state_dict(renamed, strict=False)  # the rest is the new head


def mask_probabilities(step: int, total: int, blocks: int) -> list[float]:
    """Return the probability of masked attention in each block with queries, which training reduces to 0.

    The schedule is that of the published configurations of EoMT. The blocks are annealed one after the other, each
    over a sixth of the training. The first one starts after a sixth of it, the last one ends at five sixths.

    Args:
        step: number of completed steps.
        total: number of steps of the training.
        blocks: number of blocks with queries.
    """
    found = []
    for block in range(blocks):
        start = total / 6 * (1 + 3 * block / max(blocks - 1, 1))
        progress = min(max((step - start) / (total / 6), 0.0), 1.0)
        found.append((1 - progress) ** ANNEALING_POWER)
    return found


def set_mask_probabilities(model, probabilities: list[float]) -> None:
    """Set the probability of masked attention in each block of an EoMT."""
    model.attn_mask_probs.copy_(torch.tensor(probabilities))
