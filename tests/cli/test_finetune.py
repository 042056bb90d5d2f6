"""Tests of the three fine-tuning commands and evaluate_model on datasets of a few frames."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from surgenet_hf import SurgeNetForImageClassification, SurgeNetModel
from surgenet_hf.checkpoints.catalog import NORMALIZATIONS
from surgenet_hf.cli.evaluate import main as evaluate_model
from surgenet_hf.cli.finetune_classification import main as finetune_classification
from surgenet_hf.cli.finetune_phase import main as finetune_phase
from surgenet_hf.cli.finetune_segmentation import main as finetune_segmentation
from surgenet_hf.data import dataset_names
from surgenet_hf.data.sets.cholec80 import PHASES
from surgenet_hf.image_processing import build_image_processor
from tests.checkpoints.files import tiny
from tests.finetuning import running
from tests.processes import run_group

COMMON = "--backbone tiny --image_size 32 --per_device_train_batch_size 2 --max_steps 2 --disable_tqdm true".split()


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """Return a folder of five videos with 12 frames each, in which color identifies the three phases."""
    root = tmp_path_factory.mktemp("phases")
    (root / "phases").mkdir()
    for video in "abcde":
        (root / "frames" / video).mkdir(parents=True)
        labels = np.repeat([0, 1, 2], [3, 5, 4])
        for i, phase in enumerate(labels):
            pixels = np.zeros((32, 48, 3), np.uint8)
            pixels[..., phase] = 200
            Image.fromarray(pixels).save(root / "frames" / video / f"{i:06d}.jpg")
        rows = "".join(f"{i}\t{'abc'[phase]}\n" for i, phase in enumerate(labels))
        (root / "phases" / f"{video}.txt").write_text("Frame\tPhase\n" + rows)
    return root


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_segmentation_and_evaluation(masks, tmp_path, capsys, rendered_figures):
    options = "--class_weights balanced --loss cross_entropy+dice --layer_decay 0.8 --augmentation strong".split()
    data = ["--dataset", "folder", "--data_dir", str(masks)]
    finetune_segmentation([*COMMON, *data, *options, "--output_dir", str(tmp_path / "out"), "--seed", "3"])
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model", "results.json", "per_class.png", "per_class.pdf"} <= written
    assert min(Image.open(tmp_path / "out" / "segmentation.png").size) > 500
    assert (tmp_path / "out" / "segmentation.pdf").read_bytes().startswith(b"%PDF")
    results = results_of(tmp_path / "out")
    assert results["seed"] == 3
    assert results["data"]["split"] == "validation"
    selected = "1 of 1 videos were used to select its checkpoint (matched by name), so the result is optimistic"
    assert results["data"]["leakage"] == selected  # the random weights saw no other data
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out" / "model")

    model = ["--model_name_or_path", str(tmp_path / "out" / "model")]
    evaluate_model([*model, *data, "--output_dir", str(tmp_path / "again")])
    assert "folder has no test split: evaluating on validation" in capsys.readouterr().out
    again = results_of(tmp_path / "again")
    for key in ("metrics", "intervals", "bootstrap", "per_video", "seed"):
        assert again[key] == results[key]
    assert again["data"]["leakage"] == selected
    model += ["--split", "train"]
    evaluate_model([*model, *data, "--background_class", "liver", "--output_dir", str(tmp_path / "train")])
    leakage = results_of(tmp_path / "train")["data"]["leakage"]
    assert leakage == "2 of 2 videos were used to train this model (matched by name)"
    with pytest.raises(SystemExit, match="no class 'spleen'"):
        evaluate_model([*model, *data, "--background_class", "spleen", "--output_dir", str(tmp_path / "none")])


@pytest.mark.slow
def test_training_again_keeps_the_record_of_the_first_training(masks, labeled, tmp_path):
    data = ["--dataset", "csv", "--data_dir", str(labeled)]
    no_selection = ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    finetune_classification([*COMMON, *data, *no_selection, "--output_dir", str(tmp_path / "one")])
    assert results_of(tmp_path / "one")["data"]["leakage"] is None  # the validation split selected no checkpoint
    start = ["--model_name_or_path", str(tmp_path / "one" / "model")]
    data = ["--dataset", "folder", "--data_dir", str(masks)]
    finetune_segmentation([*start, *COMMON[2:], *data, "--output_dir", str(tmp_path / "two")])
    record = AutoConfig.from_pretrained(tmp_path / "two" / "model").finetuning
    assert [(run["dataset"], len(run["train_videos"]), len(run["selection_videos"])) for run in record] == [
        ("csv", 4, 0),
        ("folder", 2, 1),
    ]


@pytest.mark.slow
def test_cholec80_without_validation_videos(tmp_path, capsys):
    for number in (1, 2, 41):
        frames = tmp_path / "data" / "frames" / f"video{number:02d}"
        frames.mkdir(parents=True)
        for i in range(7):
            Image.new("RGB", (48, 32), (30 * i, 0, 0)).save(frames / f"{i:06d}.jpg")
        path = tmp_path / "data" / "phase_annotations" / f"video{number:02d}-phase.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("Frame\tPhase\n" + "".join(f"{25 * i}\t{name}\n" for i, name in enumerate(PHASES)))
    data = ["--dataset", "cholec80-phase", "--data_dir", str(tmp_path / "data"), "--split_protocol", "40/40"]
    options = [*COMMON, *data, "--output_dir", str(tmp_path / "out")]
    for finetune in (finetune_classification, finetune_phase):
        with pytest.raises(SystemExit, match=r"no validation videos.*40/40.*32/8/40 or 40/8/32.*--eval_strategy no"):
            finetune(options)
    assert not (tmp_path / "out").exists()

    finetune_phase([*options, "--tcn_epochs", "2", "--eval_strategy", "no", "--load_best_model_at_end", "false"])
    results = results_of(tmp_path / "out")
    assert (results["data"]["split"], results["data"]["videos"]) == ("test", ["video41"])
    assert results["data"]["leakage"] is None
    (run,) = AutoModel.from_pretrained(tmp_path / "out" / "model").config.finetuning
    assert run == {
        "dataset": "cholec80-phase",
        "split_protocol": "40/40 (train 1-40, test 41-80)",
        "train_videos": ["cholec80:video01", "cholec80:video02"],
        "selection_videos": [],
    }


@pytest.mark.slow
def test_classification(labeled, tmp_path, rendered_figures):
    data = ["--dataset", "csv", "--data_dir", str(labeled)]
    options = ["--class_weights", "balanced", "--freeze_backbone"]
    finetune_classification([*COMMON, *data, *options, "--output_dir", str(tmp_path)])
    assert results_of(tmp_path)["task"] == "image-classification"
    assert "mean_average_precision" in results_of(tmp_path)["metrics"]
    assert results_of(tmp_path)["training"]["mode"] == "frozen backbone"
    assert min(Image.open(tmp_path / "precision_recall.png").size) > 500
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert model.config.problem_type == "multi_label_classification"
    assert list(model.config.id2label.values()) == ["C1", "C2"]


@pytest.mark.slow
def test_phase_in_two_stages(phases, tmp_path, capsys, rendered_figures):
    data = ["--dataset", "videos", "--data_dir", str(phases)]
    options = ["--tcn_epochs", "2", "--class_weights", "balanced", "--output_dir", str(tmp_path / "out")]
    finetune_phase([*COMMON, *data, *options])
    logged = re.findall(r"'loss': '?[\d.e-]+'?,.*'epoch': '?(\d+)'?\}", capsys.readouterr().out)
    assert logged == ["1", "2"]  # stage 2 logs once per epoch; stage 1 logs every 10 steps and has only 2
    for folder in (tmp_path / "out", tmp_path / "out" / "stage1"):
        assert results_of(folder)["task"] == "phase-recognition"
        assert min(Image.open(folder / "phases.png").size) > 100
    written = {path.name for path in (tmp_path / "out" / "stage2").iterdir()}
    assert not {"model", "results.json", "phases.png"} & written
    assert results_of(tmp_path / "out")["model"]["name"] == str(tmp_path / "out" / "model")
    model = AutoModel.from_pretrained(tmp_path / "out" / "model")
    assert type(model).__name__ == "SurgeNetForPhaseRecognition"
    assert list(model.config.id2label.values()) == ["a", "b", "c"]
    assert (model.config.smoothing_weight, model.config.stage_reduction) == (0.15, "mean")
    last = max((tmp_path / "out" / "stage2").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns)
    groups = torch.load(last / "optimizer.pt")["param_groups"]
    assert {group["lr"] for group in groups} == {7e-4}  # constant to the end
    assert {group["weight_decay"] for group in groups} == {1e-4, 0.0}

    # evaluate_model finds the model in the output folder and computes the same metrics
    model = ["--model_name_or_path", str(tmp_path / "out"), "--split", "validation"]
    evaluate_model([*model, *data, "--output_dir", str(tmp_path / "again")])
    assert results_of(tmp_path / "again")["metrics"] == results_of(tmp_path / "out")["metrics"]
    assert results_of(tmp_path / "again")["seed"] == 42

    # a rerun is refused; a run killed in stage 2 resumes with stage 1 and the features, and gives the same result
    with pytest.raises(SystemExit, match="earlier run"):
        finetune_phase([*COMMON, *data, *options])
    with pytest.raises(SystemExit, match=r"stage1 is from another run:\n- seed: 42 in the checkpoint, 1 now"):
        finetune_phase([*COMMON, *data, *options, "--resume_from_checkpoint", "true", "--seed", "1"])
    expected = results_of(tmp_path / "out")["metrics"]
    stage1 = (tmp_path / "out" / "stage1" / "results.json").stat().st_mtime_ns

    def lose(*names):
        for name in names:
            path = tmp_path / "out" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    lose("model", "results.json", "stage2")
    finetune_phase([*COMMON, *data, *options, "--resume_from_checkpoint", "true"])
    assert (tmp_path / "out" / "stage1" / "results.json").stat().st_mtime_ns == stage1
    assert results_of(tmp_path / "out")["metrics"] == expected

    # a run killed after the first epoch of stage 2, and one killed in stage 1
    last = max((tmp_path / "out" / "stage2").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    lose("model", "results.json", f"stage2/{last.name}")
    with pytest.raises(SystemExit, match="earlier run"):
        finetune_phase([*COMMON, *data, *options])
    finetune_phase([*COMMON, *data, *options, "--resume_from_checkpoint", "true"])
    assert results_of(tmp_path / "out")["metrics"] == expected
    lose("model", "results.json", "stage2", "stage1/model", "stage1/results.json")
    finetune_phase([*COMMON, *data, *options, "--resume_from_checkpoint", "true"])
    assert results_of(tmp_path / "out")["metrics"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset folder --output_dir {tmp}/o --backbone tiny", "needs data_dir"),
        ("--dataset nothing --output_dir {tmp}/o --backbone tiny", "unknown dataset"),
        ("--dataset endoscapes-cvs --output_dir {tmp}/o --backbone tiny", "use surgenet finetune-classification"),
        ("--dataset cholec80-phase --output_dir {tmp}/o --backbone tiny", "use surgenet finetune-phase"),
        ("--dataset synthetic --output_dir {tmp}/o", "either --model_name_or_path or --backbone"),
        ("--dataset synthetic --backbone tiny", "--output_dir is missing"),
        ("--output_dir {tmp}/o --backbone tiny", "--dataset is missing"),
        ("--dataset folder --data_dir {masks} --output_dir {tmp}/o --model_name_or_path SurgeNetQ", "did you mean"),
        ("--dataset folder --data_dir {masks} --output_dir {tmp}/o --backbone tiny --layer_decay 2", "layer_decay"),
    ],
)
def test_what_the_user_can_mend(arguments, message, masks, tmp_path):
    with pytest.raises(SystemExit, match=message):
        finetune_segmentation(arguments.format(tmp=tmp_path, masks=masks).split())
    assert not (tmp_path / "o").exists()


def test_segmentation_data_are_refused_by_the_other_tasks(tmp_path):
    for main in (finetune_classification, finetune_phase):
        with pytest.raises(SystemExit, match=r"endoscapes is a dataset for .*: use surgenet finetune-segmentation"):
            main(["--dataset", "endoscapes", "--backbone", "tiny", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("main", [finetune_segmentation, finetune_classification, finetune_phase, evaluate_model])
def test_help(main, capsys):
    """Test that the help lists each option once and names every dataset."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--output_dir OUTPUT_DIR" in text
    assert "--output-dir" not in text
    listed = re.findall(r"^  (?:-\w, )?(--\w+)", text, re.MULTILINE)
    assert len(listed) == len(set(listed)) > 5
    for name in dataset_names():
        assert name in text.replace("\n", "").replace(" ", "")


