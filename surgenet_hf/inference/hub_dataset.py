"""Datasets on the Hub as inputs of predictions."""

import logging
from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..errors import UnavailableError, UserError

logger = logging.getLogger(__name__)

PREFIX = "hf://datasets/"


def is_hub_dataset(item) -> bool:
    """Return whether an item of the input is a dataset on the Hub."""
    return isinstance(item, str) and item.startswith(PREFIX)


def load_hub_dataset(address: str) -> DatasetDict:
    """Download a dataset, or load it from the cache, with all splits.

    A folder OWNER/NAME in the working directory takes precedence, as in `datasets.load_dataset`. The log says which is
    read.

    Args:
        address: hf://datasets/OWNER/NAME.

    Raises:
        UserError: the address has another form, or the dataset cannot be read.
        UnavailableError: the dataset does not exist, or the Hub is unreachable.
    """
    name = address.removeprefix(PREFIX).strip("/")
    if name.count("/") != 1:
        raise UserError(f"the dataset is {address}; expected {PREFIX}OWNER/NAME")
    if Path(name).exists():
        logger.warning(
            f"{address}: reading the local folder {Path(name).absolute()}, which takes precedence over the dataset of "
            "this name on the Hub. To read that one, run the command in another folder."
        )
    else:
        logger.info(f"{address}: reading the dataset from the Hub or its cache.")
    try:
        return load_dataset(name)
    except (FileNotFoundError, ConnectionError) as error:
        raise UnavailableError(
            f"the dataset {name} cannot be downloaded: {error}; check its name, the network, and `hf auth login`"
        ) from error
    except (ValueError, DatasetGenerationError) as error:
        raise UserError(f"the dataset {name} cannot be read: {error.__cause__ or error}") from error
