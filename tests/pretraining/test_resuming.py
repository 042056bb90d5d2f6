"""Tests of resuming runs that were killed, stopped, or finished, and of resuming from full DINO checkpoints."""

import json
import os
import random
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from surgenet_hf.checkpointing import lock_run
from surgenet_hf.cli.pretrain import main, parse_arguments
from surgenet_hf.errors import UserError
from surgenet_hf.pretraining import run as training
from surgenet_hf.pretraining import state
from surgenet_hf.pretraining.history import History
from tests.checkpoints.files import OriginalTraining, save_content, tiny
from tests.pretraining.running import (
    STEPS_PER_EPOCH,
    arguments,
    assert_same_run,
    history,
    pretrain,
    weights,
)
from tests.processes import exit_code


@pytest.mark.slow
def test_finished_run_asked_again_writes_its_model_again(frames, whole_run, tmp_path):
    output_dir = shutil.copytree(whole_run, tmp_path / "copy")
    shutil.rmtree(output_dir / "model")
    pretrain(frames, output_dir, "--resume_from_checkpoint true --export_dino_checkpoint")
    assert_same_run(whole_run, output_dir)
    AutoModel.from_pretrained(output_dir / "model")
    assert (output_dir / "checkpoint0003.pth").is_file()


def pretrain_and_die(*args) -> None:
    add = History.add

    def die(history, entry):
        if entry["step"] == 7:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        add(history, entry)

    History.add = die
    pretrain(*args)


@pytest.mark.slow
def test_killed_run_goes_on_bit_for_bit(frames, whole_run, tmp_path):
    output_dir = tmp_path / "killed"
    more = "--save_steps 2 --dataloader_num_workers 2"
    assert exit_code(pretrain_and_die, frames, output_dir, more) == -signal.SIGKILL
    assert (output_dir / "checkpoint-6").is_dir()
    with pytest.raises(SystemExit, match="is from an earlier run: resume it with --resume_from_checkpoint true"):
        pretrain(frames, output_dir)
    pretrain(frames, output_dir, f"{more} --resume_from_checkpoint true")
    assert_same_run(whole_run, output_dir)


