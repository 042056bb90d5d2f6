from pathlib import Path

import pytest
from PIL import Image

from surgenet_hf.cli import show_data
from surgenet_hf.data import dataset_names
from surgenet_hf.data.sets import folder, synthetic


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    synthetic.load(root, num_videos=3, frames_per_video=2, size=(48, 64))
    return next(root.iterdir())


def test_figure_and_output(frames, tmp_path, capsys, rendered_figures):
    output = tmp_path / "new" / "picture.png"
    show_data.main(["--dataset", "folder", "--data_dir", str(frames), "--output", str(output)])
    printed = capsys.readouterr().out
    assert printed.startswith("Found 4 training frames of 2 video(s)")
    assert printed.endswith(f"Written: {output}\n")
    assert min(Image.open(output).size) > 500


def test_split_and_default_output(frames, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    show_data.main(["--dataset", "folder", "--data_dir", str(frames), "--split", "validation", "--num_frames", "1"])
    assert Path("outputs/folder_validation.png").exists()
    assert "Written: outputs/folder_validation.png" in capsys.readouterr().out


def test_classification_sets_are_drawn_too(frames, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("surgenet_hf.data.load_data", lambda *args: asked.append(args) or folder.load(frames))
    output = tmp_path / "picture.png"
    show_data.main(["--dataset", "autolaparo", "--data_dir", "D", "--output", str(output)])
    assert asked == [("autolaparo", "D")]
    assert output.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cholecseg8k", "--data_dir", "nowhere"], r"kaggle\.com.*nowhere does not exist"),
        (["--dataset", "cholecseg8k"], r"--data_dir is missing.*https://www\.kaggle\.com.*video01_00080/"),
        (["--dataset", "dsad", "--data_dir", "nowhere"], r"figshare.*nowhere does not exist"),
        (["--dataset", "synthetic", "--output", f"{__file__}/picture.png"], r"--output: .* is a file"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        show_data.main(arguments)


def test_split_that_is_not_there(frames):
    with pytest.raises(SystemExit, match="error: the dataset 'folder' has no split 'test'; it has train, validation"):
        show_data.main(["--dataset", "folder", "--data_dir", str(frames), "--split", "test"])


def test_output_that_is_no_picture(frames, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*txt"):
        show_data.main(["--dataset", "folder", "--data_dir", str(frames), "--output", str(tmp_path / "picture.txt")])


def test_data_that_is_there_but_wrong_is_not_to_be_downloaded_again(frames, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name, ending in (("images", "jpg"), ("masks", "png")):
        Image.new("L", (8, 8)).save(tmp_path / name / f"a_1.{ending}")
    with pytest.raises(SystemExit) as error:
        show_data.main(["--dataset", "folder", "--data_dir", str(tmp_path)])
    assert "contains a single video" in str(error.value)


def test_unknown_names_are_told_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        show_data.main(["--dataset", "cholecseg"])
    assert "cholecseg8k" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", [name for name in dataset_names() if not name.startswith("synthetic")])
def test_every_dataset_describes_its_layout(dataset):
    with pytest.raises(
        SystemExit, match=rf"(?s)--data_dir is missing; give the folder of {dataset}\n\n[A-Z].*\n    \S"
    ) as error:
        show_data.main(["--dataset", dataset])
    assert str(error.value).count("kaggle.com") <= 1
