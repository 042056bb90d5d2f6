"""Tests of the Python API: the results of the commands, and user data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

import surgenet_hf
from surgenet_hf.cli.finetune_segmentation import main as finetune_segmentation
from surgenet_hf.errors import UserError

OPTIONS = {"backbone": "tiny", "image_size": 32, "max_steps": 2, "per_device_train_batch_size": 2}


class Items(torch.utils.data.Dataset):
    """Torch dataset of (image, target) tuples."""

    def __init__(self, targets):
        rng = np.random.default_rng(0)
        self.images = [Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)) for _ in targets]
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    surgenet_hf.load_data("synthetic", root, num_videos=3, frames_per_video=3, size=(32, 48))
    return next(root.iterdir())


@pytest.mark.slow
def test_a_function_gives_the_results_of_its_command(folder, tmp_path):
    results = surgenet_hf.finetune_segmentation(
        dataset="folder", data_dir=folder, output_dir=tmp_path / "api", disable_tqdm=True, **OPTIONS
    )
    argv = [f"--{name}={value}" for name, value in OPTIONS.items()]
    finetune_segmentation([*argv, "--dataset=folder", f"--data_dir={folder}", f"--output_dir={tmp_path / 'cli'}"])
    command = json.loads((tmp_path / "cli" / "results.json").read_text())
    assert results["metrics"] == json.loads((tmp_path / "api" / "results.json").read_text())["metrics"]
    assert results["metrics"] == command["metrics"]
    assert command["command"].startswith("surgenet finetune-segmentation --backbone=tiny")
    again = surgenet_hf.evaluate(tmp_path / "api", "folder", folder, split="validation")
    assert again["metrics"] == results["metrics"]


@pytest.mark.slow
def test_own_torch_dataset_with_masks(tmp_path):
    masks = [np.full((32, 48), i % 2, np.uint8) for i in range(6)]
    splits = {"train": Items(masks), "validation": Items(masks[:2])}
    results = surgenet_hf.finetune_segmentation(
        dataset=splits, labels=["tissue", "instrument"], output_dir=tmp_path, disable_tqdm=True, **OPTIONS
    )
    assert results["data"]["labels"] == ["tissue", "instrument"]
    assert results["data"]["frames"] == 2
    assert results["intervals"] == {}


@pytest.mark.slow
def test_own_dataset_of_frames_with_labels(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"]), "video": Value("string")})
    images = Items([0, 1, 0, 1]).images

    def rows(videos):
        return Dataset.from_dict({"image": images, "label": [0, 1, 0, 1], "video": videos}, features=features)

    splits = {"train": rows(["v1", "v1", "v2", "v2"]), "validation": rows(["v3", "v3", "v4", "v4"])}
    results = surgenet_hf.finetune_classification(dataset=splits, output_dir=tmp_path, disable_tqdm=True, **OPTIONS)
    assert results["data"]["videos"] == ["v3", "v4"]
    assert "accuracy" in results["metrics"]


@pytest.mark.slow
def test_pretraining_returns_the_teacher(folder, tmp_path):
    sizes = {"global_crops_size": 32, "local_crops_size": 32, "local_crops_number": 1, "out_dim": 32}
    steps = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "warmup_epochs": 0}
    found = surgenet_hf.pretrain(
        tmp_path, "folder", folder / "images", backbone="tiny", preset="small", epochs=1, **sizes, **steps
    )
    assert [entry["step"] for entry in found["history"]][-1] == 2
    assert (found["model"] / "README.md").is_file()
    assert type(AutoModel.from_pretrained(found["model"])).__name__ == "SurgeNetModel"


def test_mistakes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="unknown option 'learnin_rate'; did you mean 'learning_rate'"):
        surgenet_hf.finetune_segmentation(dataset="synthetic", output_dir=tmp_path, learnin_rate=1)
    with pytest.raises(UserError, match="dataset is missing"):
        surgenet_hf.finetune_segmentation(output_dir=tmp_path)
    with pytest.raises(UserError, match="use surgenet finetune-segmentation"):
        surgenet_hf.finetune_classification(dataset="endoscapes", output_dir=tmp_path, backbone="tiny")
    with pytest.raises(UserError, match="surgenet publish"):
        surgenet_hf.finetune_phase(dataset="synthetic-phases", output_dir=tmp_path, push_to_hub=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet50"}, "--backbone resnet50 is unknown: give one of"),
        ({"backbone": "tiny", "learning_rate": "high"}, "invalid float value: 'high'"),
        ({"backbone": "tiny", "eval_strategy": "steps"}, "requires the save and eval strategy to match"),
        ({"backbone": "tiny", "per_device_train_batch_size": 0}, "must be at least 1, got 0"),
        ({"backbone": "tiny", "eval_split": "tset"}, "no split 'tset'"),
    ],
)
def test_wrong_values_are_user_errors(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        surgenet_hf.finetune_segmentation(dataset="synthetic", output_dir=tmp_path, **options)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_stays_as_it_is(folder, tmp_path):
    given = {"dataset": "folder", "data_dir": folder, "output_dir": tmp_path, **OPTIONS, "disable_tqdm": True}
    first = surgenet_hf.finetune_segmentation(**given)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    again = surgenet_hf.finetune_segmentation(**given, resume_from_checkpoint=True)
    assert again["metrics"] == json.loads((tmp_path / "results.json").read_text())["metrics"]
    (tmp_path / "results.json").unlink()  # as if killed during its evaluation
    assert surgenet_hf.finetune_segmentation(**given, resume_from_checkpoint=True)["metrics"] == first["metrics"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "checkpoint-3").exists()


def test_options_without_effect_are_refused(tmp_path):
    own = {"train": Items([np.zeros((32, 48), np.uint8)])}
    for options in ({"data_dir": "nowhere", "labels": ["a"]}, {"labels": ["a"], "bogus": 1}):
        with pytest.raises(UserError, match=f"{'data_dir' if 'data_dir' in options else 'bogus'} has no effect"):
            surgenet_hf.evaluate(tmp_path, own, task="semantic-segmentation", **options)
    with pytest.raises(UserError, match="labels are for your own data"):
        surgenet_hf.finetune_segmentation(dataset="synthetic", output_dir=tmp_path, labels=["a"], backbone="tiny")
    with pytest.raises(UserError, match="background_class='b' is not a class"):
        surgenet_hf.finetune_segmentation(
            dataset=own, output_dir=tmp_path, labels=["a"], backbone="tiny", background_class="b"
        )


@pytest.mark.slow
def test_fine_tuning_on_a_fraction_of_the_videos(labeled, tmp_path):
    """Test that only the drawn videos train, and that a later evaluation keeps the record of them."""
    options = {"max_steps": 1, "image_size": 32, "per_device_train_batch_size": 2, "train_fraction": 0.3}
    found = surgenet_hf.finetune_classification(
        backbone="tiny", dataset="csv", data_dir=labeled, output_dir=tmp_path, **options
    )
    expected = {
        "mode": "fine-tuning",
        "train_fraction": 0.3,
        "train_videos": 2,
        "train_frames": 6,
        "train_video_names": None,
    }
    assert found["training"] == expected  # 2 of 4 videos, whose names are the user's own
    (record,) = json.loads((tmp_path / "model" / "config.json").read_text())["finetuning"]
    assert len(record["train_videos"]) == 2
    again = surgenet_hf.evaluate(str(tmp_path), "csv", labeled, split="validation")
    assert again["training"] == expected
    with pytest.raises(surgenet_hf.UserError, match="--train_fraction must be greater than 0"):
        surgenet_hf.finetune_classification(
            backbone="tiny", dataset="csv", data_dir=labeled, output_dir=tmp_path / "b", train_fraction=0
        )
