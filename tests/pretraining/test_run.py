"""Tests of what a pretraining run does and writes, as its users run it."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.cli.pretrain import main
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.pretraining import outputs
from surgenet_hf.pretraining import run as training
from surgenet_hf.pretraining.frames import loader
from tests.pretraining.running import (
    NUM_FRAMES,
    NUM_STEPS,
    SCRIPT,
    accuracies,
    arguments,
    assert_same_run,
    history,
    losses,
    pretrain,
    weights,
)
from tests.processes import run_group


def test_what_a_run_leaves(whole_run):
    entries = history(whole_run)
    assert [entry["step"] for entry in entries] == list(range(1, NUM_STEPS + 1))
    assert all(0 < entry["loss"] < 10 for entry in entries)
    assert [entry["skipped_steps"] for entry in entries] == [0] * NUM_STEPS
    assert [entry["step"] for entry in entries if "teacher_entropy" in entry] == [4, 8, 12]
    assert sorted(path.name for path in whole_run.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    assert (whole_run / "pretraining.png").read_bytes().startswith(b"\x89PNG")

    model = AutoModel.from_pretrained(whole_run / "model")
    assert type(model) is SurgeNetModel
    saved = weights(whole_run)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[f"teacher.backbone.{name}"])
    assert any(not torch.equal(t, saved[f"student.backbone.{n}"]) for n, t in model.state_dict().items())
    processor = AutoImageProcessor.from_pretrained(whole_run / "model")
    assert processor.image_mean == pytest.approx([0.46888983, 0.29536288, 0.28712815])
    assert "dino" in (whole_run / "model" / "README.md").read_text().lower()


@pytest.mark.slow
def test_two_processes_do_what_one_does(frames, tmp_path, capfd):
    """Test that two processes match one in frames, crops, steps, and, up to rounding, losses.

    The run is also interrupted. Another number of processes resumes at the start of the epoch, and its checkpoints
    replace those of later steps.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    more = f"--drop_path_rate 0 --max_steps 6 --knn_dataset csv --knn_data_dir {frames}"
    pretrain(frames, one, more)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    more += " --per_device_train_batch_size 2"
    part = arguments(frames, two, f"{more} --max_steps 5")  # it ends in mid-epoch
    subprocess.run([*torchrun, SCRIPT, *part], check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    run_group(2, pretrain, frames, two, f"{more} --resume_from_checkpoint true")
    found = {entry["step"]: entry for entry in accuracies(two)}
    assert [entry["epoch"] for entry in found.values()] == [0, 1, 1.25, 1.5]
    for expected in accuracies(one):
        assert found[expected["step"]] == pytest.approx(expected)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    found = weights(two, 6)
    for name, tensor in weights(one, 6).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    capfd.readouterr()

    pretrain(frames, two, "--drop_path_rate 0 --per_device_train_batch_size 2 --resume_from_checkpoint true")
    said = capfd.readouterr().out
    assert "It was written by 2 processes, but this run has 1" in said
    assert "at the start of epoch 1, now step 9" in said  # an epoch now has 9 steps


@pytest.mark.slow
def test_accumulated_steps_are_those_of_the_whole_batch(frames, tmp_path):
    pretrain(frames, tmp_path / "whole", "--drop_path_rate 0 --max_steps 5")
    halves = "--per_device_train_batch_size 2 --gradient_accumulation_steps 2"
    pretrain(frames, tmp_path / "halves", f"--drop_path_rate 0 --max_steps 5 {halves}")
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


@pytest.mark.slow
def test_crops_made_on_the_device_give_nearly_the_same(frames, tmp_path):
    for where in ("workers", "device"):
        pretrain(frames, tmp_path / where, f"--drop_path_rate 0 --max_steps 3 --crop_on {where}")
    assert losses(tmp_path / "device") == pytest.approx(losses(tmp_path / "workers"), rel=0.02)
    assert losses(tmp_path / "device") != losses(tmp_path / "workers")


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--bf16", "--bf16 --gradient_checkpointing", "--channels_last"])
def test_ways_to_save_time_or_memory(frames, whole_run, tmp_path, options):
    pretrain(frames, tmp_path, f"--max_steps 3 {options}")
    assert losses(tmp_path) == pytest.approx(losses(whole_run)[:3], rel=0.05)


def break_steps(monkeypatch, steps: range) -> None:
    """Make the pixels of these steps NaN."""
    normalize, calls = loader.normalize, itertools.count()

    def normalize_or_break(*args):
        factor = torch.nan if next(calls) in steps else 1
        return [crop * factor for crop in normalize(*args)]

    monkeypatch.setattr(loader, "normalize", normalize_or_break)


@pytest.mark.slow
def test_step_with_nan_is_left_out(frames, tmp_path, monkeypatch):
    break_steps(monkeypatch, range(5, 6))
    pretrain(frames, tmp_path)
    entries = history(tmp_path)
    assert [entry["skipped_steps"] for entry in entries] == [0] * 5 + [1] * 7
    assert [entry["loss"] is None for entry in entries] == [False] * 5 + [True] + [False] * 6
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


@pytest.mark.slow
def test_run_stops_when_all_is_nan(frames, tmp_path, monkeypatch):
    break_steps(monkeypatch, range(2, 1000))
    with pytest.raises(SystemExit, match="the last 10 steps up to 12 had non-finite gradients"):
        pretrain(frames, tmp_path)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, 8).values())


