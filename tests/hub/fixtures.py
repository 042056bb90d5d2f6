"""Fixtures of the stand-in Hub, which the conftest.py of another folder can import by name."""

import huggingface_hub
import pytest

from tests.hub.server import StandInHub


def validate(card, **options) -> None:
    """Validate the front matter of a card with the Hub's endpoint, which the stand-in provides.

    huggingface_hub before 2.0 sends the request to the real Hub whatever the settings, so nothing is checked then.
    """
    if int(huggingface_hub.__version__.split(".")[0]) >= 2:
        card.validate(**options)


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
