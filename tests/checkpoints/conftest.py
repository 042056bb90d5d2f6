import pytest

from surgenet_hf import configuration_surgenet
from tests.checkpoints.files import tiny
from tests.hub.fixtures import client, hub  # noqa: F401


@pytest.fixture
def tiny_backbones(monkeypatch):
    """Pretend that the published backbones are tiny."""
    for name in ("caformer_s18", "convnextv2_tiny", "pvt_v2_b2"):
        config = tiny(name)
        published = {"depths": config.depths, "hidden_sizes": config.hidden_sizes}
        monkeypatch.setitem(configuration_surgenet.BACKBONES, name, published)
