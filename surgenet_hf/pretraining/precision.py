"""Autocast to bfloat16 on a CPU, without what is slower there than float32.

Seen with torch.profiler on a step of CAFormer-S18, one thread: the backward passes of depthwise convolutions take
about twice as long in bfloat16 as in float32, and that of the fused attention four times.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def cpu_autocast() -> Iterator[None]:
    """Autocast to bfloat16, with attention as plain matrix products."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def plain_attention(backward: Callable) -> Callable:
    """A backward pass that goes with `cpu_autocast`: gradient checkpointing computes attention in it once more."""
    return sdpa_kernel(SDPBackend.MATH)(backward)


def keep_depthwise_in_float32(model: nn.Module) -> None:
    """Let the depthwise convolutions of a model compute in float32 under autocast; weights and names stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = _in_float32(module.forward)


def _in_float32(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return run
