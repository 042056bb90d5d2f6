"""Helpers that create tiny weight files in the authors' layouts."""

import argparse
import copy
import json
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from surgenet_hf import SurgeNetConfig, SurgeNetModel
from surgenet_hf.checkpoints.conversion import to_original_state_dict
from tests.conftest import TINY_VITS, TINY_WIDTHS


def tiny(backbone="caformer_s18", num_labels=5, **kwargs) -> SurgeNetConfig:
    return SurgeNetConfig(
        backbone=backbone,
        depths=[1, 1, 2, 1],
        hidden_sizes=TINY_WIDTHS[backbone],
        pyramid_channels=32,
        segmentation_channels=32,
        num_labels=num_labels,
        **kwargs,
    )


def original(cls, config: SurgeNetConfig, seed=0) -> OrderedDict:
    """Return a random state dict in the layout of the original code."""
    torch.manual_seed(seed)
    model = cls(config)
    for parameter in model.parameters():  # constants could hide a wrong mapping
        torch.nn.init.normal_(parameter, std=0.1)
    return OrderedDict(to_original_state_dict(model))


class Numpy1Pickle:
    """Pickle module that names numpy scalars as numpy 1 did.

    The published files were saved with numpy 1.
    """

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if obj is np._core.multiarray.scalar:
                self.write(pickle.GLOBAL + b"numpy.core.multiarray\nscalar\n")
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = {**pickle._Pickler.dispatch, type(np._core.multiarray.scalar): save_global}  # noqa: RUF012


def save_content(path, content: dict, numpy1=True):
    """Save a file with the pickle names of numpy 1 or of the installed numpy.

    Args:
        path: Output file.
        content: Content of the file.
        numpy1: Whether to use the names of numpy 1, with which the published files were saved.
    """
    torch.save(content, path, **({"pickle_module": Numpy1Pickle, "pickle_protocol": 2} if numpy1 else {}))


def save_dino(path, teacher: dict, student: dict, args: dict, numpy1=True):
    """Save a full checkpoint in the layout of the original DINO loop."""
    head = {"mlp.0.weight": torch.ones(4, 2), "last_layer.weight_g": torch.ones(3, 1)}

    def multi_crop(network, prefix):
        names = {f"backbone.{name}": tensor for name, tensor in network.items()}
        names |= {f"head.{name}": tensor for name, tensor in head.items()}
        return {prefix + name: tensor for name, tensor in names.items()}

    content = {
        "student": multi_crop(student, "module."),
        "teacher": multi_crop(teacher, ""),
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.1), "params": [0]}]},
        "epoch": 50,
        "args": argparse.Namespace(**args),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }
    save_content(path, content, numpy1)


GOLDENS = Path(__file__).parents[1] / "goldens"


def original_order(names, backbone: str) -> list[str]:
    """Sort the parameter names of a backbone in the order of the original code.

    The goldens, which the original code made, define this order.
    """
    manifest = json.loads((GOLDENS / "models_manifest.json").read_text())
    order = list(manifest[f"{backbone}/classification"])
    assert set(names) <= set(order)
    return sorted(names, key=order.index)


