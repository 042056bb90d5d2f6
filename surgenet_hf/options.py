"""Fields of the dataclasses whose fields are command-line options."""

from dataclasses import field


def option(default, help: str, **metadata):
    """Return a dataclass field that is a command-line option.

    Args:
        default: default value; `dataclasses.MISSING` for a required option. A list is copied for each instance.
        help: noun phrase for `--help`.
        metadata: further settings of transformers' `HfArgumentParser`, e.g. choices or aliases.
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
