"""The command lines of the scripts."""

import argparse
from typing import NoReturn

from transformers import HfArgumentParser

from ..privacy import mask_tokens

# of --background_class
BACKGROUND_HELP = "Name of the background class, for the data set folder; left out: all classes count as foreground."
NO_TOKEN = "an access token is not taken as an argument, which would be recorded; use `hf auth login` or HF_TOKEN"


class ArgumentParser(HfArgumentParser):
    """transformers' parser, whose options are fields of dataclasses; what is wrong is said in one line.

    Its own answers an unknown option with a traceback, and any other mistake with the list of all options, which are
    some hundred and fifty where TrainingArguments are among them.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for action in self._actions:
            if action.dest == "hub_token":  # of TrainingArguments
                action.type, action.help = _refuse_token, argparse.SUPPRESS

    def parse_args_into_dataclasses(self, args: list[str] | None = None) -> tuple:
        return self.parse_dict(vars(self.parse_args(args)))

    def format_help(self) -> str:
        """Format the help with one spelling of each option: `--a-b`, which is accepted too, is left out."""
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


def _refuse_token(token: str) -> NoReturn:
    """Refuse a token on the command line, which results.json records and every user of the machine can list."""
    raise argparse.ArgumentTypeError(NO_TOKEN)
