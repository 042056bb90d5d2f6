"""Tests that the benchmarks of pretraining and of prediction run, without checking speed."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from surgenet_hf.inference.settings import Setting

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

SMALL = "--backbone tiny --batch_size 1 --rounds 1 --out_dim 32 --frame_size 160 120 --local_crops_number 1"

MAIN_DINO = """
import torch
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, resize

class DINOHead(nn.Linear):
    pass

class DINOLoss(nn.Module):
    def __init__(self, out_dim, ncrops, warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, nepochs):
        super().__init__()
        self.ncrops = ncrops

    def forward(self, student_output, teacher_output, epoch):
        assert len(student_output) * 2 == len(teacher_output) * self.ncrops and not teacher_output.requires_grad
        torch.distributed.all_reduce(teacher_output.mean(0))
        return student_output.square().mean()

class DataAugmentationDINO:
    def __init__(self, global_crops_scale, local_crops_scale, local_crops_number):
        self.sizes = [224, 224] + [96] * local_crops_number

    def __call__(self, image):
        return [pil_to_tensor(resize(image, [size, size])) / 255 for size in self.sizes]
"""

UTILS = """
import torch
from torch import nn

class MultiCropWrapper(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops):
        return self.head(torch.cat([self.backbone(crop) for crop in crops]))

def get_params_groups(model):
    return [{"params": list(model.parameters())}]

def clip_gradients(model, clip):
    assert model.head.weight.grad is not None

def cancel_gradients_last_layer(epoch, model, freeze_last_layer):
    pass
"""


@pytest.fixture
def dino_repo(tmp_path, monkeypatch):
    """Return a folder with the parts of facebookresearch/dino that the benchmark uses, under their names."""
    for name, content in {"main_dino": MAIN_DINO, "utils": UTILS}.items():
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.setitem(sys.modules, name, None)  # removes the imported module after the test
        monkeypatch.delitem(sys.modules, name)
    return str(tmp_path)


def rows(said: str, part: str) -> list[str]:
    """Return the names of the rows of a part's table."""
    table = re.search(rf"\n{part}: +ms per frame .*\n((?:.+\n)+)", said)[1]
    return re.findall(r"(.+?) +[\d.]+ +[\d.]+ +[\d.]+\n", table)


@pytest.mark.slow
def test_every_part_is_measured_against_the_original(dino_repo, capsys, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    importlib.import_module("pretraining").main(f"{SMALL} --channels_last --dino_repo {dino_repo}".split())
    said = capsys.readouterr().out
    steps = ["original, float32", "original, autocast", "ours, float32", "ours, bf16", "ours, bf16, channels last"]
    assert rows(said, "decode") == ["full size (original)", "reduced, with draws"]
    assert rows(said, "crops")[:2] == ["original", "workers"]
    assert rows(said, "step") == rows(said, "end to end") == steps


@pytest.mark.slow
def test_prediction_is_measured_against_timm(tmp_path, monkeypatch, tiny_backbones, rendered_figures):
    monkeypatch.syspath_prepend(BENCHMARKS)
    networks = importlib.import_module("inference_networks")
    jobs, benchmark = importlib.import_module("inference_jobs"), importlib.import_module("inference")
    settings = [Setting(), Setting("torch", "bf16")]
    for module in (networks, jobs):
        monkeypatch.setattr(module, "settings", lambda: settings)
    for module in (benchmark, jobs):
        monkeypatch.setattr(module, "FRAME_SIZE", (96, 160))
    options = "--tasks classification --parts forward loading video folder --sizes 64x96 --batch_sizes 1 --rounds 1"
    benchmark.main([*options.split(), "--num_frames", "8", "--output_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    found = [row["candidate"] for row in rows if row["part"] == "forward" and row["task"] == "classification"]
    others = [f"timm, torch {precision}" for precision in ("float32", "bf16")]
    assert found == [networks.REFERENCE, "ours, torch bf16", *others]
    assert [row["part"] for row in rows if row["part"] != "forward"][:3] == ["loading", "loading", "video"]
    assert all(row["speed"] > 0 for row in rows)
    assert "## 480p video to masks" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.png").stat().st_size > 0
