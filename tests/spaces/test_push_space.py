"""Tests of the demo Space's repository: its content, a start with its requirements alone, and its upload."""

import ast
import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from surgenet_hf import SurgeNetForSemanticSegmentation
from surgenet_hf.cli.push_space import main
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.publishing import spaces
from surgenet_hf.publishing.upload import MARKER
from tests.checkpoints.files import tiny
from tests.hub.fixtures import validate

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "push_space.py"
SPACE = "spaces/surgenet/demo"  # on the stand-in Hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the Space's repository as the script builds it."""
    folder = tmp_path_factory.mktemp("built") / "demo"
    spaces.prepare_space(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(arguments, capsys) -> tuple[object, str]:
    """Return the exit code or message, and what was printed."""
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code, "".join(capsys.readouterr())
    return 0, "".join(capsys.readouterr())


def requirements(path: Path) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


def installed_with(required: list[Requirement]) -> dict[str, Distribution]:
    """Return the installed distributions that pip would install for requirements, including all dependencies."""
    found, todo, seen = {}, list(required), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        found[name] = distribution(name)
        for extra in {"", *requirement.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            for needed in map(Requirement, found[name].requires or ()):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return found


def imported(folder: Path, in_functions: bool) -> set[str]:
    """Return the third-party modules that app.py imports, directly or through adjacent files and the package.

    Args:
        folder: Repository of the Space.
        in_functions: Whether to include imports within functions of the package, which the app may never call.
    """
    names, todo, seen = set(), [folder / "app.py"], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        package = path.relative_to(folder).parent.parts
        modules = []
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef) and package and not in_functions]
        later = {inner for function in functions for inner in ast.walk(function)}
        for node in nodes:
            if isinstance(node, ast.Import) and node not in later:
                modules += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node not in later:
                above = package[: len(package) - node.level + 1] if node.level else ()
                base = ".".join([*above, *filter(None, [node.module])])
                modules += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for module in modules:
            parts = module.split(".")
            starts = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))]
            candidates = [file for start in starts for file in (start.with_suffix(".py"), start / "__init__.py")]
            ours = [file for file in candidates if file.exists()]
            todo += ours
            if not ours and parts[0] not in sys.stdlib_module_names:
                names.add(parts[0])
    return names


def test_it_holds_the_app_and_the_package(folder):
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    data = [
        Path(*package.split("."), pattern.strip()).as_posix()
        for package, patterns in settings["options.package_data"].items()
        for pattern in patterns.split(",")
        if package != "surgenet_hf.demo"
    ]
    package = {name for name in contents(folder) if name.startswith("surgenet_hf/")}
    of_data = {path.relative_to(ROOT).as_posix() for pattern in data for path in ROOT.glob(pattern)}
    assert of_data <= package
    assert {"surgenet_hf/__init__.py", "surgenet_hf/figures/overlays.py"} <= package
    assert all(name.endswith(".py") for name in package - of_data)
    app = contents(folder).keys() - package
    assert {"app.py", "requirements.txt", "README.md", "LICENSE"} <= app
    assert not [name for name in contents(folder) if "__pycache__" in name or "test" in name or "/." in f"/{name}"]


def test_front_matter(folder, client):
    """Test that the Hub accepts the front matter and builds the tested versions."""
    card = SpaceCard.load(folder / "README.md")
    validate(card, repo_type="space")
    data = card.data
    assert data.sdk == "gradio"
    (pinned,) = (each for each in requirements(ROOT / "constraints.txt") if each.name == "gradio")
    assert pinned.specifier.contains(data.sdk_version)
    assert (folder / data.app_file).is_file()
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert f"Programming Language :: Python :: {data.python_version}" in settings["metadata"]["classifiers"]
    assert data.license == "mit"
    assert data.title
    assert data.short_description
    assert data.tags


