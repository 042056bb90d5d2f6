"""What makes a step on a CPU faster than torch's own kernels do; the results differ by rounding alone.

Seen with torch.profiler on CAFormer-S18, one core with AMX, torch 2.15: oneDNN takes 2 to 30 times as long for the
weight gradient of a 7x7 depthwise convolution as for the same numbers as a convolution of input and output gradient,
and up to twice as long for the gradient of the input. In bfloat16 it is slower still, as is the backward pass of the
fused attention.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def speed_up(model: nn.Module, half: bool) -> None:
    """Replace what is slow on a CPU; weights and their names stay.

    Args:
        half: the model runs under autocast to bfloat16. Large depthwise convolutions then stay in float32.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_large_depthwise(module):
            module.forward = partial(_forward, module)
        elif half and hasattr(module, "fused_attn"):  # timm's name
            module.fused_attn = False


def _is_large_depthwise(conv: nn.Conv2d) -> bool:
    """Whether it keeps height and width and has 5x5 weights or larger; torch is fast with smaller ones."""
    size = min(conv.kernel_size)
    same = [2 * p + 1 for p in conv.padding] == list(conv.kernel_size) and conv.padding_mode == "zeros"
    dense = conv.stride == conv.dilation == (1, 1)
    return conv.groups == conv.in_channels == conv.out_channels > 1 and size >= 5 and same and dense


def _forward(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return _DepthwiseConv2d.apply(x.float(), conv.weight, conv.bias, conv.padding)


class _DepthwiseConv2d(torch.autograd.Function):
    """A depthwise convolution of stride 1 that keeps height and width, with gradients that are such convolutions."""

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
        if ctx.needs_input_grad[1]:  # an image (1, C, H, W) and its gradient as kernels (C, 1, H, W) give (1, C, k, k)
            pairs = zip(x.split(1), grad.split(1), strict=True)
            grad_weight = sum(convolve(image, kernels.transpose(0, 1)) for image, kernels in pairs).transpose(0, 1)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None
