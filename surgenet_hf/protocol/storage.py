"""The protocol that an output folder belongs to."""

from pathlib import Path

import yaml

from ..atomic import atomic_write
from ..errors import MissingFileError, UserError
from .definition import Protocol, parse_protocol

FILE = "protocol.yaml"


def store_protocol(protocol: Protocol, output_dir: Path) -> None:
    """Write the protocol to its output folder, or check that the folder belongs to the same protocol.

    Raises:
        UserError: the folder belongs to another protocol.
    """
    path = output_dir / FILE
    if path.is_file():
        before = stored_protocol(output_dir)
        if before.fingerprint != protocol.fingerprint:
            raise UserError(
                f"{output_dir} belongs to another protocol: {_difference(before, protocol)}. Results of different "
                "protocols are not compared; choose another --output_dir"
            )
        return
    with atomic_write(path) as temporary:
        Path(temporary).write_text(protocol.as_yaml(), encoding="utf-8")


def stored_protocol(output_dir: Path) -> Protocol:
    """Read the protocol of an output folder.

    Raises:
        MissingFileError: the folder is not the output of `surgenet protocol run`.
    """
    path = output_dir / FILE
    if not path.is_file():
        raise MissingFileError(f"{output_dir} has no {FILE}; give the --output_dir of `surgenet protocol run`")
    return parse_protocol(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def _difference(one: Protocol, other: Protocol) -> str:
    names = ("models", "datasets", "modes", "fractions", "seeds", "options")
    return ", ".join(name for name in names if getattr(one, name) != getattr(other, name)) + " differ"
