"""Options of the commands and the Python API as fields of dataclasses, and their common parser."""

import argparse
import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .atomic import atomic_write
from .errors import UnavailableError, UserError
from .privacy import NO_TOKEN, mask_tokens

CONFIG_FILE = "run.yaml"  # file in the output folder with the resolved options
# {option of the previous version: new name}; the old names work for one version
RENAMED = {
    "config_name": "backbone",
    "data_split": "split_protocol",
    "max_bad_fraction": "max_unreadable_fraction",
}
NOT_SAVED = ("config", "resume_from_checkpoint", "push_to_hub")  # options of one call, not of the run
# options of TrainingArguments that are not for images, or that the runs set or ignore; not listed in --help
_WITHOUT_EFFECT = (
    "do_train do_eval do_predict local_rank remove_unused_columns average_tokens_across_devices hub_strategy "
    "hub_always_push hub_revision length_column_name train_sampling_strategy include_for_metrics batch_eval_metrics "
    "label_names neftune_noise_alpha use_liger_kernel liger_kernel_config"
).split()

logger = logging.getLogger(__name__)


def option(default, help: str, **metadata):
    """Return a dataclass field that is an option.

    Args:
        default: default value, or `dataclasses.MISSING` for a required option. Lists are copied for each instance.
        help: noun phrase for `--help`.
        metadata: further settings of transformers' `HfArgumentParser`, e.g. choices or aliases.
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help formatter that appends the default value, unless the help text mentions a default."""

    def _get_help_string(self, action):
        text = action.help or ""
        value = action.default.value if isinstance(action.default, Enum) else action.default
        if value in (None, argparse.SUPPRESS, "", False, []) or "default" in text.lower():
            return text
        return f"{text} (default: {value})".replace("%", "%%")


class OptionParser(HfArgumentParser):
    """Parser of dataclass fields as options, from a command line, a YAML file, or Python values.

    Args:
        dataclass_types: one dataclass or several.
        kwargs: arguments of `argparse.ArgumentParser`.

    Attributes:
        resolved: {name: value} of all options, after parsing.
    """

    def __init__(self, dataclass_types, **kwargs):
        kwargs = {"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(dataclass_types, **kwargs)
        self.resolved: dict = {}
        for action in self._actions:
            if action.dest == "hub_token":  # a field of TrainingArguments
                action.type, action.help = _refuse_token, argparse.SUPPRESS
            elif action.dest in _WITHOUT_EFFECT:
                action.help = argparse.SUPPRESS

    def parse_options(self, options: Mapping) -> tuple:
        """Return an instance of each dataclass with the given values.

        Args:
            options: {name: value}, with the names of the command line.

        Raises:
            UserError: an option is unknown, or a value has a wrong type or is not one of the choices.
        """
        return self.parse_args_into_dataclasses(self.as_arguments(options, ""))

    # without the other parameters of the base class: `resolved` must have every option
    def parse_args_into_dataclasses(self, args: list[str] | None = None) -> tuple:  # type: ignore[override]
        """Parse a command line into one instance of each dataclass.

        Raises:
            UserError: an option is unknown, or a value has a wrong type or is not one of the choices.
        """
        self.resolved = vars(self.parse_args(args))
        return self.parse_dict({name: value for name, value in self.resolved.items() if name != "config"})

    def as_arguments(self, options: Mapping, source: str) -> list[str]:
        """Convert options to command-line arguments.

        None and empty lists become defaults of the parser.

        Args:
            options: {name: value}.
            source: prefix of error messages.

        Raises:
            UserError: an option is unknown, or a list is given for a single value.
        """
        arguments = []
        for name, value in options.items():
            flag = f"--{self.current_name(str(name))}"
            action = self._option_string_actions.get(flag)
            if action is None or name in ("config", "help"):
                flags = [each.removeprefix("--") for each in self._option_string_actions]
                near = difflib.get_close_matches(str(name), flags, n=1)
                self.error(f"{source}unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            several = action.nargs in ("+", "*")
            if value is None or (several and not value):
                self.set_defaults(**{action.dest: value})
                action.required = False
            elif isinstance(value, list | tuple) and several:
                arguments += [flag, *(_text(item) for item in value)]
            elif isinstance(value, list | tuple):
                self.error(f"{source}{name} is a list, expected one value")
            else:
                arguments.append(f"{flag}={_text(value)}")
        return arguments

    def current_name(self, name: str) -> str:
        """Return the current name of an option, with a warning if it was renamed."""
        new = RENAMED.get(name.replace("-", "_"))
        if new is None or f"--{new}" not in self._option_string_actions:
            return name
        logger.warning(f"The option {name} is now called {new}; the old name will be removed in the next version.")
        return new

    def save_resolved(self, output_dir: str | os.PathLike) -> None:
        """Write the options to OUTPUT_DIR/run.yaml, which `--config` reads.

        Options of TrainingArguments are written only if they differ from the default.

        Args:
            output_dir: output folder.

        Raises:
            UnavailableError: the folder cannot be written to.
        """
        ours = {field.name for kind in self.dataclass_types for field in _own_fields(kind)}
        defaults = {action.dest: action.default for action in reversed(self._actions)}  # `--x` comes before `--no_x`
        options = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in self.resolved.items()
            if name not in NOT_SAVED and (name in ours or value != defaults[name])
        }
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        try:
            with atomic_write(Path(output_dir, CONFIG_FILE)) as temporary:
                temporary.write_text(mask_tokens(text), encoding="utf-8")
        except OSError as error:
            raise UnavailableError(f"--output_dir {output_dir} cannot be written to: {error}") from error

    def format_help(self) -> str:
        """Format the help with one spelling of each option. The spelling `--a-b` is also accepted but omitted."""
        spellings = {action: action.option_strings for action in self._actions}
        try:
            for action, found in spellings.items():
                action.option_strings = [one for one in found if "-" not in one.lstrip("-")] or found
            return super().format_help()
        finally:
            for action, found in spellings.items():
                action.option_strings = found

    def error(self, message: str) -> NoReturn:
        raise UserError(mask_tokens(message))


def _own_fields(kind: type) -> list[dataclasses.Field]:
    inherited = {each.name: each for each in dataclasses.fields(TrainingArguments)}
    return [each for each in dataclasses.fields(kind) if inherited.get(each.name) is not each]


def _text(value) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value.value if isinstance(value, Enum) else value)


def _refuse_token(token: str) -> NoReturn:
    """Reject an access token as an option. results.json would record it, and process lists would show it."""
    raise argparse.ArgumentTypeError(NO_TOKEN)
