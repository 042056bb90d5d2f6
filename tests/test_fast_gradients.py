import copy

import pytest
import torch
from torch import nn

from surgenet_hf import SurgeNetModel
from surgenet_hf.fast_gradients import speed_up


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "options", [{"kernel_size": 7, "padding": 3}, {"kernel_size": (5, 7), "padding": (2, 3), "bias": False}]
)
@pytest.mark.parametrize("size", [(12, 17), (2, 3)])
def test_depthwise_convolutions_give_what_torch_gives(options, size, memory_format):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, groups=6, **options)
    fast = copy.deepcopy(plain)
    speed_up(fast, half=False)
    images = torch.randn(3, 6, *size).contiguous(memory_format=memory_format)
    results = []
    for conv in (plain, fast):
        x = images.clone().requires_grad_()
        output = conv(x)
        output.square().sum().backward()
        results.append([output, x.grad, *(parameter.grad for parameter in conv.parameters())])
    assert "forward" in vars(fast)
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 6, "kernel_size": 3, "padding": 1},
        {"groups": 6, "kernel_size": 7, "padding": 3, "stride": 2},
        {"groups": 6, "kernel_size": 7, "padding": 6, "dilation": 2},
        {"groups": 6, "kernel_size": 7, "padding": 2},
        {"groups": 6, "kernel_size": 7, "padding": "same"},
        {"groups": 6, "kernel_size": 7, "padding": 3, "padding_mode": "reflect"},
        {"groups": 3, "kernel_size": 7, "padding": 3},
        {"groups": 1, "kernel_size": 7, "padding": 3},
    ],
)
def test_other_convolutions_stay_torchs(options):
    conv = nn.Conv2d(6, 6, **options)
    speed_up(conv, half=True)
    assert "forward" not in vars(conv)


@pytest.mark.parametrize("half", [False, True])
def test_models_give_what_they_gave(tiny_config, backbone, half):
    torch.manual_seed(0)
    plain = SurgeNetModel(tiny_config(backbone)).train()
    fast = copy.deepcopy(plain)
    speed_up(fast, half)
    fast = copy.deepcopy(fast)  # the copy must not refer to the first model
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert any("forward" in vars(module) for module in fast.modules()) == (backbone != "pvt_v2_b2")
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        results = [model(images).pooler_output.float() for model in (plain, fast)]
    torch.testing.assert_close(*results, rtol=0.1 if half else 1e-4, atol=0.1 if half else 1e-4)
    for result in results:
        result.square().sum().backward()
    if not half:
        for (name, expected), found in zip(plain.named_parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_what_is_slow_in_bfloat16(tiny_config, backbone):
    model = SurgeNetModel(tiny_config(backbone)).train()
    speed_up(model, half=True)
    seen = {"large depthwise": set(), "others": set()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kind = seen["large depthwise" if "forward" in vars(module) else "others"]
            module.register_forward_hook(lambda module, inputs, output, kind=kind: kind.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 64, 64)).pooler_output.float().sum().backward()
    assert seen["others"] == {torch.bfloat16}
    assert seen["large depthwise"] <= {torch.float32}
    assert not any(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
