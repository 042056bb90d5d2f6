import subprocess
import sys
from pathlib import Path

import pytest

from surgenet_hf import SurgeNetForSemanticSegmentation
from surgenet_hf.checkpoints.conversion import build_image_processor
from tests.checkpoints.files import tiny
from tests.scripts import load_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "publish_checkpoints.py"
main = load_script("publish_checkpoints").main


@pytest.fixture
def model(tmp_path):
    SurgeNetForSemanticSegmentation(tiny()).save_pretrained(tmp_path / "model")
    build_image_processor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code, "".join(capsys.readouterr())


def test_own_model_as_a_user_would(hub, model, tmp_path):
    command = [sys.executable, SCRIPT, "--model", model, "--repo_id", "maintainer/mine", "--push"]
    finished = subprocess.run(command, env=hub.environment(tmp_path / "home"), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "commit" in finished.stdout
    assert hub.token not in finished.stdout + finished.stderr
    assert "model.safetensors" in hub.repos["maintainer/mine"].files()


def test_without_push_it_only_shows(hub, client, model, capsys):
    code, printed = run(["--model", model, "--repo_id", "maintainer/mine"], capsys)
    assert not code
    assert "new model.safetensors" in printed
    assert "6 files" in printed
    assert not hub.repos
    assert not [request for request in hub.requests if request.method != "GET"]


def test_failures_show_in_table_and_exit_code(hub, client, capsys):
    code, printed = run(["--names", "SurgeNet-RAMIE,RARP"], capsys)
    assert code == 1
    assert printed.count("FAILED") == 2
    assert "surgenet/surgenet-rarp" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --names or --model"),
        (["--model", "m", "--repo_id", "no-namespace"], "go together"),
        (["--names", "SurgeNetQ"], "did you mean"),
        (["--names", "SurgeNet-RAMIE", "--push"], "hf auth login"),
    ],
)
def test_bad_arguments(arguments, message, hub, client, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    code, printed = run(arguments, capsys)
    assert message in f"{code}{printed}"
    assert not hub.repos
