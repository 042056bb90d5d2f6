import pytest


@pytest.fixture(autouse=True)
def figures_are_not_rendered():
    """Render figures in these tests, unlike the fixture of this name in tests/conftest.py."""
