"""Tests of fine-tuning runs that were killed, terminated, or restarted with other options or damaged checkpoints."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from surgenet_hf.checkpointing import lock_run
from surgenet_hf.cli.finetune_segmentation import main
from surgenet_hf.finetuning.trainer import SurgeNetTrainer

EPOCHS, STEPS = 3, 3  # each step has two frames
COMMON = f"--backbone tiny --image_size 32 --per_device_train_batch_size 2 --num_train_epochs {EPOCHS}"
COMMON += " --learning_rate 3e-3 --disable_tqdm true --dataset folder"


@pytest.fixture(scope="module")
def finished(masks, tmp_path_factory):
    """Return the folder of an uninterrupted run with all its checkpoints."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    finetune(masks, output_dir, "--save_total_limit 9")
    return output_dir


@pytest.fixture
def killed(finished, tmp_path):
    """Return the folder of a run that was killed after its second epoch."""
    output_dir = tmp_path / "killed"
    for name in ("checkpoint-3", "checkpoint-6"):
        shutil.copytree(finished / name, output_dir / name)
    return output_dir


def finetune(masks, output_dir, more=""):
    main(f"{COMMON} --data_dir {masks} --output_dir {output_dir} {more}".split())


def resume(masks, output_dir, more=""):
    finetune(masks, output_dir, f"--resume_from_checkpoint true {more}")


def assert_same_result(first, second):
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    metrics = [json.loads((run / "results.json").read_text())["metrics"] for run in (first, second)]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(masks, finished, killed):
    (killed / "checkpoint-9").mkdir()  # killed while saving this checkpoint
    (killed / "checkpoint-9" / "model.safetensors").write_bytes(b"half")
    resume(masks, killed)
    assert_same_result(finished, killed)
    assert len(list(killed.glob("checkpoint-*"))) == 2


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--learning_rate 1e-3", r"learning_rate: 0\.003 in the checkpoint, 0\.001 now"),
        ("--seed 1", "seed: 42 in the checkpoint, 1 now"),
        ("--per_device_train_batch_size 3", "per_device_train_batch_size: 2 in the checkpoint, 3 now"),
        ("--loss cross_entropy+dice", r"loss: cross_entropy in the checkpoint, cross_entropy\+dice now"),
        ("--image_size 64", "image_size: 32 in the checkpoint, 64 now"),
        ("--augmentation strong", "augmentation: light in the checkpoint, strong now"),
        ("--num_train_epochs 4", r"num_train_epochs: 3\.0 in the checkpoint, 4\.0 now"),
    ],
)
def test_other_options_are_refused(masks, killed, more, named):
    with pytest.raises(SystemExit, match=rf"checkpoint-6 is from another run:\n- {named}\nGive the same options"):
        resume(masks, killed, more)
    assert not (killed / "model").exists()


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_other_data_under_the_same_names_is_refused(masks, killed, tmp_path, folder):
    moved = shutil.copytree(masks, tmp_path / "moved")
    path = min((moved / folder).rglob("*_*.*"))
    size = path.stat().st_size
    if folder == "masks":
        Image.fromarray(np.roll(np.array(Image.open(path)), 1, axis=0)).save(path)
    else:  # flip one bit of the image
        content = path.read_bytes()
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
        assert path.stat().st_size == size
    with pytest.raises(SystemExit, match=r"is from another run:\n- data\.(train|validation): .*contents"):
        resume(moved, killed)


@pytest.mark.slow
def test_data_that_was_moved_is_the_same(masks, finished, killed, tmp_path):
    resume(shutil.copytree(masks, tmp_path / "moved"), killed)
    assert_same_result(finished, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "missing"), [("model.safetensors", False), ("optimizer.pt", False), ("scheduler.pt", True)]
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(masks, finished, killed, caplog, name, missing):
    path = killed / "checkpoint-6" / name
    if missing:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    resume(masks, killed)
    assert "Skipping checkpoint-6" in caplog.text
    assert name in caplog.text
    assert_same_result(finished, killed)


