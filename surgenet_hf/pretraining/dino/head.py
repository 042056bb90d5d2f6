"""Projection head of DINO (Caron et al., "Emerging properties in self-supervised vision transformers", 2021)."""

import torch
from torch import nn
from torch.nn import functional as F


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose weight rows are `weight_g * weight_v / |weight_v|`.

    The parameter names are those of the original checkpoints: `weight_g` (out, 1) and `weight_v` (out, in).
    """

    def __init__(self, in_features: int, out_features: int, fixed_norm: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=not fixed_norm)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        bound = in_features**-0.5  # initialization of linear layers in torch
        nn.init.uniform_(self.weight_v, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Scaling the logits is cheaper than scaling the weights.
        return F.linear(x, self.weight_v) * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)).T


class DinoHead(nn.Module):
    """MLP to a narrow bottleneck, L2 normalization, and a weight-normalized layer to the prototypes.

    Parameter names are those of the original head: `mlp.*`, `last_layer.weight_g`, `last_layer.weight_v`.

    Args:
        in_dim: number of channels of the embedding.
        out_dim: number of prototypes.
        hidden_dim: width of the hidden layers of the MLP.
        bottleneck_dim: width of the output of the MLP.
        num_layers: number of layers of the MLP, at least 1.
        batch_norm: whether to normalize before each activation, over the batches of all processes. With several
            processes, torch supports this only on GPUs.
        norm_last_layer: whether to fix the norm of each prototype to 1, which makes training more stable.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers.append(nn.Linear(in_dim, hidden_dim))
            if batch_norm:
                layers.append(nn.SyncBatchNorm(hidden_dim))
            layers.append(nn.GELU())
            in_dim = hidden_dim
        layers.append(nn.Linear(in_dim, bottleneck_dim))
        self.mlp = nn.Sequential(*layers) if num_layers > 1 else layers[0]
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, fixed_norm=norm_last_layer)
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits (N, out_dim) of embeddings (N, in_dim)."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))
