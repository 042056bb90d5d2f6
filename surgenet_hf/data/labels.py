"""Text files with labels in UTF-8: lines, tables, and lists of classes."""

import csv
import io
from pathlib import Path

from ..errors import MissingFileError, UnavailableError, UserError
from .base import IGNORE_INDEX
from .names import WHY_BY_VIDEO, named, require_distinct


def read_text(path: Path) -> str:
    """Read a text file and drop a byte order mark.

    Raises:
        MissingFileError: the file does not exist.
        UnavailableError: the file cannot be read.
        UserError: the file is not UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no {path}; check the path") from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read ({error}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {line}: found a NUL byte; save the file as UTF-8 text")
    return text


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file without blank lines at the end, with the errors of `read_text`."""
    return read_text(path).rstrip().splitlines()


def read_table(path: Path, needed: tuple[str, ...], layout: str) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with commas, or with semicolons as some spreadsheets write it.

    Args:
        path: path of the file.
        needed: columns that must exist and have a value in every row.
        layout: expected layout, for messages.

    Returns:
        A list of (number of the row's last line, {column: stripped value}).

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not a table with these columns. Messages about a row name its line.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no {path}; {layout}")
    text = read_text(path)
    header = text.partition("\n")[0]
    separator = ";" if header.count(";") > header.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        (_, columns), *rows = [(reader.line_num, row) for row in reader if row] or [(0, [])]
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: cannot be read as CSV ({error}); check for an unclosed quotation mark"
        ) from error
    columns = [column.strip() for column in columns]
    absent = [column for column in needed if column not in columns]
    if absent:
        why = f" ({WHY_BY_VIDEO})" if "video" in absent else ""
        raise UserError(
            f"{path} has no column {', '.join(absent)}{why}; it has {named(columns)}, {layout}. Add the missing "
            "column, or rename the column that contains its values"
        )
    if len(set(columns)) < len(columns):
        raise UserError(f"{path} has two columns with the same name (columns: {named(columns)}); rename or remove one")
    table = []
    for line, values in rows:
        if len(values) != len(columns):
            raise UserError(f"{path}, line {line}: expected {len(columns)} values, one for each column")
        row = dict(zip(columns, map(str.strip, values), strict=True))
        empty = [column for column in needed if not row[column]]
        if empty:
            raise UserError(f"{path}, line {line}: {', '.join(empty)} is empty; fill it in")
        table.append((line, row))
    if not table:
        raise UserError(f"{path} has no rows; {layout}")
    return table


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one per line in the order of their ids.

    Returns:
        The names, or an empty tuple if the file does not exist.

    Raises:
        UserError: the file is empty or has a blank line, two names are equal or look the same, or there are too many
            names.
    """
    if not path.exists():
        return ()
    names = [line.strip() for line in read_lines(path)]
    if not names:
        raise UserError(f"{path} is empty; write one class name per line, the first for id 0, or remove the file")
    for number, name in enumerate(names):
        if not name:
            raise UserError(f"{path}: line {number + 1} is blank, but it must name the class with id {number}")
        if name in names[:number]:
            raise UserError(f"{path}: line {number + 1} repeats the class {name!r}; every class needs its own name")
    if len(names) > IGNORE_INDEX:
        raise UserError(f"{path} names {len(names)} classes; 8-bit masks support at most {IGNORE_INDEX}")
    require_distinct(names, "class", path)
    return tuple(names)
