"""Preparation of the repository of the demo Space."""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..errors import MissingFileError

PACKAGE = Path(__file__).parents[1]
# suffixes of the files in app and package
SUFFIXES = (".css", ".jpg", ".md", ".mp4", ".png", ".py", ".txt", ".typed", ".yaml")


def demo_folder() -> Path:
    """Return the folder of the Gradio demo.

    This is `surgenet_hf/demo` in a wheel, or `spaces/surgenet-demo` in a checkout.

    Raises:
        MissingFileError: neither folder exists.
    """
    for folder in (PACKAGE / "demo", PACKAGE.parent / "spaces" / "surgenet-demo"):
        if (folder / "app.py").is_file():
            return folder
    raise MissingFileError(f"the demo is neither in {PACKAGE} nor next to it; install surgenet_hf again")


def prepare_space(folder: Path) -> None:
    """Write the files of a Space: the app, the package, and their license.

    The package is included because it is not on PyPI, and a Space's build can only access its own repository.

    Args:
        folder: new folder for the files.
    """
    shutil.copytree(demo_folder(), folder, ignore=_ignored)
    shutil.copytree(PACKAGE, folder / "surgenet_hf", ignore=_ignored)
    shutil.rmtree(folder / "surgenet_hf" / "demo", ignore_errors=True)  # wheels include the demo
    (folder / "LICENSE").write_text(_license(), encoding="utf-8")


def _license() -> str:
    if (PACKAGE.parent / "LICENSE").is_file():
        return (PACKAGE.parent / "LICENSE").read_text(encoding="utf-8")
    try:
        text = distribution("surgenet_hf").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise MissingFileError(f"the LICENSE file of {PACKAGE} is missing; install surgenet_hf again")
    return text


def _ignored(folder: str, names: list[str]) -> set[str]:
    """Return the names in a folder that are not part of app or package, e.g. caches, settings, and editor files."""
    ours = {name for name in names if Path(folder, name).is_dir() or Path(name).suffix in SUFFIXES}
    return {name for name in names if name not in ours or name.startswith(".") or name == "__pycache__"}
