"""Options of the commands and of the Python API: fields of dataclasses, and the one parser of both."""

import argparse
import dataclasses
import difflib
import json
import logging
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

CONFIG_FILE = "run.yaml"  # the resolved options, in the output folder
# options of the previous version, which still work for one version
RENAMED = {
    "config_name": "backbone",
    "data_split": "split_protocol",
    "max_bad_fraction": "max_unreadable_fraction",
}
NOT_SAVED = ("config", "resume_from_checkpoint", "push_to_hub")  # they belong to one call, not to the run
# options of TrainingArguments that have no effect here
_WITHOUT_EFFECT = (
    "do_train do_eval do_predict local_rank remove_unused_columns average_tokens_across_devices hub_strategy "
    "hub_always_push hub_revision length_column_name train_sampling_strategy include_for_metrics batch_eval_metrics "
    "label_names label_smoothing_factor neftune_noise_alpha use_liger_kernel liger_kernel_config"
).split()

logger = logging.getLogger(__name__)


def option(default, help: str, **metadata):
    """Return a dataclass field that is an option.

    Args:
        default: default value; `dataclasses.MISSING` for a required option. A list is copied for each instance.
        help: noun phrase for `--help`.
        metadata: further settings of transformers' `HfArgumentParser`, e.g. choices or aliases.
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that adds the default to a help text that does not name it."""

    def _get_help_string(self, action):
        text = action.help or ""
        value = action.default.value if isinstance(action.default, Enum) else action.default
        if value in (None, argparse.SUPPRESS, "", False, []) or "default" in text.lower():
            return text
        return f"{text} (default: {value})".replace("%", "%%")


class OptionParser(HfArgumentParser):
    """Parser whose options are the fields of dataclasses, from a command line, a YAML file, or Python values.

    Args:
        dataclass_types: one dataclass, or several.
        kwargs: of `argparse.ArgumentParser`.

    Attributes:
        resolved: all options by name, after parsing.
    """

    def __init__(self, dataclass_types, **kwargs):
        kwargs = {"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(dataclass_types, **kwargs)
        self.resolved: dict = {}
        for action in self._actions:
            if action.dest == "hub_token":  # of TrainingArguments
                action.type, action.help = _refuse_token, argparse.SUPPRESS
            elif action.dest in _WITHOUT_EFFECT:
                action.help = argparse.SUPPRESS

    def parse_options(self, options: Mapping) -> tuple:
        """Return an instance of each dataclass with the given values.

        Args:
            options: {name: value}, with the names of the command line.

        Raises:
            UserError: an unknown option, or a value of a wrong type or outside of the choices.
        """
        return self.parse_args_into_dataclasses(self.as_arguments(options, ""))

    def parse_args_into_dataclasses(self, args: list[str] | None = None) -> tuple:
        """Parse a command line into one instance of each dataclass."""
        self.resolved = vars(self.parse_args(args))
        return self.parse_dict({name: value for name, value in self.resolved.items() if name != "config"})

    def as_arguments(self, options: Mapping, source: str) -> list[str]:
        """Write options as a command line. None and empty lists become defaults of the parser.

        Args:
            options: {name: value}.
            source: beginning of error messages.
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
        """Return the name of an option that was renamed, with a warning; other names stay as they are."""
        new = RENAMED.get(name.replace("-", "_"))
        if new is None or f"--{new}" not in self._option_string_actions:
            return name
        logger.warning(f"The option {name} is now called {new}; the old name will be removed in the next version.")
        return new

    def save_resolved(self, output_dir: str | Path) -> None:
        """Write the options to OUTPUT_DIR/run.yaml, which `--config` reads.

        Those of TrainingArguments are written if they differ from the default.
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
        raise UserError(mask_tokens(message))


def _own_fields(kind: type) -> list[dataclasses.Field]:
    inherited = {each.name: each for each in dataclasses.fields(TrainingArguments)}
    return [each for each in dataclasses.fields(kind) if inherited.get(each.name) is not each]


def _text(value) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value.value if isinstance(value, Enum) else value)


def _refuse_token(token: str) -> NoReturn:
    """Refuse a token as an option, which results.json records and every user of the machine can list."""
    raise argparse.ArgumentTypeError(NO_TOKEN)
