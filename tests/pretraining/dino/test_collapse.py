import math
import sys

import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from surgenet_hf import SurgeNetModel
from surgenet_hf.pretraining.arguments import DinoConfig
from surgenet_hf.pretraining.dino.collapse import PATIENCE, Monitor
from surgenet_hf.pretraining.dino.loss import DinoLoss
from surgenet_hf.pretraining.dino.method import DinoModel, build_optimizer, build_schedules, training_step

S, T, B, K, C = 5, 2, 12, 32, 20
TEMPS = {"student_temp": 0.1, "teacher_temp": 0.04}


def batch() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = {"student_logits": (S, B, K), "teacher_logits": (T, B, K), "embeddings": (B, C), "center": (1, K)}
    return {name: 0.1 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def numbers(values: dict[str, torch.Tensor]) -> dict[str, float]:
    assert all(value.shape == () and value.dtype == torch.float32 for value in values.values())
    return {name: value.item() for name, value in values.items()}


def diagnose(monitor: Monitor, values: dict[str, float]) -> str | None:
    """Return the diagnosis after as many identical measurements as it requires."""
    return [monitor.diagnose(values) for _ in range(PATIENCE)][-1]


def test_figures_by_hand():
    inputs = batch()
    found = numbers(Monitor(K).measure(**inputs, **TEMPS))
    teacher = F.softmax((inputs["teacher_logits"] - inputs["center"]) / 0.04, dim=-1)
    student = F.softmax(inputs["student_logits"] / 0.1, dim=-1)

    def entropy(p):
        return torch.distributions.Categorical(p).entropy()

    assert found["teacher_entropy"] == pytest.approx(entropy(teacher).mean().item(), abs=1e-5)
    assert found["teacher_mean_entropy"] == pytest.approx(entropy(teacher.mean((0, 1))).item(), abs=1e-5)
    divergences = [
        (teacher[t] * (teacher[t] / student[s]).log()).sum(-1).mean() for t in range(T) for s in range(S) if s != t
    ]
    assert found["teacher_student_kl"] == pytest.approx(torch.stack(divergences).mean().item(), abs=1e-5)
    assert found["center_norm"] == pytest.approx(inputs["center"].norm().item())
    features = F.normalize(inputs["embeddings"], dim=1)
    assert found["feature_std"] == pytest.approx((features.std(0).mean() * C**0.5).item())
    _, singular, _ = torch.linalg.svd(features - features.mean(0))
    assert found["feature_rank"] == pytest.approx(entropy(singular / singular.sum()).exp().item(), rel=1e-5)
    # the loss is the teacher entropy plus the divergence, which training minimizes
    loss = DinoLoss(K)
    loss.center.copy_(inputs["center"])
    expected = loss(inputs["student_logits"], inputs["teacher_logits"], 0.04).item()
    assert found["teacher_entropy"] + found["teacher_student_kl"] == pytest.approx(expected, abs=1e-5)


def test_spread_of_known_features():
    inputs = batch()
    isotropic = F.normalize(torch.randn(4000, C, generator=torch.Generator().manual_seed(0)), dim=1)
    cases = [
        (isotropic, 1.0, C),
        (torch.cat([isotropic[:1], -isotropic[:1]]).repeat(B // 2, 1), None, 1),  # two points span one direction
        (isotropic[:1].repeat(B, 1), 0.0, None),
        (isotropic[:1], math.nan, math.nan),
    ]
    for embeddings, std, rank in cases:
        found = numbers(Monitor(K).measure(**{**inputs, "embeddings": embeddings.bfloat16()}, **TEMPS))
        for name, expected in (("feature_std", std), ("feature_rank", rank)):
            if expected is not None:
                assert found[name] == pytest.approx(expected, rel=0.02, abs=1e-3, nan_ok=True)


def test_collapses_are_named():
    inputs = batch()
    assert diagnose(Monitor(K), numbers(Monitor(K).measure(**inputs, **TEMPS))) is None
    one_hot = F.one_hot(torch.zeros(S, B, dtype=int), K).float()
    collapses = {
        "to the uniform output": {"teacher_logits": inputs["center"].expand(T, B, K)},
        "to one prototype": {"teacher_logits": 2 * one_hot[:T], "student_logits": 2 * one_hot},
        "to one output": {"teacher_logits": inputs["teacher_logits"][:1, :1].expand(T, B, K)},
        "features": {"embeddings": inputs["embeddings"][:1] + 1e-5 * inputs["embeddings"]},
    }
    for words, changes in collapses.items():
        monitor = Monitor(K)
        values = numbers(monitor.measure(**{**inputs, **changes}, **TEMPS))
        assert diagnose(monitor, values).startswith(f"collapsed {words}"), words
    along_a_line = {"embeddings": 1 + torch.outer(inputs["embeddings"][:, 0], inputs["embeddings"][0])}
    assert "one direction" in diagnose(monitor, numbers(monitor.measure(**{**inputs, **along_a_line}, **TEMPS)))


def test_one_odd_batch_is_no_collapse():
    inputs, monitor = batch(), Monitor(K)
    good = numbers(monitor.measure(**inputs, **TEMPS))
    bad = {**good, "feature_std": 0.0}
    for values in [bad] * (PATIENCE - 1) + [good] + [bad] * (PATIENCE - 1):
        assert monitor.diagnose(values) is None
    assert monitor.diagnose(bad)


def test_few_samples_may_be_alike():
    inputs = batch()
    few = {name: inputs[name][:, :1].expand(-1, 2, -1) for name in ("student_logits", "teacher_logits")}
    monitor = Monitor(K)
    values = monitor.measure(**few, embeddings=inputs["embeddings"][:1].repeat(2, 1), center=inputs["center"], **TEMPS)
    assert diagnose(monitor, numbers(values)) is None


def test_nan_is_not_taken_for_a_collapse():
    inputs, monitor = batch(), Monitor(K)
    for name in ("student_logits", "embeddings"):
        inputs[name][0, 0] = math.nan
    values = numbers(monitor.measure(**inputs, **TEMPS))
    assert {name for name, value in values.items() if math.isnan(value)} == {
        "teacher_student_kl",
        "feature_std",
        "feature_rank",
    }
    assert diagnose(monitor, values) is None


def short_run(backbone: SurgeNetModel, steps: int, **changes) -> list[str | None]:
    """Return the diagnosis after each step of a run on noise frames of many colors."""
    defaults = {"epochs": 1, "warmup_epochs": 0, "lr": 0.003, "momentum_teacher": 0.9, "freeze_last_layer": 0}
    config = DinoConfig(**{**defaults, "out_dim": 256, "hidden_dim": 128, **changes})
    model = DinoModel(backbone, config)
    optimizer, schedules = build_optimizer(model.student), build_schedules(config, steps, total_batch_size=8)
    monitor, found = Monitor(config.out_dim), []
    for step in range(steps):
        frames = torch.rand(8, 3, 1, 1) + 0.3 * torch.randn(8, 3, 32, 32)
        crops = [frames, frames.flip(-1), 0.9 * frames[..., :16, :16]]
        center = model.loss.center.clone()
        outputs = training_step(model, optimizer, schedules, [crops], step).outputs
        with torch.no_grad():
            embeddings = model.teacher.backbone(frames).pooler_output
        logits = outputs.student_logits, outputs.teacher_logits
        values = numbers(monitor.measure(*logits, embeddings, center, config.student_temp, config.teacher_temp))
        found.append(monitor.diagnose(values))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"center_momentum": 1.0}, "collapsed to one prototype"),
        ({"teacher_temp": 1.0, "warmup_teacher_temp": 1.0}, "collapsed to the uniform output"),
        ({"lr": 0.1}, "collapsed to one output"),
    ],
)
def test_short_runs(changes, words, tiny_config):
    """Test a normal run and three that collapse.

    The causes are missing centering, a teacher temperature that is too high, and a learning rate that is too high.
    """
    torch.manual_seed(0)
    found = short_run(SurgeNetModel(tiny_config()), 30, **changes)
    if words is None:
        assert not any(found)
    else:
        assert found[-1].startswith(words)


def measure_share(rank: int, rendezvous: str, output: str):
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    inputs = batch()
    for name in ("student_logits", "teacher_logits"):
        inputs[name] = inputs[name].chunk(2, dim=1)[rank]
    inputs["embeddings"] = inputs["embeddings"].chunk(2)[rank]
    torch.save(Monitor(K).measure(**inputs, **TEMPS), f"{output}{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_measure_the_whole_batch(tmp_path):
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path / "rank"))
    # a fork avoids importing everything again
    method = "fork" if sys.platform == "linux" else "spawn"
    torch.multiprocessing.start_processes(measure_share, arguments, nprocs=2, start_method=method)
    expected = numbers(Monitor(K).measure(**batch(), **TEMPS))
    for rank in range(2):
        assert numbers(torch.load(tmp_path / f"rank{rank}.pt")) == pytest.approx(expected, abs=1e-5)
