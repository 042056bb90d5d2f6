"""Tests of scripts/: each script's main() called in-process, plus one subprocess test a script."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where pickle looks its classes up
    spec.loader.exec_module(module)
    return module