@pytest.mark.slow
def test_sigterm_saves_and_ends(frames, whole_run, tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "terminated"
    add = History.add

    def add_and_signal(history, entry):
        add(history, entry)
        if entry["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(History, "add", add_and_signal)
        with pytest.raises(SystemExit) as ended:
            pretrain(frames, output_dir)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "after step 5: resume with --resume_from_checkpoint true" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    pretrain(frames, output_dir, "--resume_from_checkpoint true")
    assert_same_run(whole_run, output_dir)


@pytest.mark.slow
def test_full_disk_leaves_the_last_checkpoint(frames, whole_run, tmp_path, monkeypatch):
    output_dir = tmp_path / "full"
    save = state.save_model

    def save_on_small_disk(model, path):
        if "checkpoint-8" in path:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(model, path)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_model", save_on_small_disk)
        with pytest.raises(SystemExit, match=r"checkpoint-8 could not be written .*No space left.*checkpoint-4"):
            pretrain(frames, output_dir)
    assert [path.name for path in output_dir.glob("*checkpoint-*")] == ["checkpoint-4"]
    pretrain(frames, output_dir, "--resume_from_checkpoint true")
    assert_same_run(whole_run, output_dir)


def test_other_options_are_another_run(frames, whole_run):
    with pytest.raises(SystemExit, match=r"is from another run:\n- lr: 0.05 in the checkpoint, 0.1 now"):
        pretrain(frames, whole_run, "--resume_from_checkpoint true --lr 0.1")


@pytest.mark.slow
def test_options_come_with_the_checkpoint(frames, whole_run, tmp_path):
    """Test that the checkpoint provides the options, including drop path and batch size.

    The parser also accepts the spelling --resume-from-checkpoint, which must have the same effect.
    """
    output_dir = tmp_path / "run"
    pretrain(frames, output_dir, "--max_steps 5")
    command = f"--dataset folder --data_dir {frames} --output-dir {output_dir} --resume-from-checkpoint true"
    main([*command.split(), "--logging_steps", "1"])
    assert_same_run(whole_run, output_dir)


@pytest.mark.slow
def test_run_that_goes_on_from_an_earlier_checkpoint_replaces_the_later_ones(frames, whole_run, tmp_path):
    """Test that a run resumed from an earlier checkpoint replaces the later ones.

    Otherwise the last checkpoint would belong to the former run, and rotation would delete the new ones.
    """
    output_dir = shutil.copytree(whole_run, tmp_path / "copy")
    kept = shutil.copytree(output_dir / "checkpoint-8", output_dir / "checkpoint-8-kept")
    pretrain(frames, output_dir, f"--resume_from_checkpoint {output_dir}/checkpoint-8 --save_steps 1 --max_steps 10")
    assert sorted(path.name for path in output_dir.glob("*checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-8-kept",
        "checkpoint-9",
    ]
    assert (kept / "run.json").is_file()
    pretrain(frames, output_dir, "--resume_from_checkpoint true")
    assert_same_run(whole_run, output_dir)


def test_checkpoint_of_another_backbone_is_refused(frames, whole_run, tmp_path):
    more = f"--resume_from_checkpoint {whole_run / 'checkpoint-12'} --extend_epochs 1 --backbone caformer_s18"
    with pytest.raises(
        SystemExit, match=r"contains a caformer_s18 with widths \[32, .* is a caformer_s18 with .*64, "
    ):
        pretrain(frames, tmp_path / "run", more)


def test_damaged_checkpoint_and_one_of_other_sizes_are_refused(frames, whole_run, tmp_path):
    cut = shutil.copytree(whole_run / "checkpoint-12", tmp_path / "checkpoint-12")
    with pytest.raises(SystemExit, match="contains a model of a different size"):
        pretrain(frames, tmp_path / "run", f"--resume_from_checkpoint {cut} --extend_epochs 1 --out_dim 48")
    for name in ("optimizer.bin", "model.safetensors", "run.json"):
        os.truncate(cut / name, 500)
        with pytest.raises(SystemExit, match=f"{name} is damaged"):
            pretrain(frames, tmp_path / "run", f"--resume_from_checkpoint {cut} --extend_epochs 1")
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_an_earlier_version_is_refused(frames, whole_run, tmp_path):
    checkpoint = shutil.copytree(whole_run / "checkpoint-12", tmp_path / "run" / "checkpoint-12")
    record = json.loads((checkpoint / "run.json").read_text())
    record["start"]["statistics"] = record["start"].pop("normalization")
    (checkpoint / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"was written by an earlier version .*--model_name_or_path"):
        pretrain(frames, tmp_path / "run", "--resume_from_checkpoint true")


def test_finished_run_of_another_folder_leaves_its_model(frames, whole_run, tmp_path):
    pretrain(frames, tmp_path, f"--resume_from_checkpoint {whole_run / 'checkpoint-12'}")
    assert type(AutoModel.from_pretrained(tmp_path / "model")).__name__ == "SurgeNetModel"


@pytest.mark.slow
def test_extended_run_lays_schedules_anew(frames, whole_run, tmp_path, capsys):
    more = f"--resume_from_checkpoint {whole_run / 'checkpoint-12'} --extend_epochs 2"
    pretrain(frames, tmp_path, more)
    assert "New schedules over 2 epochs" in capsys.readouterr().out
    entries = history(tmp_path)
    assert len(entries) == 2 * STEPS_PER_EPOCH
    assert entries[0]["lr"] == 0.0
    assert abs(entries[0]["loss"] - history(whole_run)[-1]["loss"]) < 1.0
    # the extended run can also be resumed
    pretrain(frames, tmp_path, "--resume_from_checkpoint true --extend_epochs 2")


@pytest.mark.slow
def test_moments_are_laid_out_as_the_weights_are(frames, whole_run, tmp_path):
    """Test that the moments of a checkpoint are converted to the memory layout of the weights, such as channels-last.

    The fused AdamW reads weights and moments in memory order, so both must have the same layout.
    """
    more = f"--resume_from_checkpoint {whole_run / 'checkpoint-12'} --extend_epochs 1 --warmup_epochs 0 --max_steps 1"
    for folder, layout in (("plain", ""), ("last", "--channels_last")):
        pretrain(frames, tmp_path / folder, f"{more} {layout} --drop_path_rate 0")
    expected, found = (weights(tmp_path / folder, 1) for folder in ("plain", "last"))
    for name, weight in weights(whole_run).items():
        step = expected[name] - weight
        torch.testing.assert_close(found[name] - weight, step, rtol=0.05, atol=1e-6 + 0.02 * step.abs().max().item())


def test_nothing_to_extend(frames, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"--extend_epochs: there is no checkpoint in .*; name one with"):
        pretrain(frames, tmp_path / "run", "--resume_from_checkpoint true --extend_epochs 2")
    pretrain(frames, tmp_path / "run", "--resume_from_checkpoint true --max_steps 1")
    assert "There is no checkpoint in" in capsys.readouterr().out


@pytest.mark.slow
def test_other_frames_are_another_run(frames, whole_run, tmp_path):
    moved, others = shutil.copytree(frames, tmp_path / "moved"), shutil.copytree(frames, tmp_path / "others")
    (others / "1_007.jpg").rename(others / "1_107.jpg")
    pixels = shutil.copytree(frames, tmp_path / "pixels")
    shutil.copy(pixels / "1_008.jpg", pixels / "1_007.jpg")  # other pixels under the same names
    output_dir = shutil.copytree(whole_run, tmp_path / "run")
    pretrain(moved, output_dir, "--resume_from_checkpoint true")
    for folder in (others, pixels):
        with pytest.raises(SystemExit, match=r"is from another run:\n- frames: .*'data'"):
            pretrain(folder, output_dir, "--resume_from_checkpoint true")


@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_is_used_and_reported(frames, whole_run, tmp_path, caplog):
    output_dir = shutil.copytree(whole_run, tmp_path / "run")
    os.truncate(output_dir / "checkpoint-12" / "optimizer.bin", 500)
    pretrain(frames, output_dir, "--resume_from_checkpoint true")
    assert "Skipping checkpoint-12" in caplog.text
    assert "optimizer.bin is damaged" in caplog.text
    assert_same_run(whole_run, output_dir)


def test_a_second_run_in_the_same_folder_is_refused(frames, tmp_path):
    with lock_run(tmp_path / "run"), pytest.raises(SystemExit, match="another run is writing to"):
        pretrain(frames, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_that_ended_since_the_start_is_not_overwritten(frames, whole_run, tmp_path):
    """Test that a run does not overwrite another run that ended in its folder after it was started.

    The checkpoint to resume from is chosen before the folder is locked.
    """
    _, options = parse_arguments(arguments(frames, tmp_path / "run", "--resume_from_checkpoint true"))
    waiting = training.Pretraining(*options)
    shutil.copytree(whole_run, tmp_path / "run")
    with pytest.raises(UserError, match=r"another run has just ended in .*run: start this one again"):
        waiting.train()
    assert weights(tmp_path / "run").keys() == weights(whole_run).keys()


@pytest.mark.slow
def test_epoch_of_an_export_after_max_steps(frames, whole_run, tmp_path):
    output_dir = shutil.copytree(whole_run, tmp_path / "run")
    pretrain(frames, output_dir, "--resume_from_checkpoint true --max_steps 3 --export_dino_checkpoint")
    assert [path.name for path in output_dir.glob("*.pth")] == ["checkpoint0003.pth"]


@pytest.fixture
def authors_file(tmp_path) -> Path:
    """Return a full DINO checkpoint of a tiny network in the authors' layout, after two of four epochs."""
    original = OriginalTraining(tiny())
    original.step(original.gradients(0))
    statistics = {"data_mean": [0.46888983, 0.29536288, 0.28712815], "data_std": [0.24689102, 0.21034359, 0.21188641]}
    args = {
        "epochs": 4,
        "warmup_epochs": 1,
        "lr": 0.01,
        "local_crops_number": 1,
        "norm_last_layer": True,
        **statistics,
    }
    save_content(tmp_path / "checkpoint0002.pth", original.content(epoch=2, **args))
    return tmp_path / "checkpoint0002.pth"


def go_on(frames: Path, output_dir: Path, file: Path, more: str = "") -> None:
    sizes = "--global_crops_size 48 --local_crops_size 32 --per_device_train_batch_size 4 --logging_steps 1"
    command = f"--dataset folder --data_dir {frames} --output_dir {output_dir} {sizes} {more}"
    main([*command.split(), "--resume_from_checkpoint", str(file)])


@pytest.mark.slow
def test_authors_checkpoint_goes_on_at_its_epoch(frames, authors_file, tmp_path, capsys):
    go_on(frames, tmp_path / "run", authors_file, "--export_dino_checkpoint")
    said = capsys.readouterr().out
    assert "student and teacher, backbone and head" in said
    assert "moments of the optimizer for" in said
    entries = history(tmp_path / "run")
    assert [entry["step"] for entry in entries] == list(range(9, 17))  # epochs 2 and 3 (from 0), of 4 steps each
    assert entries[0]["lr"] == pytest.approx(0.75 * 0.01 * 4 / 256, rel=0.01)  # after a third of the cosine
    assert (tmp_path / "run" / "checkpoint0004.pth").is_file()
    with pytest.raises(SystemExit, match=r"at the end of its 4 epochs; start new schedules with --extend_epochs"):
        go_on(frames, tmp_path / "more", tmp_path / "run" / "checkpoint0004.pth")
    go_on(frames, tmp_path / "more", tmp_path / "run" / "checkpoint0004.pth", "--extend_epochs 2")
    assert [entry["step"] for entry in history(tmp_path / "more")] == list(range(1, 9))
    rates = [entry["lr"] for entry in history(tmp_path / "more")]
    assert rates[0] == pytest.approx(0.01 * 4 / 256)  # no warm-up: that of the file would take half of this run
    assert rates == sorted(rates, reverse=True)
    pretraining = AutoModel.from_pretrained(tmp_path / "more" / "model").config.pretraining
    assert pretraining["name"] == f"unknown, continued on {frames.name}, continued on {frames.name}"


def test_other_head_than_the_checkpoints_is_refused(frames, authors_file, tmp_path):
    with pytest.raises(SystemExit, match="out_dim"):
        go_on(frames, tmp_path / "run", authors_file, "--out_dim 64")


@pytest.mark.slow
def test_streams_resume_by_replay(frames, tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for path in sorted(frames.glob("*.jpg"))[9 * number : 9 * (number + 1)]:
                shard.add(path, path.name)
    options = f"--dataset shards --data_dir {tmp_path} --streaming --frames_per_epoch 16 --shuffle_buffer 4"
    options += " --dataloader_num_workers 2 --save_steps 3"
    pretrain(frames, tmp_path / "whole", options)
    pretrain(frames, tmp_path / "parts", f"{options} --max_steps 7")
    pretrain(frames, tmp_path / "parts", f"{options} --resume_from_checkpoint true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_draws_do_not_depend_on_global_state(frames, whole_run, tmp_path, monkeypatch):
    step = training.training_step

    def step_and_draw(*args, **kwargs):
        result = step(*args, **kwargs)
        torch.rand(5), np.random.rand(5), random.random()
        return result

    monkeypatch.setattr(training, "training_step", step_and_draw)
    pretrain(frames, tmp_path)
    assert_same_run(whole_run, tmp_path)
