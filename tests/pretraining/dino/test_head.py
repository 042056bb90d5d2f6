import pytest
import torch
from torch.nn import functional as F

from surgenet_hf.pretraining.dino.head import DinoHead


def build(**changes) -> DinoHead:
    torch.manual_seed(0)
    return DinoHead(**{"in_dim": 6, "out_dim": 10, "hidden_dim": 8, "bottleneck_dim": 4, **changes})


def test_names_are_the_original_ones():
    assert set(build().state_dict()) == {
        *(f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")),
        "last_layer.weight_g",
        "last_layer.weight_v",
    }
    statistics = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert set(build(batch_norm=True, num_layers=2).state_dict()) == {
        *(f"mlp.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")),
        *(f"mlp.1.{kind}" for kind in statistics),
        "last_layer.weight_g",
        "last_layer.weight_v",
    }
    assert {"mlp.weight", "mlp.bias"} < set(build(num_layers=1).state_dict())


def test_logits_by_hand():
    head, x = build(), torch.randn(5, 6)
    head.last_layer.weight_g.data.uniform_(0.5, 2)
    weights = head.state_dict()
    hidden = F.gelu(x @ weights["mlp.0.weight"].T + weights["mlp.0.bias"])
    hidden = F.gelu(hidden @ weights["mlp.2.weight"].T + weights["mlp.2.bias"])
    bottleneck = hidden @ weights["mlp.4.weight"].T + weights["mlp.4.bias"]
    g, v = weights["last_layer.weight_g"], weights["last_layer.weight_v"]
    cosines = F.cosine_similarity(bottleneck[:, None], v[None], dim=-1)
    torch.testing.assert_close(head(x), cosines * g.T)


def test_norm_of_the_last_layer():
    assert torch.equal(build().last_layer.weight_g, torch.ones(10, 1))
    for fixed in (True, False):
        last_layer = build(norm_last_layer=fixed).last_layer
        assert last_layer.weight_g.requires_grad is not fixed
        last_layer(torch.randn(3, 4)).square().sum().backward()
        assert (last_layer.weight_g.grad is None) is fixed
        assert last_layer.weight_v.grad.abs().sum() > 0


def test_start_weights():
    head = build(in_dim=64, hidden_dim=256)
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not head.mlp[0].bias.any()
    assert not torch.equal(*head.last_layer.weight_v[:2])


def test_batch_norm_takes_statistics_of_the_batch():
    head = build(batch_norm=True)
    x = torch.randn(16, 6)
    torch.testing.assert_close(head(3 * x + 1), head(x), atol=0.05, rtol=0)  # the variance has an epsilon
    assert head.mlp[1].num_batches_tracked == 2
    assert not torch.allclose(build()(3 * x + 1), build()(x), atol=1e-2)
