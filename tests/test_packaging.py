"""Tests of the packages of the wheel and of the commands."""

import configparser
import importlib
from pathlib import Path

import surgenet_cli

ROOT = Path(__file__).parents[1]


def settings() -> configparser.ConfigParser:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return settings


def test_packages_are_the_folders():
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "surgenet_hf").rglob("__init__.py")]
    listed = settings()["options"]["packages"].split()
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), "surgenet_hf.demo"])


def test_all_files_of_the_demo_are_in_the_wheel():
    demo = ROOT / "spaces" / "surgenet-demo"
    patterns = ["*.py", *settings()["options.package_data"]["surgenet_hf.demo"].split(", ")]
    files = {path for path in demo.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files == {path for pattern in patterns for path in demo.glob(pattern)}


def test_the_command_of_the_package_is_surgenet():
    module, name = settings()["options.entry_points"]["console_scripts"].split(" = ")[1].split(":")
    assert getattr(importlib.import_module(module), name) is surgenet_cli.main
