"""The command lines of the scripts."""

from typing import NoReturn

from transformers import HfArgumentParser


class ArgumentParser(HfArgumentParser):
    """transformers' parser, whose options are fields of dataclasses; what is wrong is said in one line.

    Its own answers an unknown option with a traceback, and any other mistake with the list of all options, which are
    some hundred and fifty where TrainingArguments are among them.
    """

    def parse_args_into_dataclasses(self, args: list[str] | None = None) -> tuple:
        return self.parse_dict(vars(self.parse_args(args)))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists the options\n")
