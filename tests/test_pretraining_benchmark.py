"""The benchmark runs every part, and its table shows what was measured; how fast is not a matter of tests."""

import multiprocessing
import re
import sys
import time

import pytest
from PIL import Image
from surgenet_hf.pretraining.benchmark import Benchmark, busy_shares, take_turns

from tests.cli import load_script

SMALL = "--backbone tiny --batch_size 2 --rounds 1 --out_dim 32 --frame_size 160 120 --local_crops_number 1"
CROPS = "--global_crops_size 48 --local_crops_size 32"  # the original's have one size

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
    """What the benchmark takes of a checkout of facebookresearch/dino, by its names."""
    for name, content in {"main_dino": MAIN_DINO, "utils": UTILS}.items():
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.setitem(sys.modules, name, None)  # so that the test's end forgets what it imports
        monkeypatch.delitem(sys.modules, name)
    return str(tmp_path)


def run(arguments: str) -> None:
    load_script("benchmark_pretraining").main(arguments.split())


def rows(said: str, part: str) -> dict[str, float]:
    """Milliseconds a frame of each row of a part's table."""
    table = re.search(rf"\n{part}: +ms a frame .*\n((?:.+\n)+)", said)[1]
    return {name: float(ms) for name, ms in re.findall(r"(.+?) +([\d.]+) +[\d.]+ +[\d.]+\n", table)}


def test_every_part_is_measured(capsys):
    run(f"{SMALL} {CROPS} --channels_last")
    said = capsys.readouterr().out
    steps = ["ours, float32", "ours, bf16", "ours, bf16, channels last"]
    assert list(rows(said, "decode")) == ["in full (original)", "reduced, with draws"]
    assert "workers" in rows(said, "crops")
    assert list(rows(said, "forward backward")) == ["float32", "bf16 autocast"]
    assert list(rows(said, "step")) == list(rows(said, "end to end")) == steps


def test_against_the_original(dino_repo, capsys):
    run(f"{SMALL} --batch_size 1 --parts crops step end_to_end --dino_repo {dino_repo}")
    said = capsys.readouterr().out
    steps = ["original, float32", "original, autocast", "ours, float32", "ours, bf16"]
    assert list(rows(said, "crops"))[:2] == ["original", "workers"]
    assert list(rows(said, "step")) == list(rows(said, "end to end")) == steps


@pytest.mark.parametrize("workers", [0, 1])
def test_end_to_end_counts_the_loading(dino_repo, capsys, monkeypatch, workers):
    """One process opens the frames, 100 ms each: of 8 batches a worker may have 2 ready, and no time is shorter."""
    open_image, at_work = Image.open, set()

    def open_slowly(*args, **options):
        time.sleep(0.1)
        return open_image(*args, **options)

    def step(batch):  # takes no time
        at_work.add(len(multiprocessing.active_children()))

    names = ["original, float32", "ours, float32"]
    monkeypatch.setattr(Image, "open", open_slowly)
    monkeypatch.setattr(Benchmark, "_all_steps", lambda self: dict.fromkeys(names, step))
    run(f"{SMALL} --batch_size 1 --parts end_to_end --dataloader_num_workers {workers} --dino_repo {dino_repo}")
    measured = rows(capsys.readouterr().out, "end to end")
    assert list(measured) == names
    assert min(measured.values()) >= (75 if workers else 100), measured
    assert at_work == {0, workers}  # never those of two candidates
    assert not multiprocessing.active_children()


def test_candidates_take_turns():
    order = []
    seconds = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 1)
    assert order == ["a", "b"] * 3  # the first round does not count
    assert seconds.keys() == {"a", "b"}


def test_the_share_of_the_step():
    said = busy_shares({"original": 0.001, "ours": 0.0009}, {"original": 0.004, "ours": 0.001})
    assert "original 25%; ours 90%" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dino_repo {}", r"holds no main_dino\.py: give the folder of a checkout"),
        ("--surgenet_repo {}", "--surgenet_repo is for the original loop only: give --dino_repo, too"),
    ],
)
def test_wrong_checkout(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(arguments.format(tmp_path))
