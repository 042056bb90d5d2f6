"""Safe reading of weight files, and of the network that they contain."""

import argparse
import hashlib
import io
import os
import pickle
import pickletools
import re
import zipfile
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file

from ..errors import MissingFileError, UnavailableError, UserError

_NUMPY_KINDS = ("f8", "f4", "f2", "i8", "i4", "b1")


def _numpy_dtype(kind: str, *_) -> np.dtype:
    """Return a dtype of numbers. Unlike numpy.dtype, reject structured dtypes, whose items can have any size."""
    if kind not in _NUMPY_KINDS:
        raise UserError(f"found a numpy dtype {str(kind)[:40]!r}, expected one of {', '.join(_NUMPY_KINDS)}")
    return np.dtype(kind, copy=True)  # a copy, because the pickle sets its byte order afterward


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    (value,) = np.frombuffer(data, dtype)
    return value


# Globals in a full DINO checkpoint in addition to those of tensors: its arguments, and numpy scalars under their names
# in numpy 1 and 2.
_SAFE_GLOBALS = [
    argparse.Namespace,
    (_numpy_dtype, "numpy.dtype"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(kind)) for kind in _NUMPY_KINDS},
]
# Globals that torch.save writes for such content. torch.load also accepts others, such as bytearray(n) and
# torch.FloatTensor(n), which allocate n elements however large n is.
_PICKLED = re.compile(
    r"argparse\.Namespace|collections\.OrderedDict|_codecs\.encode|numpy\.dtype|numpy\._?core\.multiarray\.scalar"
    r"|torch\.([a-z]\w*|Size|(cuda\.)?\w+Storage|storage\.UntypedStorage|serialization\._get_layout"
    r"|_utils\._rebuild_\w+|nn\.parameter\.Parameter)"
)
# The opcode that torch.save writes after each of these globals. With other arguments, a file of a few bytes could
# allocate much memory or copy earlier objects.
_NEXT_OPCODE = {
    "collections.OrderedDict": "EMPTY_TUPLE",
    "_codecs.encode": "BINUNICODE",
    "torch.storage.UntypedStorage": "BINUNICODE",
}
# Other dtypes (complex, float8, quantized, ...) are rejected. No checkpoint of the supported networks has them.
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
}
# Limits far above what real files need. A container that contains itself exceeds the first. Containers that are
# referenced many times exceed the second.
_MAX_DEPTH = 20
_MAX_ITEMS = 100_000
_NESTINGS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel, torch.compile, Lightning
_SEGMENTATION_WRAPPERS = ("metaformer.", "convnext.", "pvtv2.")
# decoder of masked autoencoders (He et al., CVPR 2022), which only pretraining needs
_MAE_DECODER = re.compile(
    r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.(weight|bias)|decoder_blocks\.\d+\..+"
)
# heads of DINOv1, and of DINOv2 and v3, which have a second one for iBOT
_DINO_HEAD = re.compile(r"(head\.)(mlp\.(\d+\.)?|last_layer\.)|((dino_|ibot_)head\.)")


@dataclass
class CheckpointFile:
    """Content of a weight file.

    Attributes:
        path: the file.
        sha256: SHA-256 of its bytes.
        tensors: weights of the network. Their names lack the prefixes of DDP, DINO (`backbone.`), and the original
            segmentation models (`metaformer.`, ...). In heads, names start with `head.` or `FPN.`.
        layout: "dino" for a full DINO checkpoint, else "weights".
        network: the network that was read from a DINO checkpoint, "teacher" or "student".
        prefix: the removed prefix, e.g. "module.backbone.".
        dino_head: weights of the projection head of a DINO checkpoint. Their names lack the prefix `head.` or
            `dino_head.`.
        heads: number of tensors of each head that was separated from the network, e.g. {"dino_head": 8}.
        center: center of the DINO loss, shape (1, out_dim).
        args: training arguments of a DINO checkpoint.
        epoch: number of completed epochs of a DINO checkpoint.
    """

    path: Path
    sha256: str
    tensors: dict[str, torch.Tensor]
    layout: str = "weights"
    network: str | None = None
    prefix: str = ""
    dino_head: dict[str, torch.Tensor] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    center: torch.Tensor | None = None
    args: dict = field(default_factory=dict)
    epoch: int | None = None