def original_head(in_dim: int, out_dim=12, hidden_dim=16, bottleneck_dim=8, batch_norm=False) -> nn.ModuleDict:
    """Return the parameters of the original three-layer projection head, built from torch modules."""
    norms = [[nn.BatchNorm1d(hidden_dim)] if batch_norm else [] for _ in range(2)]
    mlp = [
        nn.Linear(in_dim, hidden_dim),
        *norms[0],
        nn.GELU(),
        nn.Linear(hidden_dim, hidden_dim),
        *norms[1],
        nn.GELU(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but it defines the original parameter names
        last_layer = nn.utils.weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
    return nn.ModuleDict({"mlp": nn.Sequential(*mlp, nn.Linear(hidden_dim, bottleneck_dim)), "last_layer": last_layer})


class OriginalTraining:
    """Student of the original DINO loop with its optimizer.

    The student's tensors have the original order and shapes.
    """

    def __init__(self, config: SurgeNetConfig, norm_last_layer=True, batch_norm=False, seed=0):
        weights = original(SurgeNetModel, config, seed)
        head = original_head(config.hidden_sizes[-1], batch_norm=batch_norm)
        self.student = {f"backbone.{name}": weights[name] for name in original_order(weights, config.backbone)}
        self.student |= {f"head.{name}": tensor.clone() for name, tensor in head.state_dict().items()}
        buffers = {f"head.{name}" for name, _ in head.named_buffers()}
        self.parameters = {name: nn.Parameter(t) for name, t in self.student.items() if name not in buffers}
        if norm_last_layer:
            self.parameters["head.last_layer.weight_g"].requires_grad = False
        self.student |= self.parameters
        groups = [[], []]
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                groups[name.endswith(".bias") or len(parameter.shape) == 1].append(parameter)
        self.optimizer = torch.optim.AdamW([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}])
        self.optimizer.param_groups[0].update(lr=0.01, weight_decay=0.2, eps=1e-6)
        self.optimizer.param_groups[1].update(lr=0.01, eps=1e-6)

    def gradients(self, step: int, frozen=False) -> dict[str, torch.Tensor]:
        """Return random gradients by original parameter name.

        Args:
            step: Seed of the gradients.
            frozen: Whether to omit the last layer.
        """
        generator = torch.Generator().manual_seed(step)
        return {
            name: torch.randn(parameter.shape, generator=generator)
            for name, parameter in self.parameters.items()
            if parameter.requires_grad and not (frozen and "last_layer" in name)
        }

    def step(self, gradients: dict[str, torch.Tensor]):
        for name, parameter in self.parameters.items():
            parameter.grad = gradients.get(name)
        self.optimizer.step()

    def content(self, epoch=3, **args) -> dict:
        """Return the checkpoint that the original loop saves."""
        student = {name: tensor.detach().clone() for name, tensor in self.student.items()}
        out_dim = len(student["head.last_layer.weight_v"])
        return {
            "student": OrderedDict((f"module.{name}", tensor) for name, tensor in student.items()),
            "teacher": OrderedDict((name, tensor + tensor.is_floating_point()) for name, tensor in student.items()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "epoch": epoch,
            "args": argparse.Namespace(**args),
            "dino_loss": OrderedDict(center=torch.linspace(-1, 1, out_dim)[None]),
        }


def vit_manifest() -> dict[str, dict[str, list[int]]]:
    """Return {architecture: {original name: shape}} of the published vision transformers."""
    return json.loads((GOLDENS / "vit_manifest.json").read_text())


def rope_periods() -> torch.Tensor:
    """Return the periods of DINOv3's rotary embeddings, rounded to bfloat16 as in the published files."""
    return (100 ** (torch.arange(16) / 16)).bfloat16().float()


def small_vit(architecture: str, layers=2, width=64, grid=4, seed=0) -> dict[str, torch.Tensor]:
    """Return random weights in the layout of a published vision transformer, with fewer layers and channels.

    Args:
        architecture: name such as "dinov2_vits14".
        layers: number of blocks.
        width: number of channels, a multiple of 64.
        grid: number of rows and columns of patches that the position embeddings are for.
        seed: seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = vit_manifest()[architecture]
    original = shapes["cls_token"][-1]
    tensors = {}
    for name, shape in shapes.items():
        if name.startswith("blocks.") and int(name.split(".")[1]) >= layers:
            continue
        sizes = [side * width // original if side % original == 0 else side for side in shape]
        if name == "pos_embed":
            sizes[1] = grid**2 + 1
        tensors[name] = 0.2 * torch.randn(sizes, generator=generator)
    if "rope_embed.periods" in tensors:
        tensors["rope_embed.periods"] = rope_periods()
    return tensors


def tiny_vit(architecture: str, seed=0) -> dict[str, torch.Tensor]:
    """Return random weights in the layout of a published vision transformer, with the sizes of `TINY_VITS`."""
    layers, width = TINY_VITS[architecture[10]]
    return small_vit(architecture, layers, width, grid=14 if architecture.startswith("dinov1") else 24, seed=seed)
