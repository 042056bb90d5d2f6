import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from surgenet_hf import SurgeNetForSemanticSegmentation
from surgenet_hf.checkpoints.catalog import NORMALIZATIONS
from surgenet_hf.cli.publish import main
from surgenet_hf.image_processing import build_image_processor
from tests.checkpoints.files import tiny


@pytest.fixture
def model(tmp_path):
    SurgeNetForSemanticSegmentation(tiny()).save_pretrained(tmp_path / "model")
    build_image_processor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code, "".join(capsys.readouterr())


def test_own_model(hub, client, model, capsys):
    code, printed = run(["--model", model, "--repo_id", "maintainer/mine", "--push"], capsys)
    assert not code
    assert "commit" in printed
    assert hub.token not in printed
    assert "model.safetensors" in hub.repos["maintainer/mine"].files()


def test_without_push_it_only_shows(hub, client, model, capsys):
    code, printed = run(["--model", model, "--repo_id", "maintainer/mine"], capsys)
    assert not code
    assert "new model.safetensors" in printed
    assert "6 files" in printed
    assert not hub.repos
    assert not [request for request in hub.requests if request.method != "GET"]


@pytest.mark.slow
def test_a_dry_run_works_offline(model, tmp_path, capsys, monkeypatch):
    """Test a dry run without network.

    The folder is complete and the omitted comparison is reported. An upload must fail.
    """
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    arguments = ["--model", model, "--repo_id", "me/mine", "--output_dir", str(tmp_path / "out")]
    code, printed = run(arguments, capsys)
    assert not code, printed
    assert "prepared model.safetensors" in printed
    assert "me/mine: not compared with the Hub: the Hub cannot be reached" in printed
    assert "6 files prepared, not compared with the Hub" in printed
    assert "# mine" in (tmp_path / "out" / "mine" / "README.md").read_text()
    code, printed = run([*arguments, "--push"], capsys)
    assert code
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # skip pauses between the client's retries
    without_pauses = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", without_pauses)
    monkeypatch.setattr("surgenet_hf.publishing.upload.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    code, printed = run(arguments, capsys)
    assert not code, printed
    assert "not compared with the Hub: the Hub cannot be reached" in printed


def test_the_output_folder_of_a_run_is_published(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Path(model).rename(tmp_path / "model")
    code, printed = run(["--model", str(tmp_path), "--repo_id", "me/mine"], capsys)
    assert not code, printed
    assert "prepared model.safetensors" in printed


def test_weights_that_cannot_be_downloaded_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    code, printed = run(["--names", "SurgeNet-RAMIE"], capsys)
    assert code == 1
    assert (
        "the weights of SurgeNet-RAMIE cannot be downloaded: the Hub cannot be reached or refuses the request"
        in printed
    )
    assert "does not contain RAMIE_checkpoint_epoch0050_teacher.pth of TimJaspersTue/SurgeNetModels" in printed


def test_a_folder_without_image_processor_gets_that_of_its_config(model, tmp_path, capsys):
    """Test that a folder without an image processor gets one from its config.

    A folder that does not record the normalization is refused.
    """
    Path(model, "preprocessor_config.json").unlink()
    arguments = ["--model", model, "--repo_id", "me/mine", "--output_dir", str(tmp_path / "out")]
    code, printed = run(arguments, capsys)
    assert code == 1
    assert "does not record the normalization" in printed
    SurgeNetForSemanticSegmentation(tiny(pretraining={"name": "x", "normalization": "imagenet"})).save_pretrained(
        model
    )
    code, printed = run(arguments, capsys)
    assert not code
    saved = json.loads((tmp_path / "out" / "mine" / "preprocessor_config.json").read_text())
    assert saved["image_mean"] == list(NORMALIZATIONS["imagenet"][0])


def test_failures_show_in_table_and_exit_code(hub, client, capsys):
    code, printed = run(["--names", "SurgeNet-RAMIE,RARP"], capsys)
    assert code == 1
    assert printed.count("FAILED") == 2
    assert "surgenet/surgenet-rarp" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --names or --model"),
        (["--model", "m", "--repo_id", "no-namespace"], "give --model and --repo_id ORG/NAME together"),
        (["--names", "SurgeNetQ"], "did you mean"),
        (["--names", "SurgeNet-RAMIE", "--push"], "hf auth login"),
    ],
)
def test_bad_arguments(arguments, message, hub, client, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    code, printed = run(arguments, capsys)
    assert message in f"{code}{printed}"
    assert not hub.repos
