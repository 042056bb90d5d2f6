"""Shared setup of all tests: no network, few threads, and tiny variants of the three backbones."""

import os
from collections import Counter

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # must precede the import of transformers
# one thread, also in subprocesses: small networks gain nothing from more and slow down on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from surgenet_hf import SurgeNetConfig, configuration_surgenet
from tests.hub.fixtures import client, hub  # noqa: F401

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Mark tests that use a browser or start the demo, and move the files with the most slow tests to the front.

    Processes that share the files then end at about the same time, with `--dist loadfile --no-loadscope-reorder`.
    """
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
        if "server" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow") or "browser" in item.fixturenames)
    items.sort(key=lambda item: -slow[item.path])


TINY_WIDTHS = {
    "caformer_s18": [16, 24, 32, 64],
    "convnextv2_tiny": [8, 16, 24, 32],
    "pvt_v2_b2": [8, 16, 20, 32],
}


@pytest.fixture(params=sorted(TINY_WIDTHS))
def backbone(request) -> str:
    """Return the name of a backbone; a test that requests it runs on all three."""
    return request.param


@pytest.fixture(scope="session")
def tiny_config():
    """Return a function that builds the config of a SurgeNet with one block per stage and 3 labels.

    Its signature is `tiny_config(backbone, **changes)`.
    """

    def build(backbone: str = "caformer_s18", **changes) -> SurgeNetConfig:
        sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": TINY_WIDTHS[backbone]}
        heads = {"pyramid_channels": 32, "segmentation_channels": 32, "num_labels": 3}
        return SurgeNetConfig(backbone=backbone, **{**sizes, **heads, **changes})

    return build


@pytest.fixture
def tiny_backbones(monkeypatch):
    """Replace the sizes of the published backbones with tiny ones."""
    for name, widths in TINY_WIDTHS.items():
        monkeypatch.setitem(configuration_surgenet.BACKBONES, name, {"depths": [1, 1, 2, 1], "hidden_sizes": widths})
