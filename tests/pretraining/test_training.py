"""The pretraining script as its users run it, on a tiny network and small frames."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from surgenet_hf import SurgeNetModel
from surgenet_hf.data import synthetic
from surgenet_hf.pretraining import training
from tests.checkpoints.files import OriginalTraining, save_content, tiny
from tests.scripts import load_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_dino.py"

TINY = "--backbone tiny --out_dim 64 --hidden_dim 32 --bottleneck_dim 16 --drop_path_rate 0.3"
TINY += " --global_crops_size 48 --local_crops_size 32 --local_crops_number 1"
SHORT = "--epochs 3 --warmup_epochs 1 --per_device_train_batch_size 4 --logging_steps 1 --monitor_steps 3 --lr 0.05"
NUM_FRAMES, STEPS_PER_EPOCH, NUM_STEPS = 18, 4, 12  # batches of 4: two frames of an epoch are left out


@pytest.fixture(autouse=True)
def forget_accelerate():
    """Accelerate keeps the precision for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    labels = ["image,video,label"]
    for i in range(NUM_FRAMES):
        image, _ = synthetic.draw(0, i // 6, i % 6, (72, 96))
        Image.fromarray(image).save(folder / f"{i // 6}_{i:03}.jpg", quality=95)
        labels.append(f"{i // 6}_{i:03}.jpg,video{i // 6},{'ab'[i % 2]}")
    (folder / "labels.csv").write_text("\n".join(labels))
    return folder


def arguments(frames: Path, output_dir: Path, more: str = "") -> list[str]:
    return f"{TINY} {SHORT} --dataset folder --data_dir {frames} --output_dir {output_dir} {more}".split()


def pretrain(frames: Path, output_dir: Path, more: str = "") -> None:
    load_script("pretrain_dino").main(arguments(frames, output_dir, more))


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
    """The losses of all steps and the final weights and moments, bit for bit."""
    assert [entry["step"] for entry in history(second)] == list(range(1, NUM_STEPS + 1))
    assert losses(first) == losses(second)
    expected, found = weights(first), weights(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    moments = [torch.load(run / f"checkpoint-{NUM_STEPS}" / "optimizer.bin")["state"] for run in (first, second)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][i][name], moments[1][i][name]) for i in moments[0] for name in moments[0][i])


