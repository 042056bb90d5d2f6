import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.cli import plot_embeddings
from surgenet_hf.data import load_data
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference import embeddings
from tests.checkpoints.files import tiny


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Return a folder of frames and masks: 3 videos with 4 frames each."""
    root = tmp_path_factory.mktemp("frames")
    load_data("synthetic", root, num_videos=3, frames_per_video=4, size=(32, 48))
    return next(root.iterdir())


@pytest.fixture(scope="module")
def model(tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "model"
    torch.manual_seed(0)
    SurgeNetModel(tiny_config()).save_pretrained(path)
    build_image_processor(image_size=32).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def outputs(frames, model, tmp_path_factory):
    """Return the output folder of a call on 9 of the 12 frames."""
    output_dir = tmp_path_factory.mktemp("outputs")
    arguments = ["--dataset", "folder", "--data_dir", str(frames), "--color_by", "video", "--max_frames", "9"]
    plot_embeddings.main(["--model_name_or_path", str(model), *arguments, "--output_dir", str(output_dir)])
    return output_dir


@pytest.mark.slow
def test_figures_and_embeddings(outputs, frames, model):
    written = sorted(path.name for path in outputs.iterdir())
    assert written == ["embeddings.npz", "features.pdf", "features.png", "run.yaml", "tsne.pdf", "tsne.png"]
    for name in ("tsne", "features"):
        picture = np.asarray(Image.open(outputs / f"{name}.png").convert("RGB"))
        assert picture.shape[1] == 2160
        assert len(np.unique(picture.reshape(-1, 3)[::7], axis=0)) > 20
    saved = np.load(outputs / "embeddings.npz")
    assert saved["embeddings"].shape == (9, 64)
    assert len(set(saved["video"])) == 3
    assert set(saved["dataset"]) == {"folder"}
    assert str(saved["model"]) == model.parent.name  # the folder name "model" is not informative
    # the first embedding belongs to the first frame
    row = load_data("folder", frames).splits["train"][0]
    inputs = AutoImageProcessor.from_pretrained(model)(row["image"], return_tensors="pt")
    with torch.inference_mode():
        expected = SurgeNetModel.from_pretrained(model).eval()(**inputs).pooler_output[0]
    np.testing.assert_allclose(saved["embeddings"][0], expected, atol=1e-5)
    assert saved["video"][0] == row["video"]
    assert (saved["frame"][0], saved["split"][0]) == (row["frame"], "train")
    names = {path.name: path.stem.rsplit("_", 1) for path in (frames / "images").iterdir()}
    for name, video, frame in zip(saved["file_name"], saved["video"], saved["frame"], strict=True):
        assert names[name] == [video, f"{frame:0{len(names[name][1])}d}"]
    np.testing.assert_array_equal(saved["frame0"], np.asarray(row["image"]))
    assert saved["features0"].shape == (64, 3, 3)  # computed from a frame three times as large


@pytest.mark.slow
def test_segmentation_models_have_the_spatial_mean(frames, tmp_path, capsys):
    torch.manual_seed(0)
    model = SurgeNetForSemanticSegmentation(tiny(pretraining={"name": "x", "normalization": "imagenet"})).eval()
    model.save_pretrained(tmp_path / "organs")  # without an image processor
    arguments = ["--dataset", "folder", "--data_dir", str(frames), "--max_frames", "6"]
    more = ["--per_device_eval_batch_size", "2", "--output_dir"]
    plot_embeddings.main(["--model_name_or_path", str(tmp_path / "organs"), *arguments, *more, str(tmp_path / "out")])
    assert "Used instead: spatial mean of the last feature map, without the norm" in capsys.readouterr().out
    saved = np.load(tmp_path / "out" / "embeddings.npz")
    row = load_data("folder", frames).splits["train"][0]
    inputs = build_image_processor("imagenet")(row["image"], return_tensors="pt")
    with torch.inference_mode():
        expected = model.surgenet(**inputs).last_hidden_state[0].mean((1, 2))
    np.testing.assert_allclose(saved["embeddings"][0], expected, atol=1e-5)
    plot_embeddings.main(
        ["--model_name_or_path", str(tmp_path / "organs"), *arguments, "--bf16", "true", *more, str(tmp_path / "half")]
    )
    half = np.load(tmp_path / "half" / "embeddings.npz")["embeddings"]
    assert not np.array_equal(half, saved["embeddings"])
    np.testing.assert_allclose(half, saved["embeddings"], atol=0.05 * np.abs(saved["embeddings"]).max())


@pytest.mark.slow
def test_drawn_again_without_the_model(outputs, tmp_path, monkeypatch, rendered_figures):
    monkeypatch.setattr(embeddings, "load_backbone", lambda *args: pytest.fail("the model was loaded"))
    arguments = ["--embeddings", str(outputs / "embeddings.npz"), "--color_by", "video"]
    plot_embeddings.main([*arguments, "--output_dir", str(tmp_path)])
    for name in ("tsne.png", "features.png"):
        np.testing.assert_array_equal(Image.open(tmp_path / name), Image.open(outputs / name))
    assert not (tmp_path / "embeddings.npz").exists()


@pytest.fixture(scope="module")
def mixed(frames, tmp_path_factory):
    """Return the frames with masks and the same frames with phases."""
    phases = tmp_path_factory.mktemp("phases")
    rows = [f"{path},{path.stem[:7]},{'AB'[i % 2]}" for i, path in enumerate(sorted((frames / "images").iterdir()))]
    (phases / "labels.csv").write_text("\n".join(["image,video,label", *rows]))
    return embeddings.load_frames(["folder", "csv"], [str(frames), str(phases)], 8)


def test_frames_are_spread_over_each_data_set(mixed, frames):
    found = [(data.name, split[i]["video"]) for data, split, indices in mixed for i in indices]
    assert [name for name, _ in found] == ["folder"] * 8 + ["csv"] * 8
    assert len(set(found[:8])) == 3
    assert len(set(found[8:])) == 3
    (_, _, first), (_, _, second) = embeddings.load_frames(["folder"], [str(frames)], 999)
    assert (first, second) == (list(range(8)), list(range(4)))


def test_videos_of_two_data_sets_keep_apart_and_phases_have_names(mixed, model, tmp_path, monkeypatch):
    (folder, _, _), *_, (phases, split, indices) = mixed
    monkeypatch.setattr(embeddings, "load_frames", lambda *args: mixed)
    saved = embeddings.embed_datasets(str(model), [folder.name, phases.name], [], 8)
    np.savez(tmp_path / "saved.npz", **saved)
    drawn = {}
    monkeypatch.setattr("surgenet_hf.figures.scatter_figure", lambda _, groups, *args: drawn.update(groups=groups))
    monkeypatch.setattr("surgenet_hf.figures.save_both", lambda *args: ())
    plot_embeddings.main(
        ["--embeddings", str(tmp_path / "saved.npz"), "--color_by", "video", "--output_dir", str(tmp_path)]
    )
    assert drawn["groups"][0] == f"folder {saved['video'][0]}"
    assert len(set(drawn["groups"])) == 6
    assert list(saved["phase"][:8]) == [""] * 8
    assert saved["phase"][-1] == phases.labels[split[indices[-1]]["labels"]]
    assert set(saved["phase"][8:]) == {"A", "B"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cholec"], "unknown dataset 'cholec'; did you mean"),
        (["--dataset", "folder"], "needs data_dir"),
        (["--dataset", "folder", "--data_dir", "FRAMES", "--color_by", "phase"], "no phases in folder"),
        (["--dataset", "folder", "--data_dir", "FRAMES", "--max_frames", "3"], "N at least 4"),
        (["--dataset", "folder", "--data_dir", "FRAMES", "--model_name_or_path", "/no/model"], "/no/model"),
        (["--dataset", "folder", "--data_dir", "FRAMES", "--model_name_or_path", "SurgeNetZ"], "did you mean"),
    ],
)
def test_errors_without_traceback(frames, model, tmp_path, arguments, message):
    arguments = [str(frames) if argument == "FRAMES" else argument for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        plot_embeddings.main(["--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out"), *arguments])
    assert message in str(caught.value.code)
    assert not (tmp_path / "out").exists()


def test_another_file_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=1)
    np.save(tmp_path / "other.npy", np.ones(3))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:90])
    for name in ("other.npz", "other.npy", "absent.npz", "empty.npz", "cut.npz"):
        with pytest.raises(SystemExit, match=name):
            plot_embeddings.main(["--embeddings", str(tmp_path / name), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --model_name_or_path"),
        (["--model_name_or_path", "a"], "--dataset is missing"),
        (
            ["--model_name_or_path", "a", "--dataset", "a", "b", "--data_dir", "c"],
            "--dataset has 2 values, but --data_dir has 1; give one folder for each dataset",
        ),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        plot_embeddings.main(arguments)


@pytest.mark.slow
def test_figures_of_saved_embeddings(outputs, tmp_path, capsys):
    plot_embeddings.main(["--embeddings", str(outputs / "embeddings.npz"), "--output_dir", str(tmp_path)])
    assert str(tmp_path / "tsne.png") in capsys.readouterr().out
