"""Tests of nine steps against the original loop, in one process and in two with half the batch each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from surgenet_hf import SurgeNetConfig, SurgeNetModel
from surgenet_hf.pretraining.arguments import DinoConfig
from surgenet_hf.pretraining.dino.method import DinoModel, build_optimizer, build_schedules, training_step
from tests import processes  # noqa: F401  (sets what the server imports)
from tests.goldens import fill

GOLDENS = Path(__file__).parents[1] / "goldens"
MANIFEST = json.loads((GOLDENS / "dino_manifest.json").read_text())
RUN = MANIFEST["config"]


def golden_model() -> DinoModel:
    """Return student and teacher with the start weights of the goldens, by their original names."""
    names = ["epochs", "lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "momentum_teacher"]
    names += ["clip_grad", "freeze_last_layer", "warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs"]
    config = DinoConfig(**{name: RUN[name] for name in [*names, "out_dim"]})
    with torch.device("meta"):
        model = DinoModel(SurgeNetModel(SurgeNetConfig()), config)
    model.to_empty(device="cpu")
    model.loss.center.zero_()
    mapping = model.student.original_names()
    assert {name: list(shape) for name, shape in mapping.values()} == MANIFEST["parameters"]
    weights = {}
    for ours, tensor in model.student.state_dict().items():
        name, shape = mapping[ours]
        values = np.ones(shape, "float32") if name.endswith("weight_g") else fill.parameter(f"dino/{name}", shape)
        weights[ours] = torch.from_numpy(values).reshape(tensor.shape)
    model.student.load_state_dict(weights)
    model.teacher.load_state_dict(weights)
    return model


def crops_of_step(step: int, rank: int, world_size: int) -> list[torch.Tensor]:
    sizes = [RUN["global_size"]] * 2 + [RUN["local_size"]] * RUN["local_crops"]
    crops = []
    for i, size in enumerate(sizes):
        pixels = (fill.uniform(f"dino/step{step}/crop{i}", (RUN["batch_size"], 3, size, size)) - 0.5) * 4
        crops.append(torch.from_numpy(pixels.astype(np.float32)).chunk(world_size)[rank])
    return crops


def nine_steps(rank: int, world_size: int, rendezvous: str, output: str):
    """Run the goldens' steps in each process and save the values to compare."""
    torch.set_num_threads(1)
    student = None
    model = golden_model()
    if world_size > 1:
        distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
        student = DistributedDataParallel(model.student)
    schedules = build_schedules(model.config, RUN["iterations_per_epoch"], RUN["batch_size"])
    optimizer = build_optimizer(model.student)
    losses, centers = [], []
    for step in range(len(schedules.lr)):
        crops = crops_of_step(step, rank, world_size)
        result = training_step(model, optimizer, schedules, [crops], step, student=student)
        losses.append(result.loss.item())
        centers.append(model.loss.center[0].numpy().copy())
    found = {"losses": losses, "centers": centers}
    found |= {name: getattr(schedules, name) for name in ("lr", "weight_decay", "momentum")}
    for network in ("student", "teacher"):
        tensors = getattr(model, network).state_dict()
        for ours, (name, _) in model.student.original_names().items():
            found[f"final/{network}/{name}"] = tensors[ours].flatten()[:256].numpy()
    np.savez(f"{output}{rank}.npz", **found)
    if world_size > 1:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_nine_steps(world_size, tmp_path):
    arguments = (world_size, str(tmp_path / "rendezvous"), str(tmp_path / "rank"))
    if world_size == 1:
        threads = torch.get_num_threads()
        nine_steps(0, *arguments)
        torch.set_num_threads(threads)
    else:
        start_processes(nine_steps, arguments, nprocs=world_size, start_method="forkserver")
    ranks = [dict(np.load(tmp_path / f"rank{rank}.npz")) for rank in range(world_size)]
    with np.load(GOLDENS / "dino.npz") as goldens:
        assert len(goldens["losses"]) == 9
        for name in goldens:
            # the loss of the whole batch is the mean over processes; all other values are the same in each process
            found = (
                [np.mean([rank["losses"] for rank in ranks], axis=0)] if name == "losses" else [r[name] for r in ranks]
            )
            for values in found:
                error = np.abs(values - goldens[name]).max()
                print(f"{world_size} processes: {name} off by {error:.1e}")
                assert values.shape == goldens[name].shape
                assert error < 1e-4, f"{name} is off by {error:.1e}"
