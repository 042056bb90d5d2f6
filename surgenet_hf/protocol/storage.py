"""What an output folder contains: its protocol, and the definitions of its cells.

A protocol can grow: the definition of a cell does not depend on the other cells. It is recorded next to the folder of
the cell, so that results with other options are not mixed up with those of the protocol.
"""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from ..atomic import atomic_write
from ..checkpoints.reading import file_sha256
from ..data.identity import digest
from ..errors import MissingFileError, UserError
from ..models import model_folder
from .cells import Cell, cell_definition, cell_folder, cell_state
from .definition import Protocol, parse_protocol

FILE = "protocol.yaml"
RECORD = "cell.json"
WEIGHTS = "weights"  # digest of the weights, config, and preprocessing of a model in a folder


def store_protocol(protocol: Protocol, output_dir: Path) -> None:
    """Write the protocol to its output folder. It replaces an earlier one."""
    with atomic_write(output_dir / FILE) as temporary:
        Path(temporary).write_text(protocol.as_yaml(), encoding="utf-8")


def check_name(protocol: Protocol, output_dir: Path) -> None:
    """Check that a folder has no protocol of another name.

    Raises:
        UserError: it has.
    """
    if (output_dir / FILE).is_file() and (name := stored_protocol(output_dir).name) != protocol.name:
        raise UserError(
            f"{output_dir} belongs to the protocol {name}, not to {protocol.name}; choose another --output_dir"
        )


def stored_protocol(output_dir: Path) -> Protocol:
    """Read the protocol of an output folder.

    Raises:
        MissingFileError: the folder is not the output of `surgenet protocol run`.
    """
    path = output_dir / FILE
    if not path.is_file():
        raise MissingFileError(f"{output_dir} has no {FILE}; give the --output_dir of `surgenet protocol run`")
    return parse_protocol(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def start_cell(cell: Cell, protocol: Protocol, output_dir: Path) -> None:
    """Record the definition of a cell next to its folder, before it starts.

    If the cell has failed with another definition, its folder is removed first.
    """
    if cell_state(output_dir, cell) == "failed" and changes(cell, protocol, output_dir):
        shutil.rmtree(cell_folder(output_dir, cell))
    record = {**cell_definition(cell, protocol), **_weights(cell)}
    with atomic_write(_record_file(cell, output_dir)) as temporary:
        Path(temporary).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def changes(cell: Cell, protocol: Protocol, output_dir: Path, with_weights: bool = True) -> list[str]:
    """Return how a cell differs from its record, in words. The list is empty if they are equal.

    Args:
        cell: cell that has started before.
        protocol: its current protocol.
        output_dir: output folder of the protocol.
        with_weights: whether to compare the weights of a model in a folder, which must exist.
    """
    path = _record_file(cell, output_dir)
    if not path.is_file():
        return [f"{path} is missing"]
    before = json.loads(path.read_text(encoding="utf-8"))
    now = cell_definition(cell, protocol)
    if with_weights:
        now |= _weights(cell)
    else:
        before.pop(WEIGHTS, None)
    return [
        f"{name} was {before.get(name, 'not given')} and is now {now.get(name, 'not given')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def check_cells(cells: Sequence[Cell], protocol: Protocol, output_dir: Path, with_weights: bool = True) -> None:
    """Check that cells have the definition with which they started. For the arguments, see `changes`.

    Raises:
        UserError: a cell has another definition.
    """
    found = [(cell, changes(cell, protocol, output_dir, with_weights)) for cell in cells]
    found = [(cell, differences) for cell, differences in found if differences]
    if found:
        cell, differences = found[0]
        others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"{cell_folder(output_dir, cell)}{others} has another definition: {'; '.join(differences)}. Results with "
            "different definitions are not compared: restore the protocol, choose another --output_dir, or delete the "
            "folders of these cells to compute them again"
        )


def _record_file(cell: Cell, output_dir: Path) -> Path:
    folder = cell_folder(output_dir, cell)
    return folder.with_name(f"{folder.name}-{RECORD}")


def _weights(cell: Cell) -> dict[str, str]:
    if cell.model.model is None or not Path(cell.model.model).is_dir():
        return {}
    files = model_folder(Path(cell.model.model)).iterdir()
    configs = ("config.json", "preprocessor_config.json")
    found = sorted(path for path in files if path.suffix in (".safetensors", ".bin") or path.name in configs)
    return {WEIGHTS: digest([(path.name, _sha256(path, path.stat().st_mtime_ns)) for path in found])}


@cache
def _sha256(path: Path, modified: int) -> str:
    """Return the SHA-256 of a file, which is computed once for all cells of a model."""
    return file_sha256(path)