@pytest.mark.slow
def test_requirements_are_what_is_imported(folder):
    """Test that the requirements match the imports.

    They include all imports at the start, nothing beyond the imports in functions, and only versions known to pass.
    """
    required = {canonicalize_name(each.name): each for each in requirements(folder / "requirements.txt")}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    of_package = {Requirement(line).name for line in settings["options"]["install_requires"].split("\n") if line}
    assert {canonicalize_name(name) for name in of_package} <= required.keys()
    known = {name: set(map(canonicalize_name, owners)) for name, owners in packages_distributions().items()}
    brought = installed_with(list(required.values())).keys()
    assert not [name for name in imported(folder, in_functions=False) if not known[name] & brought]
    useful = set().union(*(known[name] for name in imported(folder, in_functions=True)))
    assert required.keys() <= useful | set(map(canonicalize_name, of_package))
    pins = {canonicalize_name(each.name): each.specifier for each in requirements(ROOT / "constraints.txt")}
    assert {name: each.specifier for name, each in required.items() if name in pins} == {
        name: pins[name] for name in required if name in pins
    }


@pytest.mark.slow
def test_runs_with_its_requirements_alone(folder, tmp_path, monkeypatch):
    """Test a start in an environment that holds only what requirements.txt installs, without this package."""
    SurgeNetForSemanticSegmentation(tiny()).save_pretrained(tmp_path / "model")
    build_image_processor(image_size=64).save_pretrained(tmp_path / "model")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for each in installed_with(requirements(folder / "requirements.txt")).values():
        for name in {file.parts[0] for file in each.files} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(each.locate_file(name))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    of_package = [python, "-c", "import surgenet_hf"]
    assert subprocess.run(of_package, cwd=tmp_path, env=environment, capture_output=True).returncode

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    copy = shutil.copytree(folder, tmp_path / "demo")  # the app leaves caches
    with open(tmp_path / "log", "wb") as log:
        command = [python, "app.py", "--port", str(port), "--model", tmp_path / "model"]
        app = subprocess.Popen(command, cwd=copy, env=environment, stdout=log, stderr=log)
    try:
        assert "SurgeNet" in page(f"http://127.0.0.1:{port}/", app), (tmp_path / "log").read_text()
        frame = min((folder / "examples").glob("*.jpg"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        client = Client(f"http://127.0.0.1:{port}/", verbose=False, download_files=tmp_path / "downloads")
        _, areas, mask, _ = client.predict(handle_file(frame), api_name="/segment")
        assert Image.open(mask).size == Image.open(frame).size
        assert sum(each["percent"] for each in areas) == pytest.approx(100, abs=0.1)
    finally:
        app.kill()
        app.wait()


def page(address: str, server: subprocess.Popen, seconds: float = 120) -> str:
    """Return the answer of a server as soon as it has one.

    Return an empty string if the server ends or takes too long.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        try:
            return direct.open(address, timeout=10).read().decode()
        except OSError:  # not listening yet
            time.sleep(0.3)
    return ""


@pytest.mark.slow
def test_pushed_as_a_user_would(hub, client, folder, capsys):
    code, printed = run(["--repo_id", "surgenet/demo", "--push", "--private"], capsys)
    assert code == 0
    assert "commit" in printed
    assert hub.token not in printed
    space = hub.repos[SPACE]
    assert (space.sdk, space.private, len(space.commits)) == ("gradio", True, 2)
    assert space.files() == contents(folder) | {".gitattributes": space.files()[".gitattributes"]}

    # unchanged content makes no commit; then test an unknown file and a changed one
    assert run(["--repo_id", "surgenet/demo", "--push"], capsys) == (0, "surgenet/demo: unchanged\n")
    assert len(space.commits) == 2
    space.commit({"surgenet_hf/gone.py": b"", "app.py": b"another"}, "by hand")
    code, printed = run(["--repo_id", "surgenet/demo", "--push"], capsys)
    assert (code, printed.splitlines()[:2]) == (0, ["changed app.py", "deleted surgenet_hf/gone.py"])
    assert space.files() == contents(folder) | {".gitattributes": space.files()[".gitattributes"]}
    assert len(space.commits) == 4


def test_without_push_it_is_built_and_the_hub_untouched(hub, client, folder, tmp_path, capsys):
    arguments = ["--repo_id", "surgenet/demo", "--output_dir", str(tmp_path)]
    for _ in range(2):
        code, printed = run(arguments, capsys)
        assert code == 0
        assert "new app.py" in printed
        assert f"{len(contents(folder))} files to change" in printed
    built = contents(tmp_path / "demo")
    assert built.keys() - {MARKER} == contents(folder).keys()
    assert not hub.repos
    assert not [request for request in hub.requests if request.method != "GET"]


STRAY = (
    ".env",
    "prod.env",
    "app.py~",
    "app.py.orig",
    "#app.py#",
    "app.cpython-311.pyc",
    "run.log",
    "data.csv",
    "core",
)


def test_stray_files_stay_here(tmp_path, monkeypatch):
    """Test that stray files in the app and the package are not uploaded.

    Examples are settings with passwords, files left by editors and crashes, and caches.
    """
    for source in ("spaces/surgenet-demo", "surgenet_hf"):
        shutil.copytree(ROOT / source, tmp_path / "source" / source)
        for name in (*STRAY, "__pycache__/app.py", ".idea/app.py"):
            path = tmp_path / "source" / source / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("password")
    shutil.copy(ROOT / "LICENSE", tmp_path / "source")
    monkeypatch.setattr(spaces, "PACKAGE", tmp_path / "source" / "surgenet_hf")
    spaces.prepare_space(tmp_path / "clean")
    built = contents(tmp_path / "clean")
    assert b"password" not in built.values()
    assert {"app.py", "style.css", "requirements.txt", "surgenet_hf/py.typed", "LICENSE"} <= built.keys()
    assert {"surgenet_hf/publishing/card_template.md", "examples/clip_1.mp4"} <= built.keys()


def test_another_folder_is_not_replaced(hub, client, tmp_path, capsys):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("three years")
    code, _ = run(["--repo_id", "surgenet/demo", "--output_dir", str(tmp_path)], capsys)
    assert "was not prepared by this command" in code
    assert contents(tmp_path / "demo") == {"thesis.txt": b"three years"}
    assert not list(tmp_path.glob(".*"))


def test_a_build_that_fails_leaves_the_last_one(hub, client, tmp_path, monkeypatch, capsys):
    arguments = ["--repo_id", "surgenet/demo", "--output_dir", str(tmp_path)]
    run(arguments, capsys)
    before = contents(tmp_path)
    monkeypatch.setattr(
        spaces.shutil, "copytree", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    code, _ = run(arguments, capsys)
    assert "No space left" in code
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("repo_id", "fault", "message"),
    [
        ("demo", None, "must be ORG/NAME, got demo"),
        ("a/b/c", None, "a/b/c"),
        ("surgenet/demo", ("GET /api/whoami", 401), "refuses the token"),
        ("someone/demo", None, "403 .*rights for the namespace 'someone'"),
        ("surgenet/demo", ("POST .*/commit/", 401), "401"),
        ("surgenet/demo", ("POST .*/commit/", 503), "503"),
    ],
)
def test_what_the_hub_refuses_is_said(repo_id, fault, message, hub, client, capsys):
    if fault:
        hub.fail(fault[0], status=fault[1], times=99)
    code, printed = run(["--repo_id", repo_id, "--push"], capsys)
    assert re.search(rf"error: .*{message}", f"{code}{printed}", re.DOTALL)
    assert hub.token not in f"{code}{printed}"
    assert all(len(space.commits) == 1 for space in hub.repos.values())


def test_a_push_without_a_token_says_how_to_log_in(hub, client, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    code, _ = run(["--repo_id", "surgenet/demo", "--push"], capsys)
    assert "hf auth login" in code
    assert not hub.repos


def test_a_push_without_network_says_so(hub, client, capsys):
    hub.cut("GET /api/whoami", times=99)
    code, _ = run(["--repo_id", "surgenet/demo", "--push"], capsys)
    assert code.startswith("error: the Hub cannot be reached")
