import json

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.cli.compare import main
from surgenet_hf.evaluation.statistics import student_interval


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return a folder of results of three models on eight videos with three metrics.

    The first model has two seeds.
    """
    root = tmp_path_factory.mktemp("outputs")
    rng = np.random.default_rng(0)
    videos = [f"v{i}" for i in range(8)]
    for model, seed, skill in (("XL", 0, 0.7), ("XL", 1, 0.72), ("Public", 0, 0.6), ("ImageNet", 0, 0.5)):
        scales = {"video_dice": skill, "video_assd": 20 * (1 - skill), "video_hd95": 50 * (1 - skill)}
        per_video = {
            video: {
                name: value * (1 + (i - 3.5) / 100 + (model == "Public") * rng.normal(0, 0.1) * (i % 2 - 0.5))
                for name, value in scales.items()
            }
            for i, video in enumerate(videos)
        }
        values = {name: [per_video[video][name] for video in videos] for name in scales}
        results = {
            "schema": "surgenet_hf.results/2",
            "task": "semantic-segmentation",
            "model": {
                "name": f"runs/{model}-seed{seed}/model",
                "type": "s",
                "parameters": 1,
                "pretraining": {"name": model},
            },
            "seed": seed,
            "data": {"name": "dsad", "split": "test", "frames": 9, "videos": videos, "labels": ["x"], "notes": []},
            "metrics": {name: float(np.mean(of_videos)) for name, of_videos in values.items()},
            "intervals": {name: vars(student_interval(of_videos)) for name, of_videos in values.items()},
            "per_video": per_video,
        }
        folder = root / f"{model}-seed{seed}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results))
    return root


METRICS = ["--metrics", "video_dice", "video_assd", "video_hd95"]


@pytest.mark.slow
def test_tables_and_figures(outputs, tmp_path, capsys, rendered_figures):
    main(["--results", *map(str, sorted(outputs.iterdir())), "--output_dir", str(tmp_path / "new"), *METRICS])
    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert written == ["blobs.pdf", "blobs.png", "comparison.md", "radar.pdf", "radar.png", "run.yaml"]
    for name in ("blobs", "radar"):
        picture = np.asarray(Image.open(tmp_path / "new" / f"{name}.png").convert("RGB"))
        assert min(picture.shape[:2]) > 1000
        assert len(np.unique(picture.reshape(-1, 3)[::7], axis=0)) > 20
    text = (tmp_path / "new" / "comparison.md").read_text(encoding="utf-8")
    assert "| XL | **71.0** ± 1.4 (2 runs) [" in text
    assert "] n = 8, rough" in text
    assert "| dsad, test: Dice, % | XL | ImageNet | +21.0 | 8 | 0.0078 | 0.0234 | XL is better |" in text
    printed = capsys.readouterr().out
    assert "| XL | **71.0**" in printed
    assert "| XL is better |" in printed
    assert str(tmp_path / "new" / "radar.pdf") in printed
    assert "Left out" not in printed


def test_what_cannot_be_drawn_is_said(outputs, tmp_path, capsys, rendered_figures):
    main(["--results", str(outputs / "XL-seed0"), "--output_dir", str(tmp_path), "--label_by", "pretraining"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.md", "run.yaml"]
    assert "## Pairs" not in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "radar: needs at least two models" in capsys.readouterr().out

    main(["--results", str(outputs), "--output_dir", str(tmp_path), "--metrics", "video_hd95"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs.pdf", "blobs.png", "comparison.md", "run.yaml"]


def test_columns_with_different_numbers_of_draws_share_a_blob_chart(outputs, tmp_path, rendered_figures):
    """Test a blob chart of columns with different numbers of bootstrap draws.

    Values per video give 10,000 draws, whereas stored draws can be fewer.
    """
    for i, model in enumerate(("Public", "ImageNet")):
        results = json.loads((outputs / f"{model}-seed0" / "results.json").read_text())
        results["metrics"]["pooled_dice"] = 0.5
        results["bootstrap"] = {"pooled_dice": [0.4 + i / 10, None, 0.6]}
        (tmp_path / model).mkdir()
        (tmp_path / model / "results.json").write_text(json.dumps(results))
    main(["--results", str(tmp_path), "--output_dir", str(tmp_path), "--metrics", "video_dice", "pooled_dice"])
    assert (tmp_path / "blobs.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "/no/such/folder"], "/no/such/folder"),
        (["--results", __file__], "is not JSON"),
        (["--results", "OUTPUTS", "--metrics", "speed"], "No results file has the metric 'speed'"),
        (["--results", "OUTPUTS", "--output_dir", __file__], "cannot be written to"),
    ],
)
def test_errors_without_traceback(outputs, tmp_path, arguments, message):
    arguments = [str(outputs) if argument == "OUTPUTS" else argument for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        main(["--output_dir", str(tmp_path), *arguments])
    assert message in str(caught.value.code)


@pytest.mark.slow
def test_default_output_folder(outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["--results", str(outputs / "XL-seed0"), str(outputs / "XL-seed1")])
    assert "| XL | 71.0 ± 1.4 (2 runs) [" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "comparison" / "comparison.md").is_file()
