"""Files in the authors' layouts, of tiny networks."""

import argparse
import pickle
from collections import OrderedDict

import numpy as np
import torch

from surgenet_hf import SurgeNetConfig
from surgenet_hf.checkpoints.conversion import to_original_state_dict
from tests.conftest import TINY_WIDTHS


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
    """A random state dict as the original code would save it."""
    torch.manual_seed(seed)
    model = cls(config)
    for parameter in model.parameters():  # no parameter left at a constant
        torch.nn.init.normal_(parameter, std=0.1)
    return OrderedDict(to_original_state_dict(model))


class Numpy1Pickle:
    """A pickle module whose numpy scalars are named as numpy 1 did, which the published files were saved under."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if obj is np._core.multiarray.scalar:
                self.write(pickle.GLOBAL + b"numpy.core.multiarray\nscalar\n")
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = {**pickle._Pickler.dispatch, type(np._core.multiarray.scalar): save_global}  # noqa: RUF012


def save_dino(path, teacher: dict, student: dict, args: dict, numpy1=True):
    """A full checkpoint of the original DINO loop."""
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
    torch.save(content, path, **({"pickle_module": Numpy1Pickle, "pickle_protocol": 2} if numpy1 else {}))