@pytest.mark.slow
def test_collapse_stops_the_run_after_the_warm_up(frames, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training.Monitor, "diagnose", lambda self, values: "collapsed to one point: ...")
    with pytest.raises(SystemExit, match=r"after step 8: collapsed to one point.*--ignore_collapse"):
        pretrain(frames, tmp_path / "stopped")
    pretrain(frames, tmp_path / "ignored", "--ignore_collapse")
    assert len(losses(tmp_path / "ignored")) == NUM_STEPS


@pytest.mark.slow
def test_broken_frames_are_replaced_counted_and_named(frames, tmp_path):
    broken = shutil.copytree(frames, tmp_path / "frames")
    (broken / "1_007.jpg").write_bytes(b"no picture")
    pretrain(broken, tmp_path / "run")
    assert history(tmp_path / "run")[-1]["unreadable_frames"] >= 2
    assert set((tmp_path / "run" / "unreadable_frames.txt").read_text().split()) == {str(broken / "1_007.jpg")}
    with pytest.raises(
        SystemExit,
        match=r"frames could not be read, more than --max_unreadable_fraction 0.0 allows.*in .*unreadable_frames",
    ):
        pretrain(broken, tmp_path / "strict", "--max_unreadable_fraction 0")


@pytest.mark.slow
def test_broken_frame_whose_name_is_no_text(frames, tmp_path):
    broken = shutil.copytree(frames, tmp_path / "frames")
    name = os.fsencode(broken / "1_") + b"\xff.jpg"
    Path(os.fsdecode(name)).write_bytes(b"no picture")
    pretrain(broken, tmp_path / "run", "--max_steps 4")
    assert set((tmp_path / "run" / "unreadable_frames.txt").read_bytes().splitlines()) <= {name}
    assert (tmp_path / "run" / "unreadable_frames.txt").stat().st_size


@pytest.mark.slow
def test_more_than_8_bits_are_not_taken_for_white(frames, tmp_path):
    deep = shutil.copytree(frames, tmp_path / "frames")
    Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(deep / "1_007.png")
    Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(deep / "1_007.tif")
    pretrain(deep, tmp_path / "run")
    said = (tmp_path / "run" / "unreadable_frames.txt").read_text().split()
    assert set(said) == {str(deep / "1_007.png"), str(deep / "1_007.tif")}


@pytest.mark.slow
def test_frames_of_short_epochs(frames, tmp_path, capsys):
    """Test that a run with short epochs reports the number of all frames, not of those in an epoch."""
    pretrain(frames, tmp_path, "--frames_per_epoch 8 --max_steps 2")
    assert AutoModel.from_pretrained(tmp_path / "model").config.pretraining["frames"] == NUM_FRAMES
    assert "18 frames" in capsys.readouterr().out


def test_fine_tuned_segmentation_is_no_start(frames, tmp_path, tiny_config):
    SurgeNetForSemanticSegmentation(tiny_config("caformer_s18")).save_pretrained(tmp_path / "model")
    args = [word for word in arguments(frames, tmp_path / "run") if word not in ("--backbone", "tiny")]
    with pytest.raises(SystemExit, match="fine-tuned for segmentation has no trained embedding"):
        main([*args, "--model_name_or_path", str(tmp_path / "model")])


