import dataclasses
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from surgenet_hf import SurgeNetModel
from surgenet_hf.checkpoints import catalog
from surgenet_hf.checkpoints.catalog import find_entry
from surgenet_hf.cli import quickstart
from surgenet_hf.data import load_data
from surgenet_hf.evaluation.evaluate import evaluate
from tests.checkpoints.files import original, tiny

TINY = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--image_size", "32"]


@pytest.fixture(scope="module")
def run(masks, tmp_path_factory):
    """Return the output folder of one run on the frames."""
    output_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        quickstart.main(["--dataset", "folder", "--data_dir", str(masks), "--output_dir", str(output_dir), *TINY])
    return output_dir


def test_model_results_and_picture(run, masks):
    assert sorted(path.name for path in run.glob("[!.]*")) == ["model", "results.json", "run.yaml", "segmentation.png"]
    picture = Image.open(run / "segmentation.png")
    assert min(picture.size) > 500
    results = json.loads((run / "results.json").read_text())
    assert set(results["comparisons"]) == {"majority_class", "before_training"}
    assert results["metrics"] != results["comparisons"]["before_training"]

    model = AutoModelForSemanticSegmentation.from_pretrained(run / "model")
    processor = AutoImageProcessor.from_pretrained(run / "model")
    again = evaluate(model, processor, load_data("folder", masks)).results
    assert again["metrics"]["video_dice"] == pytest.approx(results["metrics"]["video_dice"], abs=1e-3)
    assert again["data"]["frames"] == results["data"]["frames"] == 3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_the_report_says_what_to_do_next(run, masks, tmp_path, capsys):
    quickstart.main(["--dataset", "folder", "--data_dir", str(masks), "--output_dir", str(tmp_path), *TINY])
    results = [json.loads((folder / "results.json").read_text())["metrics"] for folder in (run, tmp_path)]
    assert results[0] == results[1]

    out = capsys.readouterr().out
    (fallback,) = [line for line in out.splitlines() if "SurgeNetXL could not" in line]
    assert "a small, randomly initialized model" in fallback
    header = next(line for line in out.splitlines() if "majority class" in line)
    assert header.split() == ["majority", "class", "before", "after"]
    for label in ("background", "liver", "instrument", "mean"):
        assert any(line.startswith(label) for line in out.splitlines())
    for written in ("model", "results.json", "segmentation.png"):
        assert str(tmp_path / written) in out
    assert out.index("Written") < out.index("Next")


@pytest.mark.slow
def test_goes_on_from_its_own_model(run, masks, tmp_path, capsys):
    arguments = ["--dataset", "folder", "--data_dir", str(masks), "--output_dir", str(tmp_path), *TINY]
    quickstart.main([*arguments, "--model_name_or_path", str(run / "model"), "--learning_rate", "1e-5"])
    before = json.loads((tmp_path / "results.json").read_text())["comparisons"]["before_training"]
    assert before == json.loads((run / "results.json").read_text())["metrics"]
    assert "randomly initialized" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "folder"], "needs data_dir"),
        (["--dataset", "endoscapes", "--data_dir", "/no/such/folder"], "/no/such/folder"),
        (["--dataset", "folder", "--data_dir", "FRAMES", "--model_name_or_path", "no/model"], "no/model"),
        (["--dataset", "folder", "--data_dir", "FRAMES", "--model_name_or_path", "/no/model"], "/no/model"),
    ],
)
def test_what_the_user_can_mend_is_said_without_traceback(arguments, message, masks, tmp_path, capsys):
    arguments = [str(masks) if argument == "FRAMES" else argument for argument in arguments]
    with pytest.raises(SystemExit) as exit_info:
        quickstart.main([*arguments, "--output_dir", str(tmp_path)])
    assert message in str(exit_info.value.code)
    assert "randomly initialized" not in capsys.readouterr().out  # a model that the user named never falls back


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", __file__], "is a file"),
        (["--model_name_or_path", "a", "--backbone", "pvt_v2_b2"], "exclude each other"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        quickstart.main(arguments)


def test_a_full_size_backbone_by_name():
    config = quickstart.choose_source(quickstart.QuickstartArguments(backbone="convnextv2_tiny"))
    assert config.backbone == "convnextv2_tiny"
    assert config.hidden_sizes == [96, 192, 384, 768]


@pytest.fixture
def upstream(hub, client, tiny_backbones, monkeypatch):
    """Return a stand-in for the authors' repository with a tiny SurgeNetXL."""
    entry = find_entry("SurgeNetXL")
    content = io.BytesIO()
    torch.save(original(SurgeNetModel, tiny()), content)
    hub.add_files(entry.upstream_repo, {entry.teacher_file: content.getvalue()})
    changed = dataclasses.replace(entry, teacher_sha256=hashlib.sha256(content.getvalue()).hexdigest())
    entries = tuple(changed if other is entry else other for other in catalog.CATALOG)
    monkeypatch.setattr(catalog, "CATALOG", entries)
    return hub


def test_the_default_is_the_authors_surgenetxl(upstream, capsys):
    default = quickstart.QuickstartArguments()
    folder = quickstart.choose_source(default)
    assert SurgeNetModel.from_pretrained(folder).config.pretraining["name"] == "SurgeNetXL"
    assert quickstart.choose_source(quickstart.QuickstartArguments(model_name_or_path="surgenet-xl")) == folder
    # later calls use the cache when the Hub is unavailable
    upstream.fail(".*", status=503, times=math.inf)
    assert quickstart.choose_source(default) == folder
    assert capsys.readouterr().out == ""


def test_without_the_hub_it_says_so_in_one_line(upstream, capsys):
    upstream.fail(".*", status=404, times=math.inf)
    assert quickstart.choose_source(quickstart.QuickstartArguments()).hidden_sizes[0] == 32
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert len(upstream.requests) == 1  # a single probe
    with pytest.raises(OSError):  # noqa: PT011 (a name that the user typed never falls back)
        quickstart.choose_source(quickstart.QuickstartArguments(model_name_or_path="SurgeNetXL"))


def test_no_stage_of_the_probe_takes_longer_than_its_timeout(monkeypatch):
    # a name resolver without a timeout can block this long
    answer = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: answer.wait(60))
    assert quickstart.probe_hub("someone/model", timeout=0.2) == "no answer within 0.2 s"
    answer.set()


@pytest.mark.slow
def test_as_a_user_runs_it(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "surgenet_hf.cli.quickstart", "--output_dir", tmp_path / "out", *TINY]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert "OfflineModeIsEnabled" in finished.stdout
    assert "Traceback" not in finished.stderr
    assert "3/3" in finished.stderr  # the progress bar
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["name"] == "synthetic"
    assert results["command"].startswith("surgenet quickstart ")
