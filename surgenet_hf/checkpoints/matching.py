"""Comparison of the tensors in a file with those that a network needs."""

import re
from collections.abc import Mapping

import torch

from ..errors import UserError


def check_tensors(
    found: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Size],
    source: str,
    network: str,
    advice: str,
    ignored: re.Pattern | None = None,
) -> None:
    """Check names, shapes, and dtypes of a file's tensors. Callers then check the values with `check_finite`.

    Args:
        found: name -> tensor in the file.
        wanted: name -> shape of the network's parameters.
        source: path of the file, for messages.
        network: name of the network, for messages.
        advice: last sentence of the message.
        ignored: names of tensors that the file may contain although the network does not have them.

    Raises:
        UserError: lists all tensors that are missing, unexpected, of the wrong shape, or of integers.
    """
    faults = {
        "missing": sorted(name for name in wanted if name not in found),
        "unexpected": sorted(
            name for name in found if name not in wanted and not (ignored and ignored.fullmatch(name))
        ),
        "of another shape": [
            f"{name}: found {tuple(found[name].shape)}, expected {tuple(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name].shape != shape
        ],
        "with an integer dtype": [name for name in wanted if name in found and not found[name].is_floating_point()],
    }
    if any(faults.values()):
        raise UserError(
            f"{source} does not match {network}:\n"
            + "".join(
                f"- {len(names)} {fault}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}\n"
                for fault, names in faults.items()
                if names
            )
            + f"Nothing was converted. {advice}"
        )