@pytest.mark.slow
def test_backbone_by_name_or_folder(frames, tmp_path, whole_run):
    start = SurgeNetModel.from_pretrained(whole_run / "model")
    more = f"--model_name_or_path {whole_run / 'model'} --max_steps 1".split()
    args = [word for word in arguments(frames, tmp_path) if word not in ("--backbone", "tiny")]
    main([*args, *more])
    # the learning rate of the first step is 0, so student and teacher still have the start weights
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(weights(tmp_path, 1)[f"student.backbone.{name}"], tensor)


@pytest.mark.slow
def test_vision_transformer_from_a_folder(frames, tmp_path):
    """Test a whole run and an interrupted one of a vision transformer whose folder records its normalization only in
    the image processor.
    """
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 48}
    config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=0)
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "start")
    build_image_processor("imagenet", 48).save_pretrained(tmp_path / "start")

    def run(name, more=""):
        words = arguments(frames, tmp_path / name, f"--model_name_or_path {tmp_path / 'start'} {more}")
        main([word for word in words if word not in ("--backbone", "tiny")])

    run("whole", f"--knn_dataset csv --knn_data_dir {frames}")
    run("parts", "--max_steps 7")
    run("parts", "--resume_from_checkpoint true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [entry["epoch"] for entry in accuracies(tmp_path / "whole")] == [0, 1, 2, 3]
    assert "teacher_entropy" in history(tmp_path / "whole")[-1]

    model, saved = AutoModel.from_pretrained(tmp_path / "whole" / "model"), weights(tmp_path / "whole")
    assert type(model) is Dinov2WithRegistersModel
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[f"teacher.backbone.{name}"])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "whole" / "model")
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406])
    card = (tmp_path / "whole" / "model" / "README.md").read_text()
    assert "A ViT/16 backbone" in card
    assert "SurgeNetBackbone" not in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--per_device_train_batch_size 20", "an epoch has 18 frames, but one step of 1 processes takes 20"),
        ("--bf16 --fp16", "mutually exclusive"),
        ("--model_name_or_path SurgeNetXL", "--model_name_or_path and --backbone are mutually exclusive"),
        ("--extend_epochs 3", "--extend_epochs must be .*--resume_from_checkpoint"),
        ("--seed -1", "--seed must not be negative, got -1"),
        ("--epochs 0 --warmup_epochs 0", "epochs must be positive, got 0"),
        ("--clip_grad -3", "clip_grad must not be negative, got -3"),
        ("--lr -1", "lr must not be negative, got -1"),
        ("--drop_path_rate 1", r"--drop_path_rate must be in \[0, 1\), got 1"),
        ("--dataloader_num_workers -2", "--dataloader_num_workers must not be negative, got -2"),
        ("--max_steps 0", "--max_steps must be at least 1, or -1"),
        ("--save_steps 0", "--save_steps must be at least 1, got 0"),
        ("--warmup_epochs 9", r"warmup_epochs must be in \[0, epochs\], got 9 with 3"),
        ("--resume_from_checkpoint nowhere", "there is no such file or folder"),
        ("--knn_dataset nosuch", r"unknown dataset 'nosuch'. Available datasets: .*cholec80-phase"),
    ],
)
def test_options_that_cannot_be(frames, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        pretrain(frames, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_small_set_gets_a_hint(frames, tmp_path, capsys):
    pretrain(frames, tmp_path / "recipe", "--out_dim 65536 --max_steps 1")
    assert "--preset small often works better" in capsys.readouterr().out
    args = arguments(frames, tmp_path / "small", "--preset small --epochs 25 --max_steps 1")
    del args[args.index("--out_dim") : args.index("--out_dim") + 2]
    del args[args.index("--warmup_epochs") : args.index("--warmup_epochs") + 2]
    main(args)
    assert "--preset" not in capsys.readouterr().out
    assert weights(tmp_path / "small", 1)["loss.center"].shape == (1, 4096)


@pytest.mark.slow
def test_published_with_our_card(hub, client, frames, tmp_path):
    options = "--max_steps 4 --push_to_hub --hub_private_repo"
    with pytest.raises(SystemExit, match=r"(?s)org/my-dino was not published: .*403.*surgenet publish --model"):
        pretrain(frames, tmp_path / "my-dino", f"{options} --hub_model_id org/my-dino")
    pretrain(frames, tmp_path / "my-dino", f"{options} --resume_from_checkpoint true")
    repo = hub.repos["maintainer/my-dino"]
    assert repo.private
    assert {"model.safetensors", "modeling_surgenet.py", "preprocessor_config.json"} <= repo.files().keys()
    assert "DINO" in repo.files()["README.md"].decode()
    hub.fail("whoami", status=401)
    with pytest.raises(SystemExit, match="refuses the token"):
        pretrain(frames, tmp_path / "other", "--push_to_hub")
    assert not (tmp_path / "other").exists()


def test_cut_start_weights(frames, tmp_path, whole_run):
    folder = shutil.copytree(whole_run / "model", tmp_path / "model")
    os.truncate(folder / "model.safetensors", 5000)
    args = [word for word in arguments(frames, tmp_path / "run") if word not in ("--backbone", "tiny")]
    with pytest.raises(SystemExit, match=r"cannot be read .*: copy or download them again"):
        main([*args, "--model_name_or_path", str(folder)])


@pytest.mark.parametrize("workers", [0, 1])
def test_folder_without_a_single_good_frame(tmp_path, workers):
    broken = tmp_path / "broken"
    broken.mkdir()
    for number in range(8):
        (broken / f"{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="8 consecutive frames cannot be decoded"):
        pretrain(broken, tmp_path / "run", f"--dataloader_num_workers {workers}")


@pytest.mark.slow
def test_a_bug_keeps_its_traceback(frames, tmp_path, monkeypatch):
    """Test that a ValueError that is not a UserError keeps its traceback, since it is not a user's mistake."""

    def fail(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(training, "training_step", fail)
    with pytest.raises(ValueError, match="a bug") as found:
        pretrain(frames, tmp_path)
    assert found.traceback[-1].name == "fail"


@pytest.mark.slow
def test_the_options_are_saved_and_can_be_given_again(frames, tmp_path, caplog):
    pretrain(frames, tmp_path / "run", "--max_steps 1 --max_bad_fraction 0.5")
    assert "max_bad_fraction is now called max_unreadable_fraction" in caplog.text
    main(["--config", str(tmp_path / "run" / "run.yaml"), "--output_dir", str(tmp_path / "again")])
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_tracker_that_is_not_there(frames, tmp_path):
    with pytest.raises(SystemExit, match="--report_to nothing: not installed, or unknown to Accelerate"):
        pretrain(frames, tmp_path / "run", "--report_to nothing")


@pytest.mark.slow
def test_trackers_get_what_the_log_gets(frames, tmp_path, monkeypatch):
    logged = {}
    monkeypatch.setattr(training, "find_trackers", lambda names: [Tracker(logged)])
    pretrain(frames, tmp_path, "--max_steps 4")
    assert [logged[step]["loss"] for step in range(1, 5)] == losses(tmp_path)
    assert "teacher_entropy" in logged[4]


class Tracker(GeneralTracker):
    """Tracker that keeps what Accelerate logs."""

    name = "memory"
    requires_logging_directory = False

    def __init__(self, logged: dict):
        super().__init__()
        self.logged = logged

    @property
    def tracker(self):
        return self.logged

    def store_init_configuration(self, values: dict): ...

    def log(self, values: dict, step: int | None = None, **kwargs):
        self.logged.setdefault(step, {}).update(values)


@pytest.mark.slow
def test_the_teacher_that_knn_likes_best_stays(frames, tmp_path, monkeypatch):
    figures = iter([0.6, 0.5, 0.8, 0.7])  # for the start weights and three epochs
    monkeypatch.setattr(outputs, "knn_accuracy", lambda *a, **k: {"knn_accuracy": next(figures), "knn_chance": 0.5})
    pretrain(frames, tmp_path, f"--knn_dataset csv --knn_data_dir {frames}")
    best, last = (AutoModel.from_pretrained(tmp_path / name) for name in ("best_model", "model"))
    assert (best.config.pretraining["epoch"], last.config.pretraining["epoch"]) == (2, 3)
    assert best.config.pretraining["knn"]["knn_accuracy"] == 0.8
    assert any(not torch.equal(t, last.state_dict()[name]) for name, t in best.state_dict().items())
