"""Helpers that run the pretraining command on a tiny network and small frames."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from surgenet_hf.cli.pretrain import main

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_dino.py"

TINY = "--backbone tiny --out_dim 64 --hidden_dim 32 --bottleneck_dim 16 --drop_path_rate 0.3"
TINY += " --global_crops_size 48 --local_crops_size 32 --local_crops_number 1"
SHORT = "--epochs 3 --warmup_epochs 1 --per_device_train_batch_size 4 --logging_steps 1 --lr 0.05"
NUM_FRAMES, STEPS_PER_EPOCH, NUM_STEPS = 18, 4, 12  # batches of 4; two frames of an epoch are left out


def arguments(frames: Path, output_dir: Path, more: str = "") -> list[str]:
    return f"{TINY} {SHORT} --dataset folder --data_dir {frames} --output_dir {output_dir} {more}".split()


def pretrain(frames: Path, output_dir: Path, more: str = "") -> None:
    main(arguments(frames, output_dir, more))


def history(output_dir: Path) -> list[dict]:
    entries = [json.loads(line) for line in (output_dir / "history.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def accuracies(output_dir: Path) -> list[dict]:
    entries = map(json.loads, (output_dir / "history.jsonl").read_text().splitlines())
    return [entry for entry in entries if "knn_accuracy" in entry]


def losses(output_dir: Path) -> list[float]:
    return [entry["loss"] for entry in history(output_dir)]


def weights(output_dir: Path, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"checkpoint-{step}" / "model.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    """Assert that the losses of all steps and the final weights and moments are equal bit for bit."""
    assert [entry["step"] for entry in history(second)] == list(range(1, NUM_STEPS + 1))
    assert losses(first) == losses(second)
    expected, found = weights(first), weights(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    moments = [torch.load(run / f"checkpoint-{NUM_STEPS}" / "optimizer.bin")["state"] for run in (first, second)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][i][name], moments[1][i][name]) for i in moments[0] for name in moments[0][i])
