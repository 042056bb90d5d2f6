"""Shared setup of all tests: no network, few threads, and tiny variants of the three backbones."""

import csv
import gc
import os
from collections import Counter
from pathlib import Path

gc.disable()  # until the tests are collected: imports make many objects but little garbage

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # must precede the import of transformers
# one thread, also in subprocesses: small networks gain nothing from more and slow down on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests that import onnxruntime themselves

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from surgenet_hf import SurgeNetConfig, configuration_surgenet
from surgenet_hf.checkpoints import vit
from surgenet_hf.data import load_data
from tests.hub.fixtures import client, hub  # noqa: F401

torch.set_num_threads(1)

# options of a training of two steps, with one evaluation and one checkpoint
TWO_STEPS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "disable_tqdm": True,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
}


def pytest_configure(config):
    """Hide GPUs, also from subprocesses, unless `-m gpu` asks for the tests that need one.

    Many tests compare two runs bit for bit, which PyTorch does not guarantee on a GPU.
    """
    if "gpu" not in (config.option.markexpr or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """Mark tests that use a browser or start the demo, and move the files with the most slow tests to the front.

    Processes that share the files then end at about the same time, with `--dist loadfile --no-loadscope-reorder`.
    """
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
        if "server" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow") or "browser" in item.fixturenames)
    # last, because training in the same process ended in a segmentation fault after networks in half precision had run
    # in OpenVINO and PyTorch
    last = "test_runtimes.py"
    items.sort(key=lambda item: (item.path.name == last, -slow[item.path]))


def pytest_collection_finish():
    """Enable the garbage collector, without the imported modules: it would check their objects again and again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    """Let the interpreter collect the imported modules at its end."""
    gc.unfreeze()


@pytest.fixture
def rendered_figures():
    """Request this fixture in tests that look at figures. Others write empty files, see `figures_are_not_rendered`."""


@pytest.fixture(autouse=True)
def figures_are_not_rendered(request):
    """Write figures as empty files, because rendering takes longer than training a tiny network.

    Fixtures with a larger scope than a test, and other processes, render figures.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "rendered_figures" not in request.fixturenames:
            patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
        yield


TINY_WIDTHS = {
    "caformer_s18": [16, 24, 32, 64],
    "convnextv2_tiny": [8, 16, 24, 32],
    "pvt_v2_b2": [8, 16, 20, 32],
}


@pytest.fixture(params=sorted(TINY_WIDTHS))
def backbone(request) -> str:
    """Return the name of a backbone; a test that requests it runs on all three."""
    return request.param


@pytest.fixture(scope="session")
def tiny_config():
    """Return a function that builds the config of a SurgeNet with one block per stage and 3 labels.

    Its signature is `tiny_config(backbone, **changes)`.
    """

    def build(backbone: str = "caformer_s18", **changes) -> SurgeNetConfig:
        sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": TINY_WIDTHS[backbone]}
        heads = {"pyramid_channels": 32, "segmentation_channels": 32, "num_labels": 3}
        return SurgeNetConfig(backbone=backbone, **{**sizes, **heads, **changes})

    return build


TINY_VITS = {"s": (1, 64), "b": (2, 64), "l": (1, 128)}


@pytest.fixture
def tiny_backbones(monkeypatch):
    """Replace the sizes of the published backbones, also of vision transformers, with tiny ones."""
    monkeypatch.setattr(vit, "SIZES", TINY_VITS)
    for name, widths in TINY_WIDTHS.items():
        monkeypatch.setitem(configuration_surgenet.BACKBONES, name, {"depths": [1, 1, 2, 1], "hidden_sizes": widths})


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Return a folder of synthetic frames and masks, three of each of three videos."""
    root = tmp_path_factory.mktemp("masks")
    load_data("synthetic", root, num_videos=3, frames_per_video=3, size=(32, 48))
    return next(root.iterdir())


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Return a folder of frames with soft labels for two criteria, three frames per video."""
    root = tmp_path_factory.mktemp("labeled")
    rng = np.random.default_rng(0)
    with open(root / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "video", "C1", "C2"])
        for video in "abcde":
            for i in range(3):
                Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(root / f"{video}_{i}.png")
                table.writerow([f"{video}_{i}.png", video, [0, 0.33, 1][i], [1, 0.67, 0][i]])
    return root
