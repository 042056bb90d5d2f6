import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from surgenet_hf.data import dataset_names
from surgenet_hf.data.sets import folder, synthetic
from tests.cli import load_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "show_data.py"
script = load_script("show_data")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    synthetic.load(root, num_videos=3, frames_per_video=2, size=(48, 64))
    return next(root.iterdir())


def test_as_a_user_would(frames, tmp_path):
    output = tmp_path / "new" / "picture.png"
    command = [sys.executable, SCRIPT, "--dataset", "folder", "--data_dir", frames, "--output", output]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("Found 4 frames of 2 videos to train on")
    assert run.stdout.endswith(f"Written: {output}\n")
    assert min(Image.open(output).size) > 500


def test_split_and_default_output(frames, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script.main(["--dataset", "folder", "--data_dir", str(frames), "--split", "validation", "--num_frames", "1"])
    assert Path("outputs/folder_validation.png").exists()
    assert "Written: outputs/folder_validation.png" in capsys.readouterr().out


def test_classification_sets_are_drawn_too(frames, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(script, "load_data", lambda *args: asked.append(args) or folder.load(frames))
    output = tmp_path / "picture.png"
    script.main(["--dataset", "autolaparo", "--data_dir", "D", "--output", str(output)])
    assert asked == [("autolaparo", "D")]
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cholecseg8k", "--data_dir", "nowhere"], r"nowhere does not exist.*\nWhere .*kaggle\.com"),
        (["--dataset", "cholecseg8k"], r"needs data_dir.*\nWhere to get cholecseg8k: https://www\.kaggle\.com"),
        (["--dataset", "dsad", "--data_dir", "nowhere"], r"nowhere does not exist.*\nWhere to get dsad: figshare"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        script.main(arguments)


def test_split_that_is_not_there(frames):
    with pytest.raises(SystemExit, match="error: the dataset 'folder' has no split 'test'; it has train, validation"):
        script.main(["--dataset", "folder", "--data_dir", str(frames), "--split", "test"])


def test_output_that_is_no_picture(frames, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*txt"):
        script.main(["--dataset", "folder", "--data_dir", str(frames), "--output", str(tmp_path / "picture.txt")])


def test_data_that_is_there_but_wrong_is_not_to_be_downloaded_again(frames, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name, ending in (("images", "jpg"), ("masks", "png")):
        Image.new("L", (8, 8)).save(tmp_path / name / f"a_1.{ending}")
    with pytest.raises(SystemExit) as error:
        script.main(["--dataset", "folder", "--data_dir", str(tmp_path)])
    assert "holds a single video" in str(error.value)
    assert "Where to get" not in str(error.value)


def test_unknown_names_are_told_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        script.main(["--dataset", "cholecseg"])
    assert "cholecseg8k" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", dataset_names())
def test_every_set_says_where_it_is_to_be_had(dataset):
    assert script.where_to_get(dataset).startswith(f"Where to get {dataset}: ")
