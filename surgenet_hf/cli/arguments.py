"""Command lines: one parser, `--config` files, renamed options, and errors in one line."""

import argparse
import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import NoReturn

import yaml
from tqdm import tqdm
from transformers import HfArgumentParser

from ..atomic import atomic_write
from ..errors import UnavailableError, UserError
from ..privacy import NO_TOKEN, mask_tokens

CONFIG_FILE = "run.yaml"  # the resolved options, in the output folder of a command
# options of the previous version, which still work for one version
RENAMED = {
    "--config_name": "--backbone",
    "--data_split": "--split_protocol",
    "--max_bad_fraction": "--max_unreadable_fraction",
}

logger = logging.getLogger(__name__)


class ArgumentParser(HfArgumentParser):
    """Parser whose options are the fields of dataclasses, with `--config` and one-line errors.

    transformers' parser answers an unknown option with a traceback, and other mistakes with a list of all options,
    which are about 150 with TrainingArguments.

    Args:
        dataclass_types: one dataclass, or several.
        kwargs: of `argparse.ArgumentParser`. `description` is the docstring of the command's module.
    """

    def __init__(self, dataclass_types, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(dataclass_types, **kwargs)
        self.add_argument(
            "--config", help="YAML file of options by name. Options on the command line override those of the file."
        )
        for action in self._actions:
            if action.dest == "hub_token":  # of TrainingArguments
                action.type, action.help = _refuse_token, argparse.SUPPRESS

    def parse_known_args(self, args=None, namespace=None):
        args = [self._current_name(arg) for arg in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args([*self._read_config(args), *args], namespace)

    def parse_args_into_dataclasses(self, args: list[str] | None = None) -> tuple:
        """Parse a command line into one instance of each dataclass; `self.resolved` holds all options by name.

        Args:
            args: the command line without the program. Default: that of the process.
        """
        self.args = list(sys.argv[1:] if args is None else args)
        self.resolved = vars(self.parse_args(self.args))
        self.resolved.pop("config")
        return self.parse_dict(self.resolved)

    def command_line(self) -> str:
        """Return the parsed command line, to be recorded in results. Access tokens are masked."""
        return mask_tokens(shlex.join([*self.prog.split(), *self.args]))

    def save_resolved(self, output_dir: str | Path) -> None:
        """Write the resolved options, except those that are None, to OUTPUT_DIR/run.yaml for `--config`."""
        options = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in self.resolved.items()
            if value is not None
        }
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        try:
            with atomic_write(Path(output_dir, CONFIG_FILE)) as temporary:
                temporary.write_text(mask_tokens(text), encoding="utf-8")
        except OSError as error:
            raise UnavailableError(f"--output_dir {output_dir} cannot be written to: {error}") from error

    def _current_name(self, arg: str) -> str:
        old, equals, value = arg.partition("=")
        new = RENAMED.get(old.replace("-", "_").replace("__", "--", 1))
        if new is None or new not in self._option_string_actions:
            return arg
        logger.warning(f"{old} is now called {new}; the old name will be removed in the next version.")
        return new + equals + value

    def _read_config(self, args: list[str]) -> list[str]:
        """Read the options of the `--config` file as a command line."""
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        path = finder.parse_known_args(args)[0].config
        if path is None:
            return []
        try:
            options = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"--config {path} cannot be read: {error}")
        if not isinstance(options, dict):
            self.error(f"--config {path} holds {type(options).__name__}, expected lines of the form `option: value`")
        found = []
        for name, value in options.items():
            option = self._current_name(f"--{name}")
            if option not in self._option_string_actions or name == "config":
                self.error(f"--config {path}: unknown option {name!r}")
            if value is not None:
                found += [option, *_tokens(value)]
        return found

    def format_help(self) -> str:
        """Format the help with one spelling of each option: `--a-b`, which is accepted too, is omitted."""
        spellings = {action: action.option_strings for action in self._actions}
        try:
            for action, found in spellings.items():
                action.option_strings = [one for one in found if "-" not in one.lstrip("-")] or found
            return super().format_help()
        finally:
            for action, found in spellings.items():
                action.option_strings = found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {mask_tokens(message)}; --help lists the options\n")


def command(main: Callable) -> Callable:
    """Decorate the `main(argv=None)` of a command: print log messages, and end on a `UserError` in one line.

    All other exceptions keep their traceback.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> None:
        log_to_terminal()
        try:
            main(argv)
        except UserError as error:
            sys.exit(mask_tokens(f"error: {error}"))

    return run


class _TerminalHandler(logging.Handler):
    """Print messages above a progress bar: information to standard output, the rest to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = mask_tokens(self.format(record))
            tqdm.write(text, file=sys.stdout if record.levelno < logging.WARNING else sys.stderr)
        except Exception:
            self.handleError(record)


def log_to_terminal() -> None:
    """Print the log messages of this package. In a run of several processes, only the first prints information."""
    package = logging.getLogger("surgenet_hf")
    if not any(isinstance(handler, _TerminalHandler) for handler in package.handlers):
        package.addHandler(_TerminalHandler())
    is_first = int(os.environ.get("RANK", 0)) == 0  # set by torchrun and accelerate launch
    package.setLevel(logging.INFO if is_first else logging.WARNING)


def _refuse_token(token: str) -> NoReturn:
    """Refuse a token on the command line, which results.json records and every user of the machine can list."""
    raise argparse.ArgumentTypeError(NO_TOKEN)


def _tokens(value) -> list[str]:
    """Write a value of a YAML file as arguments of an option."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]
