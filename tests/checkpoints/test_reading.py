import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.checkpoints.reading import plain, read_checkpoint
from tests.checkpoints.files import original, save_dino, tiny


@pytest.fixture(scope="module")
def weights():
    return original(SurgeNetModel, tiny())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "model.", "_orig_mod.module."])
@pytest.mark.parametrize("nesting", [None, "state_dict", "model", "teacher"])
def test_wrappers_and_nestings(prefix, nesting, weights, tmp_path):
    content = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save({nesting: content} if nesting else content, tmp_path / "file.pth")
    assert_same(read_checkpoint(tmp_path / "file.pth").tensors, weights)


@pytest.mark.parametrize("numpy1", [True, False])
def test_full_dino_checkpoint(numpy1, weights, tmp_path):
    student = original(SurgeNetModel, tiny(), seed=1)
    save_dino(tmp_path / "full.pth", weights, student, {"arch": "caformer", "lr": 5e-4}, numpy1)
    raw = (tmp_path / "full.pth").read_bytes()
    assert (b"numpy.core.multiarray" in raw, b"numpy._core.multiarray" in raw) == (numpy1, not numpy1)
    teacher = read_checkpoint(tmp_path / "full.pth")
    assert_same(teacher.tensors, weights)
    assert (teacher.layout, teacher.network, teacher.epoch) == ("dino", "teacher", 50)
    assert teacher.args == {"arch": "caformer", "lr": 5e-4}
    assert teacher.dino_head.keys() == {"mlp.0.weight", "last_layer.weight_g"}
    assert_same(read_checkpoint(tmp_path / "full.pth", network="student").tensors, student)


def test_segmentation_wrapper_is_stripped(tmp_path):
    torch.save(original(SurgeNetForSemanticSegmentation, tiny()), tmp_path / "fpn.pth")
    names = read_checkpoint(tmp_path / "fpn.pth").tensors.keys()
    assert "downsample_layers.0.conv.weight" in names
    assert "FPN.p5.weight" in names


def test_old_torch_format(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(tmp_path / "old.pth").tensors, weights)


def test_student_of_a_teacher_file(weights, tmp_path):
    torch.save(weights, tmp_path / "teacher.pth")
    with pytest.raises(ValueError, match="not a full DINO checkpoint"):
        read_checkpoint(tmp_path / "teacher.pth", network="student")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("new_format", [True, False])
def test_runs_no_code(new_format, weights, tmp_path):
    content = {"state_dict": dict(weights), "extra": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match="could run code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_no_code_hides_in_the_arguments(weights, tmp_path):
    torch.save({"teacher": weights, "args": argparse.Namespace(x=Payload(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="could run code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>404</title>", "not a PyTorch file.*web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"", "is empty"),
        (b"\x80\x02garbage", "cut short or damaged"),
    ],
)
def test_other_files(content, message, tmp_path):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("new_format", [True, False])
def test_truncated(new_format, weights, tmp_path):
    torch.save(weights, tmp_path / "file.pth", _use_new_zipfile_serialization=new_format)
    whole = (tmp_path / "file.pth").read_bytes()
    (tmp_path / "file.pth").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match="cut short"):
        read_checkpoint(tmp_path / "file.pth")


def test_not_a_state_dict(tmp_path):
    torch.save({"weights": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"no state dict under a known name.*'epoch', 'weights'"):
        read_checkpoint(tmp_path / "file.pth")
    torch.save(torch.ones(3), tmp_path / "file.pth")
    with pytest.raises(ValueError, match="a Tensor"):
        read_checkpoint(tmp_path / "file.pth")


def test_settings_in_plain_types():
    settings = {
        "lr": np.float64(5e-4),
        "epoch": torch.tensor(3),
        "mean": np.ones(2, np.float32),
        "scale": (0.25, [np.int64(1), None]),
        "nested": {1: torch.ones(2, dtype=torch.bfloat16)},
        "path": Path("a/b"),
        "dtype": torch.float16,
        "name": np.str_("xl"),
        "flag": True,
    }
    found = plain(settings)
    assert found == {
        "lr": 5e-4,
        "epoch": 3,
        "mean": [1.0, 1.0],
        "scale": (0.25, [1, None]),
        "nested": {"1": [1.0, 1.0]},
        "path": "a/b",
        "dtype": "torch.float16",
        "name": "xl",
        "flag": True,
    }
    assert {type(value) for value in found.values()} == {float, int, list, tuple, dict, str, bool}
    json.dumps(found)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_truncated_safetensors(weights, tmp_path):
    save_file(weights, tmp_path / "file.safetensors")
    whole = (tmp_path / "file.safetensors").read_bytes()
    (tmp_path / "file.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        read_checkpoint(tmp_path / "file.safetensors")
