"""Tests of damaged and hostile weight files.

Each file is refused immediately with its name, and without allocating the memory that it declares.
"""

import argparse
import io
import json
import pickle
import random
import re
import struct
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from surgenet_hf import SurgeNetForImageClassification, SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.checkpoints.conversion import convert_checkpoint
from surgenet_hf.checkpoints.facebook_dino import read_dino_checkpoint
from surgenet_hf.checkpoints.inspection import inspect_checkpoint
from surgenet_hf.checkpoints.reading import check_finite, read_checkpoint
from surgenet_hf.errors import UserError
from tests.checkpoints.files import original, save_content, tiny

HUGE = 10**13  # elements of a tensor with stride 0; no machine has enough memory for them


def teacher_content() -> dict:
    torch.manual_seed(0)
    return OrderedDict({"stem.0.weight": torch.randn(4, 3), "stem.0.bias": torch.randn(4)})


def dino_content() -> dict:
    """Return the parts of a full DINO checkpoint with minimal sizes."""
    teacher = {f"backbone.{name}": tensor for name, tensor in teacher_content().items()}
    teacher |= {"head.mlp.0.weight": torch.ones(2, 4), "head.last_layer.weight_v": torch.ones(3, 2)}
    moments = {
        i: {"step": torch.tensor(2.0), "exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.ones_like(t)}
        for i, t in enumerate([*(t for t in teacher.values() if t.dim() > 1), teacher["backbone.stem.0.bias"]])
    }
    groups = [{"lr": np.float64(0.1), "betas": (0.9, 0.99), "params": [0, 1, 2]}, {"lr": 0.1, "params": [3]}]
    return {
        "student": {f"module.{name}": tensor + 1 for name, tensor in teacher.items()},
        "teacher": teacher,
        "optimizer": {"state": moments, "param_groups": groups},
        "epoch": 50,
        "args": argparse.Namespace(arch="x", data_mean=[0.4, 0.3, 0.2], lr=np.float64(0.1)),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Flip, overwrite, insert, delete, or copy a few bytes, or cut off the end."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        i = rng.randrange(len(data))
        match rng.choice(["flip", "flip", "set", "insert", "delete", "copy", "cut"]):
            case "flip":
                data[i] ^= 1 << rng.randrange(8)
            case "set":
                data[i] = rng.randrange(256)
            case "insert":
                data[i:i] = rng.randbytes(rng.choice([1, 2, 8]))
            case "delete":
                del data[i : i + rng.choice([1, 2, 8])]
            case "copy":
                j = rng.randrange(len(data))
                data[i : i + 8] = data[j : j + 8]
            case "cut" if i > len(data) // 2:
                del data[i:]
    return bytes(data)


def repack(data: bytes, change, compression=zipfile.ZIP_STORED) -> bytes:
    """Rebuild a .pth archive with a changed pickle and correct checksums."""
    source, packed = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as target:
        for member in source.infolist():
            content = source.read(member)
            target.writestr(member.filename, change(content) if member.filename.endswith(".pkl") else content)
    return packed.getvalue()


def make_file(path, kind: str) -> bytes:
    content = dino_content() if "dino" in kind else teacher_content()
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif "legacy" in kind:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        save_content(path, content)
    return path.read_bytes()


def tensors_of(path, kind: str) -> dict[str, torch.Tensor]:
    """Read a file with each function that supports its kind, and return its tensors."""
    json.dumps(inspect_checkpoint(path))
    if "dino" not in kind:
        return read_checkpoint(path).tensors
    checkpoint = read_dino_checkpoint(path)
    moments = {f"{name}.exp_avg_sq": item["exp_avg_sq"] for name, item in checkpoint.moments.items()}
    return checkpoint.teacher | {f"student.{n}": t for n, t in checkpoint.student.items()} | moments


@pytest.mark.parametrize(
    "kind", ["teacher", "dino", "teacher repacked", "dino repacked", "teacher legacy", "dino legacy", "safetensors"]
)
def test_every_mutant_loads_or_is_refused_with_its_name(kind, tmp_path):
    path = tmp_path / f"mutant.{'safetensors' if kind == 'safetensors' else 'pth'}"
    whole = make_file(path, kind)
    expected = {name: tensor.clone() for name, tensor in tensors_of(path, kind).items()}
    assert len(expected) == (12 if "dino" in kind else 2)
    checksums = kind in ("teacher", "dino")
    rng = random.Random(kind)
    refusals = []
    for _ in range(120):
        mutant = repack(whole, lambda data: mutate(rng, data)) if "repacked" in kind else mutate(rng, whole)
        path.write_bytes(mutant)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from torch, about pickle protocols
                found = tensors_of(path, kind)
        except ValueError as error:
            refusals.append(str(error))
        else:
            # formats without checksums cannot detect changed values
            if checksums:
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in expected), mutant
    assert len(refusals) > 30
    assert [message for message in refusals if str(path) not in message] == []


@pytest.mark.parametrize("kind", ["teacher", "dino"])
def test_changed_weights_are_noticed(kind, tmp_path):
    data = make_file(tmp_path / "file.pth", kind)
    values = teacher_content()["stem.0.weight"].numpy().tobytes()
    at = data.index(values)
    (tmp_path / "file.pth").write_bytes(data[: at + 2] + bytes([data[at + 2] ^ 1]) + data[at + 3 :])
    with pytest.raises(ValueError, match=r"file\.pth .*download it again .*checksum"):
        read_checkpoint(tmp_path / "file.pth")


SIZE = b"\x8a\x08" + struct.pack("<q", 3 << 30)  # LONG1
CALL = b"\x85R"  # TUPLE1, REDUCE
DATA = b"X\x04\x00\x00\x00data"  # BINUNICODE
HOSTILE_PICKLES = {
    "bytearray": (b"cbuiltins\nbytearray\n" + SIZE + CALL, "builtins.bytearray"),
    "bytearray of Python 2": (b"c__builtin__\nbytearray\n" + SIZE + CALL, "__builtin__.bytearray"),
    "memoized": (b"cbuiltins\nbytearray\nq\x000h\x00" + SIZE + CALL, "builtins.bytearray"),
    "STACK_GLOBAL": (b"X\x08\x00\x00\x00builtinsX\x09\x00\x00\x00bytearray\x93" + SIZE + CALL, "damaged"),
    "tensor": (b"ctorch\nFloatTensor\n" + SIZE + CALL, "torch.FloatTensor"),
    "storage": (b"ctorch.storage\nUntypedStorage\n" + SIZE + CALL, "torch.storage.UntypedStorage"),
    "dotted storage": (b"ctorch\nstorage.UntypedStorage\n" + SIZE + CALL, "torch.storage.UntypedStorage"),
    "numpy dtype": (
        b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\x00\x00\x00V2000000000\x85R\x85R",
        "numpy dtype 'V2000000000', expected one of f8",
    ),
    "numpy scalar without data": (
        b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R\x85R",
        "missing 1 required positional argument: 'data'",
    ),
    # each call would double the length
    "encoded": (b"c_codecs\nencode\nq\x00(h\x00h\x00" + DATA + CALL + b"X\x03\x00\x00\x00hex\x86R", "_codecs.encode"),
    # each call would copy the list
    "copied": (b"ccollections\nOrderedDict\nq\x00]q\x01\x85Rh\x00h\x01\x85R\x86", "collections.OrderedDict"),
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_that_would_allocate_far_more_than_the_file_has(name, legacy, tmp_path):
    hostile, message = HOSTILE_PICKLES[name]
    path = tmp_path / "file.pth"
    if legacy:
        head = b"".join(pickle.dumps(value, 2) for value in (MAGIC_NUMBER, PROTOCOL_VERSION, {}))
        path.write_bytes(head + b"\x80\x02" + hostile + b"." + pickle.dumps([], 2))
    else:
        path.write_bytes(repack(make_file(path, "teacher"), lambda _: b"\x80\x02" + hostile + b"."))
    with pytest.raises(ValueError, match=rf"file\.pth .*{re.escape(message)}"):
        read_checkpoint(path)


def test_legacy_storage_larger_than_the_file(tmp_path):
    """Test a legacy file that declares more elements than it stores.

    The legacy format stores the size of a storage separately from its values, which may be missing.
    """
    path = tmp_path / "file.pth"
    torch.save(torch.ones(7), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    content = data.replace(b"K\x07", b"J" + struct.pack("<i", 10**6))  # BININT1 becomes BININT in elements and shape
    keys = content.rindex(b"\x80\x02")
    path.write_bytes(content[:keys] + pickle.dumps([], 2))
    with pytest.raises(ValueError, match=r"file\.pth: 1 of 1 .*1,000,000 elements, but the file stores"):
        read_checkpoint(path)


def test_compressed_archive(tmp_path):
    data = make_file(tmp_path / "file.pth", "teacher")
    (tmp_path / "file.pth").write_bytes(repack(data, bytes, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match=r"file\.pth .*members are compressed"):
        read_checkpoint(tmp_path / "file.pth")


def holds_itself(kind: str) -> dict:
    content = dino_content() if "dino" in kind else teacher_content()
    match kind.split()[-1]:
        case "model" | "state_dict" | "teacher" | "student" as key:
            content[key] = content
        case "list":
            items = []
            items.append(items)
            content["args"] = argparse.Namespace(x=items)
        case "args":
            content["args"].x = content["args"]
        case "shared":  # 2**60 items in 60 small lists
            items = []
            for _ in range(60):
                items = [items, items]
            content["args"].x = items
        case "deep":
            for _ in range(100):
                content = {"model": content}
    return content


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["model", "state_dict", "deep", "dino teacher", "dino student", "dino list", "dino args", "dino shared"]
)
@pytest.mark.parametrize("read", [inspect_checkpoint, convert_checkpoint, read_dino_checkpoint])
def test_content_that_holds_itself(kind, read, tmp_path):
    torch.save(holds_itself(kind), tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth contains itself, or has more than"):
        read(tmp_path / "file.pth")


BAD_TENSORS = {
    "expanded": (lambda: torch.ones(1).expand(HUGE), "the file stores 1"),
    "beyond its storage": (lambda: torch.ones(8)[2:].as_strided((7,), (0,), 2), "7 elements, but the file stores 6"),
    "sparse": (lambda: torch.eye(4).to_sparse(), "torch.sparse_coo"),
    "meta": (lambda: torch.empty(4, device="meta"), "meta device"),
    "float8": (lambda: torch.zeros(4, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn, expected float16"),
    "complex": (lambda: torch.zeros(4, dtype=torch.complex64), "torch.complex64"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "torch.qint8"),
    "unsigned": (lambda: torch.zeros(4, dtype=torch.uint16), "torch.uint16"),
}


@pytest.mark.parametrize("bad", BAD_TENSORS)
@pytest.mark.parametrize(
    "place", ["teacher", "dino teacher", "dino student", "dino optimizer", "dino center", "dino args"]
)
@pytest.mark.filterwarnings("ignore")  # torch warns that quantized tensors are deprecated
def test_unusable_tensor(bad, place, tmp_path):
    make_tensor, message = BAD_TENSORS[bad]
    content = dino_content() if "dino" in place else teacher_content()
    target, name = {
        "teacher": (content, "stem.0.bias"),
        "dino teacher": (content.get("teacher"), "backbone.stem.0.bias"),
        "dino student": (content.get("student"), "module.backbone.stem.0.bias"),
        "dino optimizer": (content["optimizer"]["state"][1] if "dino" in place else None, "exp_avg"),
        "dino center": (content.get("dino_loss"), "center"),
        "dino args": (vars(content["args"]) if "dino" in place else None, "x"),
    }[place]
    target[name] = make_tensor()
    torch.save(content, tmp_path / "file.pth")
    for read in (inspect_checkpoint, convert_checkpoint, read_dino_checkpoint):
        with pytest.raises(ValueError, match=rf"file\.pth: 1 of .* tensors cannot be used, .*{name}: .*{message}"):
            read(tmp_path / "file.pth")


@pytest.mark.parametrize("key", [0, 1.5, None, b"x", ("x",)])
def test_names_that_are_not_text(key, tmp_path):
    torch.save({**teacher_content(), key: torch.ones(1)}, tmp_path / "teacher.pth")
    content = dino_content()
    content["teacher"][key] = torch.ones(1)
    torch.save(content, tmp_path / "full.pth")
    for read in (inspect_checkpoint, convert_checkpoint):
        for name in ("teacher.pth", "full.pth"):
            with pytest.raises(ValueError, match=rf"{name}.* (key of type|not named tensors|lacks teacher)"):
                read(tmp_path / name)
    with pytest.raises(ValueError, match=r"full\.pth.* (key of type|lacks teacher)"):
        read_dino_checkpoint(tmp_path / "full.pth")


def test_a_storage_is_no_tensor(tmp_path):
    content = dino_content()
    content["args"].x = torch.ones(3).untyped_storage()
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth: args\.x is a storage, expected a tensor"):
        inspect_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("cls", "name", "shape"),
    [
        (SurgeNetForImageClassification, "head.fc2", (10**6, 1)),
        (SurgeNetForSemanticSegmentation, "FPN.segmentation_head.0", (10**6, 0, 1, 1)),
    ],
)
def test_labels_are_counted_once_the_head_fits(cls, name, shape, tmp_path):
    """Test that the head is checked before its labels are named.

    A name for each label that a head declares would need far more memory than the file.
    """
    tensors = original(cls, tiny())
    tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(shape), torch.zeros(10**6)
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=rf"(?s)file\.pth.*{name}\.weight: found \(1000000, "):
        convert_checkpoint(tmp_path / "file.pth", config=tiny())


def test_head_without_dimensions(tmp_path):
    tensors = original(SurgeNetForImageClassification, tiny())
    tensors["head.fc2.weight"] = tensors["head.fc2.bias"] = torch.tensor(1.0)
    torch.save(tensors, tmp_path / "file.pth")
    inspect_checkpoint(tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"head\.fc2\.bias: found \(\), expected \(1,\)"):
        convert_checkpoint(tmp_path / "file.pth", config=tiny())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_are_not_finite(dtype, value, tmp_path):
    tensors = original(SurgeNetModel, tiny())
    tensors["norm.weight"] = torch.ones(64, dtype=dtype)
    check_finite(tensors, "file")
    tensors["norm.weight"][3] = value
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(UserError, match=rf"file\.pth: 1 of {len(tensors)} tensors contain NaN .* is norm\.weight"):
        convert_checkpoint(tmp_path / "file.pth", config=tiny())


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float16], torch.float16),
        ([torch.float16, torch.float32], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
    ],
)
def test_mixed_dtypes_become_the_smallest_that_holds_all(dtypes, expected, tmp_path):
    tensors = original(SurgeNetModel, tiny())
    tensors = {name: t.to(dtypes[i % len(dtypes)]) for i, (name, t) in enumerate(tensors.items())}
    torch.save(tensors, tmp_path / "file.pth")
    model = convert_checkpoint(tmp_path / "file.pth", config=tiny())
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert torch.equal(model.layernorm.weight.double(), tensors["norm.weight"].double())


@pytest.mark.parametrize("mean", ["0.4", None, [], [0.4, "x", 0.2], {"a": 1}])
def test_normalization_that_is_not_numbers(mean, tmp_path):
    content = dino_content()
    weights = original(SurgeNetModel, tiny())
    content["teacher"] = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    vars(content["args"]).update(data_mean=mean, data_std=[0.2, 0.2, 0.2])
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth was trained with mean"):
        convert_checkpoint(tmp_path / "file.pth", config=tiny())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\xff" * 8, "header too large"),
        (b'{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}', "unknown variant"),
        (b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', "invalid shape"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
         "invalid offset"),
        (b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}', "float8_e4m3fn, expected float16"),
        (b'{"a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}', "float8_e8m0fnu(, expected float16|')"),
        (b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', "complex64, expected float16"),
        (b'{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}', "float4|damaged"),
    ],
)  # fmt: skip
def test_safetensors_headers(header, message, tmp_path):
    path = tmp_path / "file.safetensors"
    size = b"" if header.startswith(b"\xff") else len(header).to_bytes(8, "little")
    path.write_bytes(size + header + bytes(8 if b"C64" in header else 4))
    with pytest.raises(ValueError, match=rf"(?i)file\.safetensors.*({message})"):
        inspect_checkpoint(path)
