"""Reader for pickles of plain values. Nothing in a file can run code."""

import io
import pickle
from pathlib import Path

from ..errors import MissingFileError, UnavailableError, UserError


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that refuses every class and function, so that only containers, text, and numbers can result."""

    def find_class(self, module: str, name: str):
        raise UserError(f"it refers to {module}.{name}")


def read_plain_pickle(path: Path):
    """Read a pickle of dicts, lists, tuples, sets, text, bytes, numbers, booleans, and None.

    Raises:
        MissingFileError: the file does not exist.
        UnavailableError: the file cannot be read.
        UserError: the file is damaged, is not a pickle, or refers to anything else, which could run code.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no {path}; check the path") from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read ({error}); check its permissions") from error
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except UserError as error:
        raise UserError(
            f"{path} was refused: {error}, which could run code. Expected only containers, text, and numbers; get the "
            "file from its official source"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise any exception
        raise UserError(
            f"{path} ({len(content):,} bytes) is not a pickle, or is damaged ({type(error).__name__}: {error}); it "
            f"begins with {content[:30]!r}. Download it again"
        ) from error
