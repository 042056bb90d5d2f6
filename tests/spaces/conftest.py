"""Fixtures of the demo's tests: tiny models, the running app, and a page in a browser."""

from pathlib import Path

import pytest

from tests.spaces.running import save_models, start, stop


@pytest.fixture(scope="session")
def models(tiny_config, tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), tiny_config)


@pytest.fixture(scope="session")
def server(models, tmp_path_factory):
    """Yield the running demo with the tiny models and without network."""
    folder = tmp_path_factory.mktemp("server")
    server = start(["-m", "surgenet_hf.cli.demo", "--model", *map(str, vars(models).values())], folder)
    yield server
    stop(server)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")
    path = next((path for path in ("/usr/bin/chromium", "/usr/bin/google-chrome") if Path(path).exists()), None)
    if path is None:
        pytest.skip("no browser is installed (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """Yield a page of the demo.

    Finally, assert that it sent requests only to the server and raised no error.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(90_000)  # a busy machine must not cause a failure
    asked, errors = set(), []
    page.on("request", lambda request: asked.add(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    page.get_by_role("tab", name="Segment").wait_for()
    yield page
    page.close()
    assert not errors
    assert not [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
