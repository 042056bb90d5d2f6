"""Fixtures around the stand-in Hub. A conftest.py of another folder imports them by name to have them too."""

import huggingface_hub
import pytest

from tests.hub.server import StandInHub


@pytest.fixture
def hub():
    """A stand-in Hub of the test's own."""
    with StandInHub() as hub:
        yield hub
        assert not hub.errors, "\n".join(hub.errors)


@pytest.fixture
def client(hub, monkeypatch, tmp_path):
    """huggingface_hub.HfApi() on the stand-in; so is all else in this process that asks the Hub for something."""
    hub.connect(monkeypatch, tmp_path / "hf_home")
    yield huggingface_hub.HfApi()
    huggingface_hub.close_session()