def read_checkpoint(path: str | os.PathLike, network: str = "teacher") -> CheckpointFile:
    """Read the network in a `.pth` or `.safetensors` file, without running code from the file.

    The file can be from the SurgeNet authors, their code, or timm.

    Args:
        path: the file.
        network: network to read from a full DINO checkpoint, "teacher" or "student".

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read (see `read_content`), contains no state dict, or lacks the network.
    """
    path = Path(path)
    if network not in ("teacher", "student"):
        raise UserError(f"network must be 'teacher' or 'student', got {network!r}")
    content = read_content(path)
    checkpoint = CheckpointFile(path=path, sha256=file_sha256(path), tensors={})
    if is_dino(content):
        if not isinstance(content.get(network), Mapping):
            raise UserError(
                f"{path} contains no {network}, only {sorted(map(str, content))}; choose the other network"
            )
        checkpoint.layout = "dino"
        checkpoint.network = network
        checkpoint.epoch = dino_epoch(content)
        checkpoint.args = dino_args(content)
        checkpoint.center = dino_center(content)
        content = content[network]
    elif network != "teacher":
        raise UserError(f"{path} is not a full DINO checkpoint, so it contains no {network}; omit the network")
    _unwrap(checkpoint, _unnest(content, path))
    return checkpoint


def is_dino(content) -> bool:
    """Return whether the content of a weight file is a full DINO checkpoint."""
    return isinstance(content, Mapping) and ("student" in content or "teacher" in content)


def dino_args(content: Mapping) -> dict:
    """Return the training arguments in the content of a full DINO checkpoint, or {} if there are none."""
    return dict(vars(content["args"])) if isinstance(content.get("args"), argparse.Namespace) else {}


def dino_epoch(content: Mapping) -> int | None:
    """Return the number of completed epochs of a full DINO checkpoint, or None if it is missing or invalid."""
    epoch = content.get("epoch")
    return epoch if type(epoch) is int and epoch >= 0 else None


def dino_center(content: Mapping) -> torch.Tensor | None:
    """Return the center of the loss in the content of a full DINO checkpoint, or None if there is none."""
    center = content["dino_loss"].get("center") if isinstance(content.get("dino_loss"), Mapping) else None
    return center if isinstance(center, torch.Tensor) else None


def is_state_dict(value) -> bool:
    """Return whether a value is a non-empty mapping from names to tensors."""
    return isinstance(value, Mapping) and bool(value) and not _other_entries(value)


def _other_entries(content: Mapping) -> list:
    """Return the keys that do not belong in a state dict, because of their own type or that of their values."""
    return [key for key, item in content.items() if not (isinstance(key, str) and isinstance(item, torch.Tensor))]


def plain(value):
    """Convert settings of a checkpoint to plain Python types.

    Arrays and tensors become numbers or lists of numbers. Other objects become text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    return value if type(value) in (str, int, float, bool, type(None)) else str(value)


def validate_tensors(tensors: Sequence[tuple[str, torch.Tensor]], path: str | os.PathLike) -> None:
    """Check that tensors from a file are dense, of a supported dtype, and no larger than the data in the file.

    No values are read, so a small file that declares large tensors uses no memory. Callers compare the shapes next,
    and then check the values with `check_finite`.

    Args:
        tensors: (name, tensor) pairs. Names may repeat.
        path: the file, for the message.

    Raises:
        UserError: some tensors cannot be used. The message gives their number, the first of them, and the reason.
    """
    size = os.stat(path).st_size
    faults = [(name, fault) for name, tensor in tensors if (fault := _find_fault(tensor, size))]
    if faults:
        name, fault = faults[0]
        raise UserError(
            f"{path}: {len(faults)} of {len(tensors)} tensors cannot be used, the first is {name}: {fault}. Save it "
            "again as a dense float tensor, e.g. tensor.to_dense().float().contiguous()"
        )


def _find_fault(tensor: torch.Tensor, file_size: int) -> str | None:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return (
            f"found a {tensor.layout} tensor on the {tensor.device} device, expected a dense tensor with stored values"
        )
    if tensor.dtype not in _DTYPES:
        return f"found {tensor.dtype}, expected float16, bfloat16, float32, float64, or an integer type"
    # A file in the legacy format can declare a storage of any size.
    stored = min(tensor.untyped_storage().nbytes(), file_size) // tensor.element_size() - tensor.storage_offset()
    if tensor.numel() > stored:
        return f"its shape {tuple(tensor.shape)} has {tensor.numel():,} elements, but the file stores {stored:,}"
    return None


def check_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise an error for weights with NaN or infinite values, e.g. from a training run that diverged.

    Args:
        tensors: name -> tensor of any shape and dtype, as in a state dict.
        source: origin of the weights, for the message.

    Raises:
        UserError: some tensors have values that are not finite. The message gives their number and the first of them.
    """
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{source}: {len(broken)} of {len(tensors)} tensors contain NaN or infinite values, the first is "
            f"{broken[0]}. The training diverged: use an earlier checkpoint, or train with a lower learning rate"
        )


