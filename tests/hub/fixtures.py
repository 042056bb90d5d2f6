"""Fixtures of the stand-in Hub, which the conftest.py of another folder can import by name."""

import huggingface_hub
import pytest

from tests.hub.server import StandInHub


@pytest.fixture
def hub():
    """Yield a new stand-in Hub for each test."""
    with StandInHub() as hub:
        yield hub
        assert not hub.errors, "\n".join(hub.errors)


@pytest.fixture
def client(hub, monkeypatch, tmp_path):
    """Yield huggingface_hub.HfApi(), connected to the stand-in Hub.

    All other requests of this process to the Hub also go to the stand-in.
    """
    hub.connect(monkeypatch, tmp_path / "hf_home")
    yield huggingface_hub.HfApi()
    huggingface_hub.close_session()
