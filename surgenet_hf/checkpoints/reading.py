"""A weight file opened safely: what is in it, and where the network is."""

import argparse
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

# What a full DINO checkpoint pickles beside tensors: its command line and numpy scalars (named as numpy 1 and 2 do).
_SAFE_GLOBALS = [
    argparse.Namespace,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")},
]
_NESTINGS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel, torch.compile, Lightning
_SEGMENTATION_WRAPPERS = ("metaformer.", "convnext.", "pvtv2.")
_DINO_HEAD = re.compile(r"head\.(mlp\.(\d+\.)?|last_layer\.)")


@dataclass
class CheckpointFile:
    """A weight file, read.

    Attributes:
        path: the file.
        sha256: of its bytes.
        tensors: the network by its bare names: the wrappers of DDP, DINO (`backbone.`) and the original segmentation
            models (`metaformer.`, ...) are gone; heads are `head.*` and `FPN.*`.
        layout: "dino" for a full DINO checkpoint, else "weights".
        network: of a DINO checkpoint, the one that was taken: "teacher" or "student".
        prefix: the wrappers' prefix that the names had, e.g. "module.backbone.".
        dino_head: the projection head of a DINO checkpoint, by the names under its `head.`.
        center: of its loss, (1, out_dim).
        args: the training command line of a DINO checkpoint.
        epoch: of a DINO checkpoint.
    """

    path: Path
    sha256: str
    tensors: dict[str, torch.Tensor]
    layout: str = "weights"
    network: str | None = None
    prefix: str = ""
    dino_head: dict[str, torch.Tensor] = field(default_factory=dict)
    center: torch.Tensor | None = None
    args: dict = field(default_factory=dict)
    epoch: int | None = None


def read_checkpoint(path: str | os.PathLike, network: str = "teacher") -> CheckpointFile:
    """Read a `.pth` of the authors, of the original code or of timm, or a `.safetensors` file; runs no code from it.

    Args:
        path: the file.
        network: which network of a full DINO checkpoint to take, "teacher" or "student".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, is no weight file, pickles objects other than weights and arguments, or
            holds no (single) network.
    """
    path = Path(path)
    if network not in ("teacher", "student"):
        raise ValueError(f"network must be 'teacher' or 'student', got {network!r}")
    content = read_content(path)
    checkpoint = CheckpointFile(path=path, sha256=file_sha256(path), tensors={})
    if is_dino(content):
        if not isinstance(content.get(network), Mapping):
            raise ValueError(f"{path} holds no {network}; it holds {sorted(map(str, content))}")
        checkpoint.layout = "dino"
        checkpoint.network = network
        checkpoint.epoch = content.get("epoch")
        checkpoint.args = dino_args(content)
        checkpoint.center = content.get("dino_loss", {}).get("center")
        content = content[network]
    elif network != "teacher":
        raise ValueError(f"{path} is not a full DINO checkpoint, so it holds no {network}")
    _unwrap(checkpoint, _unnest(content, path))
    return checkpoint


def is_dino(content) -> bool:
    """Whether the content of a weight file is a full DINO checkpoint."""
    return isinstance(content, Mapping) and ("student" in content or "teacher" in content)


def dino_args(content: Mapping) -> dict:
    """The training command line in the content of a full DINO checkpoint; empty where there is none."""
    return dict(vars(content["args"])) if isinstance(content.get("args"), argparse.Namespace) else {}


def plain(value):
    """Settings of a checkpoint in types that every reader takes: numbers for numpy's and torch's, text for objects."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    return value if type(value) in (str, int, float, bool, type(None)) else str(value)


def check_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights with NaN or infinite values, e.g. of a training run that diverged.

    Args:
        tensors: name -> tensor of any shape and dtype, as in a state dict.
        source: where the weights come from, for the message.

    Raises:
        ValueError: names how many tensors, and the first, hold values that are not finite.
    """
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{source}: {len(broken)} of {len(tensors)} tensors hold NaN or infinite values, the first is "
            f"{broken[0]}. The training diverged: use an earlier checkpoint, or train with a lower learning rate"
        )


def file_sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_content(path: str | os.PathLike):
    """All that a weight file holds, as it was saved, tensors on the CPU and memory-mapped; runs no code from it.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a downloaded .pth checkpoint")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is cut short or damaged ({error}); download it again") from error
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty; download it again")
    is_zip = start.startswith(b"PK")
    if not is_zip and not start.startswith((b"\x80", b"(", b"c")):
        raise ValueError(
            f"{path} is not a PyTorch file: its {path.stat().st_size:,} bytes begin with {start[:40]!r}. Perhaps a "
            "web page or a Git LFS pointer was saved in place of the weights; download the file itself"
        )
    if is_zip and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut short after {path.stat().st_size:,} bytes; download it again")
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else "unknown names"
        raise ValueError(
            f"{path} was refused: besides weights it pickles {unsafe}, which could run code. "
            "Save its state_dict() alone, in an environment that you trust it in"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a PyTorch file; it may be cut short or "
            f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _unnest(content, path: Path) -> dict[str, torch.Tensor]:
    """Descend to the state dict."""
    while isinstance(content, Mapping):
        nesting = next((key for key in _NESTINGS if isinstance(content.get(key), Mapping)), None)
        if nesting is None:
            break
        content = content[nesting]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}; save model.state_dict()")
    others = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path} holds no state dict under a known name ({', '.join(_NESTINGS)}, teacher, student); "
            f"found {sorted(map(str, content))[:10]}, of which {sorted(map(str, others))[:5]} are not tensors"
        )
    return dict(content)


def strip_wrappers(
    tensors: dict[str, torch.Tensor], wrappers: tuple[str, ...] = _WRAPPERS, others: tuple[str, ...] = ()
) -> tuple[dict[str, torch.Tensor], str]:
    """Names without the prefixes `wrappers` that all of them have, and the prefix that is gone.

    Args:
        others: names that begin so may lack the prefixes.
    """
    stripped = ""
    while wrapper := next((wrapper for wrapper in wrappers if _is_wrapped(tensors, wrapper, others)), None):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
        stripped += wrapper
    return tensors, stripped


def _is_wrapped(tensors: dict[str, torch.Tensor], wrapper: str, others: tuple[str, ...]) -> bool:
    return any(name.startswith(wrapper) for name in tensors) and all(
        name.startswith((wrapper, *others)) for name in tensors
    )


def _unwrap(checkpoint: CheckpointFile, tensors: dict[str, torch.Tensor]) -> None:
    """Strip the names of wrappers, and set the DINO head apart."""
    tensors, outer = strip_wrappers(tensors)
    checkpoint.dino_head = {name.removeprefix("head."): t for name, t in tensors.items() if _DINO_HEAD.match(name)}
    tensors, inner = strip_wrappers({n: t for n, t in tensors.items() if not _DINO_HEAD.match(n)}, ("backbone.",))
    checkpoint.tensors, innermost = strip_wrappers(tensors, _SEGMENTATION_WRAPPERS, others=("FPN.",))
    checkpoint.prefix = outer + inner + innermost