@pytest.mark.slow
def test_training_starts_from_a_folder_without_image_processor(masks, tmp_path, caplog, capsys):
    """Test that a folder without an image processor uses the normalization of its config.

    Without a recorded normalization the run ends. One line names the new head, another the duration.
    """
    data = ["--dataset", "folder", "--data_dir", str(masks), "--image_size", "32", "--num_train_epochs", "9"]
    common = [*data, "--per_device_train_batch_size", "4", "--disable_tqdm", "true"]
    model = SurgeNetModel(tiny(pretraining={"name": "x", "normalization": "imagenet"}))
    model.save_pretrained(tmp_path / "known")
    start = ["--model_name_or_path", str(tmp_path / "known"), "--output_dir", str(tmp_path / "out")]
    finetune_segmentation([*common, *start])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out" / "model")
    assert list(processor.image_mean) == list(NORMALIZATIONS["imagenet"][0])
    assert processor.size["height"] == 32
    assert "Rebuilt it from config.json" in caplog.text
    assert "Initialized with random weights: decode_head." in caplog.text
    printed = capsys.readouterr()
    assert "LOAD REPORT" not in caplog.text + printed.err
    assert re.search(r"Training will take about \d+ s, not counting evaluations: 11 of 18 steps are left", printed.out)

    model.config.pretraining = None
    model.save_pretrained(tmp_path / "unknown")
    with pytest.raises(SystemExit, match=r"does not record the normalization.*expected one of surgenet, imagenet"):
        finetune_segmentation(
            [*common, "--model_name_or_path", str(tmp_path / "unknown"), "--output_dir", str(tmp_path / "other")]
        )