@pytest.mark.slow
def test_without_its_best_checkpoint_a_run_would_end_with_other_weights(masks, finished, killed):
    path = killed / "checkpoint-6" / "trainer_state.json"
    state = json.loads(path.read_text())
    best = killed / f"checkpoint-{state['best_global_step']}"
    shutil.rmtree(killed / "checkpoint-3")
    if best.name == "checkpoint-6":
        resume(masks, killed)
        assert_same_result(finished, killed)
    else:
        with pytest.raises(SystemExit, match=rf"{best.name} has no run\.json"):
            resume(masks, killed)


@pytest.mark.slow
def test_the_best_checkpoint_is_found_in_a_folder_that_was_moved(masks, finished, killed, tmp_path):
    shutil.rmtree(finished.parent / "elsewhere", ignore_errors=True)
    moved = shutil.move(killed, tmp_path / "moved")
    resume(masks, Path(moved))
    assert_same_result(finished, tmp_path / "moved")


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 6], ids=["in the epoch", "at its end"])
def test_sigterm_saves_and_exits(masks, finished, tmp_path, monkeypatch, caplog, step):
    training_step = SurgeNetTrainer.training_step

    def step_and_signal(self, *args):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SurgeNetTrainer, "training_step", step_and_signal)
        with pytest.raises(SystemExit) as ended:
            finetune(masks, tmp_path / "run")
    assert ended.value.code == 128 + signal.SIGTERM
    assert f"Stopped by SIGTERM after step {step}" in caplog.text
    assert (tmp_path / "run" / f"checkpoint-{step}" / "run.json").is_file()
    assert not (tmp_path / "run" / "model").exists()
    resume(masks, tmp_path / "run")
    assert_same_result(finished, tmp_path / "run")


@pytest.mark.slow
def test_early_stopping_keeps_its_patience(masks, tmp_path):
    """Test that two evaluations without improvement end the run, even if it is resumed between them."""
    options = "--num_train_epochs 6 --learning_rate 0 --early_stopping_patience 2 --save_total_limit 9"
    finetune(masks, tmp_path / "whole", options)
    saved = sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*"))
    assert saved == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    for name in saved[:2]:
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "resumed" / name)
    resume(masks, tmp_path / "resumed", options)
    assert sorted(path.name for path in (tmp_path / "resumed").glob("checkpoint-*")) == saved


@pytest.mark.slow
def test_a_diverged_run_ends_with_an_error_and_no_model(masks, tmp_path):
    with pytest.raises(SystemExit, match=r"training has diverged: the loss of step \d+ is (nan|inf).*--learning_rate"):
        finetune(masks, tmp_path / "run", "--learning_rate 1e30 --lr_scheduler_type constant")
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


@pytest.mark.slow
def test_weights_that_are_not_finite_are_neither_evaluated_nor_saved(masks, tmp_path, monkeypatch):
    """Test that weights that are not finite are neither evaluated nor saved.

    The gradients of a finite loss can be NaN. The weights then become NaN before a loss does.
    """
    training_step = SurgeNetTrainer.training_step

    def step_and_break(self, model, *args):
        loss = training_step(self, model, *args)
        if self.state.global_step == 2:  # the last step of the epoch
            next(model.parameters()).grad[0] = torch.nan
        return loss

    monkeypatch.setattr(SurgeNetTrainer, "training_step", step_and_break)
    with pytest.raises(SystemExit, match=r"training has diverged: the model: \d+ of \d+ tensors contain NaN"):
        finetune(masks, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_second_run_in_the_same_folder_is_refused(masks, tmp_path):
    with lock_run(tmp_path / "run"), pytest.raises(SystemExit, match=r"another run is writing to .*run: wait until"):
        finetune(masks, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_keeps_its_best(masks, tmp_path, monkeypatch):
    """Test that the best checkpoint is kept while the checkpoint before a damaged one needs it.

    The first epoch is the best until the third, so resuming from the second checkpoint requires the first.
    """
    scores = iter([0.5, 0.4, 0.9] * 2)
    evaluate = SurgeNetTrainer.evaluate

    def scored(self, *args, **kwargs):
        metrics = evaluate(self, *args, **kwargs)
        return metrics | {f"eval_{self.args.metric_for_best_model}": next(scores)}

    monkeypatch.setattr(SurgeNetTrainer, "evaluate", scored)
    finetune(masks, tmp_path / "run")
    os.truncate(tmp_path / "run" / "checkpoint-9" / "optimizer.pt", 100)
    next(scores), next(scores)
    resume(masks, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-9" / "run.json").is_file()
