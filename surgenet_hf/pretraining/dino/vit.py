"""Vision transformers of DINO (Caron et al., ICCV 2021) as transformers' `Dinov2WithRegistersModel`.

DINO's network is this model without register tokens, with LayerScale of 1, and without masked patches. The embedding
is the class token after the last norm, `pooler_output`.

`prepare_vit` changes a model so that its training steps equal those of facebookresearch/dino. The class of the model,
and the names and values of its parameters, do not change. A saved model is therefore a plain model of transformers.
"""

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, PreTrainedConfig
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersDropPath,
    Dinov2WithRegistersEmbeddings,
)

from ...configuration_surgenet import BACKBONES
from ...errors import UserError
from ...heads import load_base
from ..arguments import VITS, CropConfig

PATCH_SIZE = 16  # pixels
# values of the configuration that make the model equal to DINO's
ARCHITECTURE: dict[str, Any] = {
    "patch_size": PATCH_SIZE,
    "num_channels": 3,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "layer_norm_eps": 1e-6,
    "num_register_tokens": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# parameters without a counterpart in DINO
_FIXED = re.compile(r".*\.(?:lambda1|mask_token|register_tokens)")
# query, key, and value in the names of transformers 5.23 and of earlier versions
_QKV = re.compile(r"(.*\.)(?:[qkv]_proj|query|key|value)\.(weight|bias)")


def build_vit(name: str, image_size: int, drop_path_rate: float) -> Dinov2WithRegistersModel:
    """Build a vision transformer with random weights, initialized like the original.

    Args:
        name: name of the backbone in `VITS`.
        image_size: side of the global crops in pixels, for which the model has position embeddings.
        drop_path_rate: `drop_path_rate` of the configuration.
    """
    config = Dinov2WithRegistersConfig(
        **VITS[name], **ARCHITECTURE, image_size=image_size, drop_path_rate=drop_path_rate
    )
    model = Dinov2WithRegistersModel(config)
    # transformers initializes all other parameters like the original
    model.embeddings.patch_embeddings.projection.reset_parameters()
    return model


def load_vit(source: str, config: PreTrainedConfig, drop_path_rate: float) -> Dinov2WithRegistersModel:
    """Load a vision transformer.

    Args:
        source: folder, or repository on the Hub.
        config: its configuration.
        drop_path_rate: new `drop_path_rate` of the configuration.

    Raises:
        UserError: the model is not a vision transformer like DINO's, or its weights are not complete.
        UnavailableError: the weights cannot be read.
    """
    if not isinstance(config, Dinov2WithRegistersConfig):
        raise _unsupported(source, f"is a {config.model_type}")
    if wrong := [name for name, value in ARCHITECTURE.items() if getattr(config, name) != value]:
        raise _unsupported(source, "has " + ", ".join(f"{name} {getattr(config, name)}" for name in wrong))
    model = load_base(source, config)
    assert isinstance(model, Dinov2WithRegistersModel)  # the class of this configuration
    if any((tensor != 1).any() for name, tensor in model.state_dict().items() if name.endswith(".lambda1")):
        raise _unsupported(source, "has LayerScale, like DINOv2")
    model.config.drop_path_rate = drop_path_rate
    return model


def _unsupported(source: str, found: str) -> UserError:
    return UserError(
        f"{source} {found}, but DINO pretraining supports only {', '.join(BACKBONES)}, and the vision transformers of "
        "DINOv1 with patches of 16 pixels (dinov2_with_registers without register tokens and LayerScale). Give "
        f"--model_name_or_path with one of these, or --backbone {' or '.join(VITS)} for random weights"
    )


def check_crops(backbone: nn.Module, crops: CropConfig) -> None:
    """Check that the crops consist of whole patches if the backbone is a vision transformer.

    Raises:
        UserError: a size is not a multiple of the patch size.
    """
    if not isinstance(backbone, Dinov2WithRegistersModel):
        return
    if wrong := sorted({size for size in crops.sizes if size % PATCH_SIZE}):
        raise UserError(
            f"got crops of {' and '.join(map(str, wrong))} pixels, but the vision transformer has patches of "
            f"{PATCH_SIZE} pixels: give --global_crops_size and --local_crops_size as multiples of {PATCH_SIZE}"
        )


class DinoEmbeddings(Dinov2WithRegistersEmbeddings):
    """Embeddings with the interpolation of DINO, which differs from that of transformers.

    DINO adds 0.1 to the number of patches, which changes the scale of the interpolation, and does not antialias.
    """

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return position embeddings (1, 1 + N, C) of the class token and the N patches of an image.

        Args:
            embeddings: unused.
            height, width: size of the image in pixels.
        """
        positions = self.position_embeddings
        side = math.isqrt(positions.shape[1] - 1)
        sizes = [length // PATCH_SIZE for length in (height, width)]
        if sizes == [side, side]:
            return positions
        grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=[(size + 0.1) / side for size in sizes], mode="bicubic")
        return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def prepare_vit(model: Dinov2WithRegistersModel) -> None:
    """Change a model so that it trains like DINO's.

    Positions are interpolated as in DINO. The drop path rate grows linearly with depth, up to `config.drop_path_rate`.
    Parameters without a counterpart in DINO are fixed.
    """
    model.embeddings.__class__ = DinoEmbeddings  # the class of the model and its saved `architectures` do not change
    layers = model.encoder.layer
    rates = torch.linspace(0, model.config.drop_path_rate, len(layers), device="cpu").tolist()
    for layer, rate in zip(layers, rates, strict=True):
        layer.drop_path = Dinov2WithRegistersDropPath(rate) if rate else nn.Identity()
    for name, parameter in model.named_parameters():
        if _FIXED.fullmatch(name):
            parameter.requires_grad_(False)


def fused_parameters(model: Dinov2WithRegistersModel) -> list[list[nn.Parameter]]:
    """Return the groups of parameters that are one tensor in DINO.

    They are the weights of query, key, and value of each layer, and their biases.
    """
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if match := _QKV.fullmatch(name):
            groups[match.groups()].append(parameter)
    return list(groups.values())