def file_sha256(path: str | os.PathLike) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_content(path: str | os.PathLike):
    """Read the content of a weight file as it was saved, without running code from it.

    The tensors are on the CPU and, except for files in the legacy PyTorch format, memory-mapped. They have passed
    `validate_tensors`, but their values are not checked.

    Raises:
        MissingFileError: the file does not exist.
        UnavailableError: the file cannot be opened.
        UserError: the file is truncated or damaged, is not a weight file, or has cyclic or very large containers.
            Also raised if it pickles objects other than weights and arguments, or has tensors that `validate_tensors`
            rejects. The message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; give the path of a downloaded .pth checkpoint")
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}. Check its permissions") from error
    if not start:
        raise UserError(f"{path} is empty; download it again")
    is_zip = start.startswith(b"PK")
    is_safetensors = path.suffix == ".safetensors"
    if not is_safetensors and not is_zip and not start.startswith((b"\x80", b"(", b"c")):
        raise UserError(
            f"{path} is not a PyTorch file: its {path.stat().st_size:,} bytes begin with {start[:40]!r}. Perhaps a "
            "web page or a Git LFS pointer was saved in place of the weights; download the file itself"
        )
    try:
        content = load_file(path) if is_safetensors else _load_pickle(path, is_zip)
    except Exception as error:  # a damaged file can make the unpickler raise any exception
        unpickling = isinstance(error, pickle.UnpicklingError)
        if unpickling and (refused := re.search(r"GLOBAL (\S+)", str(error))):
            raise UserError(
                f"{path} was refused: in addition to weights it pickles {refused[1]}, which could run code or fill "
                "the memory. If you trust the file, load it in an isolated environment and save its state_dict() alone"
            ) from error
        # torch's own message for an unpickling error suggests loading the file unsafely.
        reason = "" if unpickling else f": {str(error).splitlines()[0]}" if str(error) else ""
        raise UserError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or damaged; download it again "
            f"({type(error).__name__}{reason})"
        ) from error
    validate_tensors(_collect_tensors(content, path), path)
    return content


def _load_pickle(path: Path, is_zip: bool):
    """Load a PyTorch file. First check what torch.load does not: checksums in an archive, and globals in pickles."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            # torch would map the compressed bytes as if they were weights.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UserError("its members are compressed, expected uncompressed members as torch.save writes them")
            if damaged := archive.testzip():
                raise UserError(f"the checksum of its member {damaged} is wrong")
        # Use torch's own reader. If two members have that name, another reader could return the other one.
        _check_pickle(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
    else:
        with open(path, "rb") as file:
            for _ in range(5):  # magic number, protocol, system, content, storage keys; the values follow
                _check_pickle(file)
    with torch.serialization.safe_globals(_SAFE_GLOBALS):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _check_pickle(file: BinaryIO) -> None:
    """Reject a pickle with globals that torch.save does not write, before anything can call them.

    Raises:
        pickle.UnpicklingError: a global is rejected. The message names it after "GLOBAL", as torch does.
    """
    name: str | None = None  # global on top of the stack, if any
    memo: dict = {}  # memoized globals by index
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = name
            continue
        if opcode.name != _NEXT_OPCODE.get(name or "", opcode.name):
            raise pickle.UnpicklingError(f"GLOBAL {name}")
        name = None
        if opcode.name == "GLOBAL":
            name = argument.replace(" ", ".", 1)
            if not _PICKLED.fullmatch(name):
                raise pickle.UnpicklingError(f"GLOBAL {name}")
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            name = memo.get(argument)


def _collect_tensors(content, path: Path) -> list[tuple[str, torch.Tensor]]:
    """Return every tensor of a file with its dotted name.

    Raises:
        UserError: a container contains itself or exceeds the limits of depth or size, a key is neither text nor a
            number, or a storage is not part of a tensor.
    """
    tensors, count, pending = [], 1, deque([("", 0, content)])
    while pending:
        name, depth, value = pending.popleft()
        if isinstance(value, torch.Tensor):
            tensors.append((name, value))
            continue
        if isinstance(value, torch.TypedStorage | torch.UntypedStorage):
            raise UserError(f"{path}: {name} is a storage, expected a tensor; save model.state_dict()")
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        elif isinstance(value, list | tuple | set):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping):
            continue
        count += len(value)
        if depth == _MAX_DEPTH or count > _MAX_ITEMS:
            raise UserError(
                f"{path} contains itself, or has more than {_MAX_DEPTH} levels or {_MAX_ITEMS:,} items (at "
                f"{name[:80]}). Save model.state_dict() alone"
            )
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise UserError(
                    f"{path}: {name or 'the file'} has a key of type {type(key).__name__}, expected text. "
                    "Save model.state_dict() alone"
                )
            pending.append((f"{name}.{key}" if name else str(key), depth + 1, item))
    return tensors


