"""Command lines: `--config` files, log messages, and errors in one line."""

import argparse
import functools
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import yaml
from tqdm import tqdm

from ..errors import UserError
from ..options import OptionParser
from ..privacy import mask_tokens


class ArgumentParser(OptionParser):
    """Parser of a command, with `--config` and one-line errors.

    transformers' parser answers an unknown option with a traceback, and other mistakes with a list of all options,
    which are about 150 with TrainingArguments.

    Args:
        dataclass_types: one dataclass, or several.
        kwargs: arguments of `argparse.ArgumentParser`. `description` is the docstring of the command's module.
    """

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, **kwargs)
        self.add_argument(
            "--config", help="YAML file of options by name. Options on the command line override those of the file."
        )

    def parse_known_args(self, args=None, namespace=None):
        args = [self._current(arg) for arg in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args([*self._read_config(args), *args], namespace)

    def parse_args_into_dataclasses(self, args: list[str] | None = None) -> tuple:
        """Parse a command line into one instance of each dataclass.

        Args:
            args: command line without the program. Default: that of the process.
        """
        self.args = list(sys.argv[1:] if args is None else args)
        return super().parse_args_into_dataclasses(self.args)

    def command_line(self) -> str:
        """Return the parsed command line, to be recorded in results. Access tokens are masked."""
        return mask_tokens(shlex.join([*self.prog.split(), *self.args]))

    def _current(self, arg: str) -> str:
        if not arg.startswith("--"):
            return arg
        name, equals, value = arg.removeprefix("--").partition("=")
        return f"--{self.current_name(name)}{equals}{value}"

    def _read_config(self, args: list[str]) -> list[str]:
        """Read the options of the `--config` file as a command line."""
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        finder.add_argument("--config", nargs="?", const="")
        path = finder.parse_known_args(args)[0].config
        if path is None:
            return []
        if not path:
            self.error("--config needs a YAML file")
        try:
            options = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f", line {mark.line + 1}" if mark else ""
            self.error(f"--config {path}{place} is not YAML: {getattr(error, 'problem', error)}")
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"--config {path} cannot be read: {error}")
        if not isinstance(options, dict):
            self.error(
                f"--config {path} contains data of type {type(options).__name__}; expected lines of the "
                "form `option: value`"
            )
        return self.as_arguments(options, f"--config {path}: ")

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
