"""Faster training steps on a CPU. The results differ from torch's own kernels only by rounding.

Measured with torch.profiler on CAFormer-S18 on one core with AMX, torch 2.15. The weight gradient of a 7x7 depthwise
convolution takes oneDNN 2 to 30 times as long as the equivalent convolution of input and output gradient. The input
gradient takes up to twice as long. In bfloat16, both are even slower, and so is the backward pass of fused attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def speed_up(model: nn.Module, half: bool) -> None:
    """Replace slow CPU operations of a model in place. Weights and their names do not change.

    Args:
        model: model to modify.
        half: whether the model runs under autocast to bfloat16. Large depthwise convolutions then run in float32, and
            fused attention is disabled.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_large_depthwise(module):
            module.forward = partial(_forward, module)
        elif half and hasattr(module, "fused_attn"):  # attribute of timm's attention
            module.fused_attn = False


@contextmanager
def faster_on_cpu(model: nn.Module, half: bool) -> Iterator[None]:
    """Train a model with the faster operations of `speed_up` during the context, if it is on a CPU."""
    if next(model.parameters()).device.type != "cpu":
        yield
        return
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    speed_up(model, half)
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                vars(module).pop("forward", None)
        for module in fused:
            module.fused_attn = True


def _is_large_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a depthwise convolution keeps height and width and has a kernel of 5x5 or larger.

    torch is fast for smaller kernels.
    """
    if isinstance(conv.padding, str):
        return False
    size = min(conv.kernel_size)
    same = [2 * p + 1 for p in conv.padding] == list(conv.kernel_size) and conv.padding_mode == "zeros"
    dense = conv.stride == conv.dilation == (1, 1)
    return conv.groups == conv.in_channels == conv.out_channels > 1 and size >= 5 and same and dense


def _forward(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return _DepthwiseConv2d.apply(x.float(), conv.weight, conv.bias, conv.padding)


class _DepthwiseConv2d(torch.autograd.Function):
    """Depthwise convolution of stride 1 that keeps height and width, with depthwise convolutions as gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, padding):
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        convolve = partial(F.conv2d, padding=ctx.padding, groups=len(weight))
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = convolve(grad, weight.flip(2, 3))
        if ctx.needs_input_grad[1]:  # image (1, C, H, W), its gradient as kernels (C, 1, H, W), result (1, C, k, k)
            pairs = zip(x.split(1), grad.split(1), strict=True)
            grad_weight = sum(convolve(image, kernels.transpose(0, 1)) for image, kernels in pairs).transpose(0, 1)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None