def _unnest(content, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in the content of a file."""
    while isinstance(content, Mapping):
        nesting = next((key for key in _NESTINGS if isinstance(content.get(key), Mapping)), None)
        if nesting is None:
            break
        content = content[nesting]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} contains a {type(content).__name__}, expected a state dict; save model.state_dict()")
    if others := _other_entries(content):
        raise UserError(
            f"{path} contains no state dict under a known name ({', '.join(_NESTINGS)}, teacher, student); "
            f"found {sorted(map(str, content))[:10]}, of which {sorted(map(str, others))[:5]} are not named tensors. "
            "Save model.state_dict() alone"
        )
    return dict(content)


def strip_wrappers(
    tensors: dict[str, torch.Tensor], wrappers: tuple[str, ...] = _WRAPPERS, others: tuple[str, ...] = ()
) -> tuple[dict[str, torch.Tensor], str]:
    """Remove each prefix in `wrappers` that all names have. Return the tensors and the removed prefixes, joined.

    Args:
        tensors: name -> tensor.
        wrappers: prefixes to remove.
        others: prefixes of names that need not start with a prefix in `wrappers`.
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
    """Remove the prefixes of wrappers, and separate the heads of DINO."""
    tensors, outer = strip_wrappers(tensors)
    is_mae = "decoder_embed.weight" in tensors
    in_heads = {
        name: tensor
        for name, tensor in tensors.items()
        if _DINO_HEAD.match(name) or (is_mae and _MAE_DECODER.fullmatch(name))
    }
    checkpoint.heads = dict(
        Counter("decoder" if _MAE_DECODER.fullmatch(name) else name.split(".")[0] for name in in_heads)
    )
    prefix = "dino_head." if "dino_head" in checkpoint.heads else "head."
    checkpoint.dino_head = {n.removeprefix(prefix): t for n, t in in_heads.items() if n.startswith(prefix)}
    tensors, inner = strip_wrappers({n: t for n, t in tensors.items() if n not in in_heads}, ("backbone.",))
    checkpoint.tensors, innermost = strip_wrappers(tensors, _SEGMENTATION_WRAPPERS, others=("FPN.",))
    checkpoint.prefix = outer + inner + innermost