@pytest.mark.slow
def test_two_processes(masks, tmp_path):
    """Test that 2 processes train together and give the metrics of one process."""
    data = ["--dataset", "folder", "--data_dir", str(masks)]
    run_group(2, running.finetune_segmentation, [*COMMON, *data, "--output_dir", str(tmp_path / "out")], tmp_path)
    assert sum((tmp_path / f"{rank}.txt").read_text().count("Written to") for rank in range(2)) == 1
    model = ["--model_name_or_path", str(tmp_path / "out" / "model"), "--split", "validation"]
    evaluate_model([*model, *data, "--output_dir", str(tmp_path / "again")])
    one, two = results_of(tmp_path / "again"), results_of(tmp_path / "out")
    assert one["metrics"] == two["metrics"]
    assert one["bootstrap"] == two["bootstrap"]
    assert AutoConfig.from_pretrained(tmp_path / "out" / "model").pretraining["name"].startswith("none")


@pytest.mark.slow
def test_pushed_with_our_card(hub, client, phases, tmp_path):
    """Test that a push uploads the phase model in one commit.

    The frame classifier of stage 1 is not uploaded. A missing token raises an error before training.
    """
    data = ["--dataset", "videos", "--data_dir", str(phases), "--tcn_epochs", "1"]
    push = ["--push_to_hub", "true", "--hub_private_repo", "true"]
    finetune_phase([*COMMON, *data, *push, "--output_dir", str(tmp_path / "my-phases")])
    assert hub.repos.keys() == {"maintainer/my-phases"}
    repo = hub.repos["maintainer/my-phases"]
    assert repo.private
    assert len(repo.commits) == 2
    assert {"model.safetensors", "modeling_surgenet_phase.py", "results.json"} <= repo.files().keys()
    card = repo.files()["README.md"].decode()
    assert "| F1 |" in card
    assert "model(frames[None]).logits" in card

    hub.fail("whoami", status=401)
    with pytest.raises(SystemExit, match="error"):
        finetune_phase([*COMMON, *data, *push, "--output_dir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_refused_upload_says_how_to_try_again(hub, client, masks, tmp_path):
    data = ["--dataset", "folder", "--data_dir", str(masks), "--output_dir", str(tmp_path / "o")]
    again = rf"--model {tmp_path / 'o' / 'model'} --repo_id org/x --push$"
    with pytest.raises(SystemExit, match=rf"(?s)^error: org/x was not published: .*403.*{again}"):
        finetune_segmentation([*COMMON, *data, "--push_to_hub", "true", "--hub_model_id", "org/x"])
    assert (tmp_path / "o" / "model" / "model.safetensors").exists()
    assert (tmp_path / "o" / "results.json").exists()


def test_evaluation_refuses_what_would_mislead(masks, labeled, phases, tmp_path):
    """Test that evaluation refuses a backbone without a trained head and mismatched classes or problem types."""
    SurgeNetModel(tiny()).save_pretrained(tmp_path / "backbone")
    csv_data = ["--dataset", "csv", "--data_dir", str(labeled), "--output_dir", str(tmp_path / "o")]
    with pytest.raises(SystemExit, match="no trained head"):
        evaluate_model(["--model_name_or_path", str(tmp_path / "backbone"), *csv_data])
    config = tiny(num_labels=2)
    config.id2label = {0: "other", 1: "names"}
    SurgeNetForImageClassification(config).save_pretrained(tmp_path / "head")
    build_image_processor(image_size=32).save_pretrained(tmp_path / "head")
    with pytest.raises(SystemExit, match=r"classes are \['other', 'names'\]"):
        evaluate_model(["--model_name_or_path", str(tmp_path / "head"), *csv_data, "--split", "validation"])
    config.id2label = {0: "C1", 1: "C2"}
    config.problem_type = "single_label_classification"  # its softmax scores would be read as those of several labels
    SurgeNetForImageClassification(config).save_pretrained(tmp_path / "head")
    with pytest.raises(SystemExit, match="trained for single_label_classification"):
        evaluate_model(["--model_name_or_path", str(tmp_path / "head"), *csv_data, "--split", "validation"])
    for option in (["--output_dir", f"{__file__}/results"], ["--per_device_eval_batch_size", "0"]):
        with pytest.raises(SystemExit, match=f"error: {option[0]} .*(is a file|got 0)"):
            evaluate_model(["--model_name_or_path", str(tmp_path / "head"), *csv_data, *option])
    with pytest.raises(SystemExit, match="has no option split_protocol"):
        evaluate_model(["--model_name_or_path", str(tmp_path / "head"), *csv_data, "--split_protocol", "x"])


@pytest.mark.slow
def test_the_second_stage_is_not_resumed_with_another_frame_model(phases, tmp_path):
    common = [*COMMON, "--dataset", "videos", "--data_dir", str(phases)]
    for seed in (0, 1):
        finetune_phase([*common, "--tcn_epochs", "1", "--seed", str(seed), "--output_dir", str(tmp_path / f"{seed}")])
    out = ["--skip_stage1", "--tcn_epochs", "1", "--output_dir", str(tmp_path / "out")]
    common = ["--dataset", "videos", "--data_dir", str(phases), "--image_size", "32", "--disable_tqdm", "true", *out]
    finetune_phase([*common, "--model_name_or_path", str(tmp_path / "0" / "stage1" / "model")])
    (tmp_path / "out" / "results.json").unlink()  # the run was killed before its end
    with pytest.raises(SystemExit, match=r"is from another run:\n- frame_model: "):
        finetune_phase(
            [
                *common,
                *("--model_name_or_path", str(tmp_path / "1" / "stage1" / "model")),
                *("--resume_from_checkpoint", "true"),
            ]
        )


def test_help_begins_with_what_the_script_does(monkeypatch, capsys):
    script = str(Path(__file__).parents[2] / "scripts" / "finetune_phase.py")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert "Fine-tune a model for" in printed
    assert "Differences from the authors' code" in printed
