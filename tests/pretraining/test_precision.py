import copy

import torch

from surgenet_hf import SurgeNetModel
from surgenet_hf.pretraining.precision import cpu_autocast, keep_depthwise_in_float32


def test_depthwise_convolutions_compute_in_float32(tiny_config, backbone):
    torch.manual_seed(0)
    plain = SurgeNetModel(tiny_config(backbone)).train()
    model = copy.deepcopy(plain)
    keep_depthwise_in_float32(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    seen = {"depthwise": set(), "others": set()}
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            depthwise = getattr(module, "groups", 1) > 1
            kind = seen["depthwise" if depthwise else "others"]
            module.register_forward_hook(lambda module, inputs, output, kind=kind: kind.add(output.dtype))
    images = torch.randn(2, 3, 64, 64)
    with cpu_autocast():
        found = model(images).pooler_output
    assert seen == {"depthwise": {torch.float32}, "others": {torch.bfloat16}}

    expected = plain(images).pooler_output
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    found.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
