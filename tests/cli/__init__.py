"""Tests of the scripts in scripts/.

They call the main() of each script in-process, plus one subprocess test per script.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # pickle looks up classes in sys.modules
    spec.loader.exec_module(module)
    return module