@pytest.fixture(scope="module")
def whole_run(frames, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(frames, output_dir)
    return output_dir


def test_what_a_run_leaves(whole_run):
    entries = history(whole_run)
    assert [entry["step"] for entry in entries] == list(range(1, NUM_STEPS + 1))
    assert all(0 < entry["loss"] < 10 for entry in entries)
    assert [entry["masked_steps"] for entry in entries] == [0] * NUM_STEPS
    assert [entry["step"] for entry in entries if "teacher_entropy" in entry] == [3, 4, 6, 8, 9, 12]
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


def test_finished_run_asked_again_writes_its_model_again(frames, whole_run, tmp_path):
    output_dir = shutil.copytree(whole_run, tmp_path / "copy")
    shutil.rmtree(output_dir / "model")
    pretrain(frames, output_dir, "--resume_from_checkpoint true --export_dino_checkpoint")
    assert_same_run(whole_run, output_dir)
    AutoModel.from_pretrained(output_dir / "model")
    assert (output_dir / "checkpoint0003.pth").is_file()


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_goes_on_bit_for_bit(frames, whole_run, tmp_path, workers):
    output_dir = tmp_path / "killed"
    more = f"--save_steps 2 --dataloader_num_workers {workers}"
    command = [sys.executable, SCRIPT, *arguments(frames, output_dir, more)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (output_dir / "checkpoint-6").is_dir():  # in the middle of the second epoch
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (output_dir / f"checkpoint-{NUM_STEPS}").exists()
    with pytest.raises(SystemExit, match="is from an earlier run: go on from it with --resume_from_checkpoint true"):
        pretrain(frames, output_dir)
    pretrain(frames, output_dir, f"{more} --resume_from_checkpoint true")
    assert_same_run(whole_run, output_dir)


def test_sigterm_saves_and_ends(frames, whole_run, tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "terminated"
    step = training.training_step

    def step_and_signal(*args, **kwargs):
        result = step(*args, **kwargs)
        if args[4] == 4:  # the fifth
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(training, "training_step", step_and_signal)
        with pytest.raises(SystemExit) as ended:
            pretrain(frames, output_dir)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "after step 5: go on with --resume_from_checkpoint true" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    pretrain(frames, output_dir, "--resume_from_checkpoint true")
    assert_same_run(whole_run, output_dir)


def test_full_disk_leaves_the_last_checkpoint(frames, whole_run, tmp_path, monkeypatch):
    output_dir = tmp_path / "full"
    save = training.save_checkpoint.__globals__["save_model"]

    def save_on_small_disk(model, path):
        if "checkpoint-8" in path:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(model, path)

    with monkeypatch.context() as patch:
        patch.setitem(training.save_checkpoint.__globals__, "save_model", save_on_small_disk)
        with pytest.raises(SystemExit, match=r"checkpoint-8 could not be written .*No space left.*checkpoint-4"):
            pretrain(frames, output_dir)
    assert [path.name for path in output_dir.glob("*checkpoint-*")] == ["checkpoint-4"]
    pretrain(frames, output_dir, "--resume_from_checkpoint true")
    assert_same_run(whole_run, output_dir)


def test_two_processes_do_what_one_does(frames, tmp_path, capfd):
    """The same frames, crops and steps, and losses up to rounding; and other processes go on at the epoch's start."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = f"--drop_path_rate 0 --max_steps 6 --knn_dataset csv --knn_data_dir {frames}"
    pretrain(frames, one, more)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, SCRIPT, *arguments(frames, two, f"{more} --per_device_train_batch_size 2")]
    subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert [entry["epoch"] for entry in accuracies(two)] == [0, 1, 1.5]
    for found, expected in zip(accuracies(two), accuracies(one), strict=True):
        assert found == pytest.approx(expected)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    found = weights(two, 6)
    for name, tensor in weights(one, 6).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    capfd.readouterr()

    pretrain(frames, two, "--drop_path_rate 0 --per_device_train_batch_size 2 --resume_from_checkpoint true")
    said = capfd.readouterr().out
    assert "It was written by 2 processes, these are 1" in said
    assert "from the start of epoch 1, now step 9" in said  # of 9 steps an epoch


def test_accumulated_steps_are_those_of_the_whole_batch(frames, tmp_path):
    pretrain(frames, tmp_path / "whole", "--drop_path_rate 0 --max_steps 5")
    halves = "--per_device_train_batch_size 2 --gradient_accumulation_steps 2"
    pretrain(frames, tmp_path / "halves", f"--drop_path_rate 0 --max_steps 5 {halves}")
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


def test_crops_made_on_the_device_give_nearly_the_same(frames, tmp_path):
    for where in ("workers", "device"):
        pretrain(frames, tmp_path / where, f"--drop_path_rate 0 --max_steps 3 --crop_on {where}")
    assert losses(tmp_path / "device") == pytest.approx(losses(tmp_path / "workers"), rel=0.02)
    assert losses(tmp_path / "device") != losses(tmp_path / "workers")


@pytest.mark.parametrize("options", ["--bf16", "--gradient_checkpointing", "--channels_last"])
def test_ways_to_save_time_or_memory(frames, whole_run, tmp_path, options):
    pretrain(frames, tmp_path, f"--max_steps 3 {options}")
    assert losses(tmp_path) == pytest.approx(losses(whole_run)[:3], rel=0.05)


def break_steps(monkeypatch, steps: range) -> None:
    """Make the pixels of these steps NaN."""
    normalize, calls = training.normalize, itertools.count()

    def normalize_or_break(*args):
        factor = torch.nan if next(calls) in steps else 1
        return [crop * factor for crop in normalize(*args)]

    monkeypatch.setattr(training, "normalize", normalize_or_break)


def test_step_with_nan_is_left_out(frames, tmp_path, monkeypatch):
    break_steps(monkeypatch, range(5, 6))
    pretrain(frames, tmp_path)
    entries = history(tmp_path)
    assert [entry["masked_steps"] for entry in entries] == [0] * 5 + [1] * 7
    assert [entry["loss"] is None for entry in entries] == [False] * 5 + [True] + [False] * 6
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_run_stops_when_all_is_nan(frames, tmp_path, monkeypatch):
    break_steps(monkeypatch, range(2, 1000))
    with pytest.raises(SystemExit, match="the last 10 steps up to 12 had gradients that are not finite"):
        pretrain(frames, tmp_path)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, 8).values())


def test_collapse_stops_the_run_after_the_warm_up(frames, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training.Monitor, "diagnose", lambda self, values: "collapsed to one point: ...")
    with pytest.raises(SystemExit, match=r"after step 6: collapsed to one point.*--ignore_collapse"):
        pretrain(frames, tmp_path / "stopped")
    pretrain(frames, tmp_path / "ignored", "--ignore_collapse")
    assert len(losses(tmp_path / "ignored")) == NUM_STEPS


def test_broken_frames_are_replaced_counted_and_named(frames, tmp_path):
    broken = shutil.copytree(frames, tmp_path / "frames")
    (broken / "1_007.jpg").write_bytes(b"no picture")
    pretrain(broken, tmp_path / "run")
    assert history(tmp_path / "run")[-1]["bad_frames"] >= 2
    assert set((tmp_path / "run" / "bad_frames.txt").read_text().split()) == {str(broken / "1_007.jpg")}
    with pytest.raises(
        SystemExit, match=r"frames could not be read, more than --max_bad_fraction 0.0: see .*bad_frames"
    ):
        pretrain(broken, tmp_path / "strict", "--max_bad_fraction 0")


def test_other_options_are_another_run(frames, whole_run):
    with pytest.raises(SystemExit, match=r"is of another run:\n- lr: 0.05 then, 0.1 now"):
        pretrain(frames, whole_run, "--resume_from_checkpoint true --lr 0.1")


def test_options_come_with_the_checkpoint(frames, whole_run, tmp_path):
    output_dir = shutil.copytree(whole_run, tmp_path / "copy")
    command = f"--dataset folder --data_dir {frames} --output_dir {output_dir} --resume_from_checkpoint true"
    load_script("pretrain_dino").main(command.split())
    assert_same_run(whole_run, output_dir)


def test_extended_run_lays_schedules_anew(frames, whole_run, tmp_path, capsys):
    more = f"--resume_from_checkpoint {whole_run / 'checkpoint-12'} --extend_epochs 2"
    pretrain(frames, tmp_path, more)
    assert "schedules are laid anew over 2 epochs" in capsys.readouterr().out
    entries = history(tmp_path)
    assert len(entries) == 2 * STEPS_PER_EPOCH
    assert entries[0]["lr"] == 0.0
    assert abs(entries[0]["loss"] - history(whole_run)[-1]["loss"]) < 1.0
    pretrain(frames, tmp_path, "--resume_from_checkpoint true --extend_epochs 2")  # and that run can go on, too


def test_backbone_by_name_or_folder(frames, tmp_path, whole_run):
    start = SurgeNetModel.from_pretrained(whole_run / "model")
    more = f"--model_name_or_path {whole_run / 'model'} --max_steps 1".split()
    args = [word for word in arguments(frames, tmp_path) if word not in ("--backbone", "tiny")]
    load_script("pretrain_dino").main([*args, *more])
    # the first step has a learning rate of 0: student and teacher are still the start
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(weights(tmp_path, 1)[f"student.backbone.{name}"], tensor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--per_device_train_batch_size 20", "an epoch has 18 frames, but one step of 1 processes takes 20"),
        ("--bf16 --fp16", "exclude each other"),
        ("--model_name_or_path SurgeNetXL", "--model_name_or_path and --backbone exclude each other"),
        ("--extend_epochs 3", "--extend_epochs needs .*--resume_from_checkpoint"),
        ("--save_steps 0", "--save_steps must be at least 1, got 0"),
        ("--warmup_epochs 9", r"warmup_epochs must be in \[0, epochs\], got 9 of 3"),
        ("--resume_from_checkpoint nowhere", "there is no such file or folder"),
    ],
)
def test_options_that_cannot_be(frames, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        pretrain(frames, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_small_set_gets_a_hint(frames, tmp_path, capsys):
    pretrain(frames, tmp_path / "recipe", "--out_dim 65536 --max_steps 1")
    assert "--preset small often learns more" in capsys.readouterr().out
    args = arguments(frames, tmp_path / "small", "--preset small --epochs 25 --max_steps 1")
    del args[args.index("--out_dim") : args.index("--out_dim") + 2]
    del args[args.index("--warmup_epochs") : args.index("--warmup_epochs") + 2]
    load_script("pretrain_dino").main(args)
    assert "--preset" not in capsys.readouterr().out
    assert weights(tmp_path / "small", 1)["loss.center"].shape == (1, 4096)


@pytest.fixture
def authors_file(tmp_path) -> Path:
    """A full DINO checkpoint of the authors' layout after two of four epochs, of a tiny network."""
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
    load_script("pretrain_dino").main([*command.split(), "--resume_from_checkpoint", str(file)])


def test_authors_checkpoint_goes_on_at_its_epoch(frames, authors_file, tmp_path, capsys):
    go_on(frames, tmp_path / "run", authors_file, "--export_dino_checkpoint")
    said = capsys.readouterr().out
    assert "student and teacher, backbone and head" in said
    assert "moments of the optimiser for" in said
    entries = history(tmp_path / "run")
    assert [entry["step"] for entry in entries] == list(range(9, 17))  # epochs 2 and 3, of 4 steps each
    assert entries[0]["lr"] == pytest.approx(0.75 * 0.01 * 4 / 256, rel=0.01)  # a third of the cosine
    assert (tmp_path / "run" / "checkpoint0004.pth").is_file()
    with pytest.raises(SystemExit, match=r"at the end of its 4 epochs; lay new schedules with --extend_epochs"):
        go_on(frames, tmp_path / "more", tmp_path / "run" / "checkpoint0004.pth")
    go_on(frames, tmp_path / "more", tmp_path / "run" / "checkpoint0004.pth", "--extend_epochs 2")
    assert [entry["step"] for entry in history(tmp_path / "more")] == list(range(1, 9))
    pretraining = AutoModel.from_pretrained(tmp_path / "more" / "model").config.pretraining
    assert pretraining["name"] == f"unknown, continued on {frames.name}, continued on {frames.name}"


def test_other_head_than_the_checkpoints_is_refused(frames, authors_file, tmp_path):
    with pytest.raises(SystemExit, match="out_dim"):
        go_on(frames, tmp_path / "run", authors_file, "--out_dim 64")


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_resume_by_replay(frames, tmp_path, workers):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for path in sorted(frames.glob("*.jpg"))[9 * number : 9 * (number + 1)]:
                shard.add(path, path.name)
    options = f"--dataset shards --data_dir {tmp_path} --streaming --frames_per_epoch 16 --shuffle_buffer 4"
    options += f" --dataloader_num_workers {workers} --save_steps 3"
    pretrain(frames, tmp_path / "whole", options)
    pretrain(frames, tmp_path / "parts", f"{options} --max_steps 7")
    pretrain(frames, tmp_path / "parts", f"{options} --resume_from_checkpoint true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_published_with_our_card(hub, client, frames, tmp_path):
    options = "--max_steps 4 --push_to_hub --hub_private_repo"
    with pytest.raises(
        SystemExit, match=r"(?s)org/my-dino was not published: .*403.*--resume_from_checkpoint true tries"
    ):
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


def test_tracker_that_is_not_there(frames, tmp_path):
    with pytest.raises(SystemExit, match="--report_to nothing: not installed, or unknown to Accelerate"):
        pretrain(frames, tmp_path / "run", "--report_to nothing")


def test_trackers_get_what_the_log_gets(frames, tmp_path, monkeypatch):
    logged = {}
    monkeypatch.setattr(training, "find_trackers", lambda names: [Tracker(logged)])
    pretrain(frames, tmp_path, "--max_steps 4")
    assert [logged[step]["loss"] for step in range(1, 5)] == losses(tmp_path)
    assert "teacher_entropy" in logged[3]


class Tracker(GeneralTracker):
    """Keeps what Accelerate logs."""

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
