import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from surgenet_hf import SurgeNetConfig
from surgenet_hf.data import SurgicalData
from surgenet_hf.finetuning import frames as frames_module
from surgenet_hf.finetuning.frames import Frames, augment_frame
from surgenet_hf.finetuning.segmentation import build_model, finetune
from surgenet_hf.metrics import SegmentationMetric
from surgenet_hf.rng import rng_for

TINY = SurgeNetConfig(
    depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 96], pyramid_channels=32, segmentation_channels=64
)


def frame(seed, height=48, width=64):
    """Return a dark frame with a bright rectangle of class 1."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    mask[top : top + height // 2, left : left + width // 3] = 1
    image = np.where(mask[..., None] == 1, 200, 50).astype(np.uint8).repeat(3, axis=2)
    return {"image": Image.fromarray(image), "mask": mask, "video": f"video{seed}", "frame": seed}


@pytest.fixture
def data():
    splits = {"train": [frame(seed) for seed in range(4)], "validation": [frame(seed) for seed in range(10, 13)]}
    return SurgicalData("boxes", "semantic-segmentation", ("dark", "bright"), ((0, 0, 0), (255, 255, 0)), splits)


def arguments(tmp_path, **kwargs):
    defaults = {
        "output_dir": str(tmp_path),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return TrainingArguments(**{**defaults, **kwargs})


def test_frames_and_masks_stay_aligned_through_augmentation_and_processor(data):
    _, processor = build_model(TINY, data, 32)
    frames = Frames(data.splits["train"], processor, "light")
    agreement = []
    for epoch in range(8):
        frames.set_epoch(epoch)
        for item in map(frames.__getitem__, range(len(frames))):
            assert item["pixel_values"].shape == (3, 32, 32)
            assert item["labels"].shape == (32, 32)
            assert item["labels"].dtype == torch.int64
            bright = item["pixel_values"][0]
            bright = bright > (bright.min() + bright.max()) / 2
            agreement.append((bright == (item["labels"] == 1)).float().mean().item())
    assert min(agreement) > 0.95  # below 1, since frames are interpolated and masks are not


def test_augmentation_varies_and_depends_on_seed_epoch_and_index_alone(data):
    _, processor = build_model(TINY, data, 32)

    def draw(seed, epoch, index):
        frames = Frames([data.splits["train"][0]] * 2, processor, "light", seed)
        frames.set_epoch(epoch)
        return frames[index]["pixel_values"]

    first = draw(0, 0, 0)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.testing.assert_close(draw(0, 0, 0), first, rtol=0, atol=0)
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(draw(*other), first)


def test_augmentation_stays_mild():
    row = frame(0, 200, 300)
    flips = 0
    for index in range(200):
        image, mask = augment_frame(row["image"], row["mask"], rng_for(0, 0, index))
        assert image.size == mask.shape[::-1]
        assert 140 <= mask.shape[0] <= 200
        assert 210 <= mask.shape[1] <= 300
        assert 25 < np.asarray(image).min() < 80
        columns = np.nonzero(mask.any(0))[0]
        flips += columns.mean() > mask.shape[1] / 2
    assert 60 < flips < 140
    assert row["mask"].shape == (200, 300)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("by_accelerate", [True, False])
def test_every_epoch_of_training_augments_anew(data, tmp_path, monkeypatch, workers, by_accelerate):
    log = tmp_path / "draws"

    def spy(seed, epoch, index):
        with log.open("a") as file:  # workers are separate processes, so log to a file
            print(seed, epoch, index, file=file)
        return rng_for(seed, epoch, index)

    monkeypatch.setattr(frames_module, "rng_for", spy)
    if not by_accelerate:  # with several processes Accelerate does not pass the epoch to the dataset
        monkeypatch.setattr("accelerate.data_loader.DataLoaderShard.set_epoch", lambda self, epoch: None)
    model, processor = build_model(TINY, data, 32)
    args = arguments(
        tmp_path,
        max_steps=6,
        seed=7,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
    )
    finetune(model, processor, data, args)
    draws = {tuple(map(int, line.split())) for line in log.read_text().splitlines()}
    assert draws == {(7, epoch, index) for epoch in range(3) for index in range(4)}


@pytest.mark.slow
def test_training_learns_and_its_evaluation_counts_every_frame_once(data, tmp_path):
    torch.manual_seed(0)
    model, processor = build_model(TINY, data, 32)
    args = arguments(tmp_path, max_steps=30, learning_rate=2e-3, eval_strategy="steps", eval_steps=15)
    trainer = finetune(model, processor, data, args)
    assert trainer.state.global_step == 30
    evaluations = [entry["eval_pooled_dice"] for entry in trainer.state.log_history if "eval_pooled_dice" in entry]
    assert len(evaluations) == 2
    assert evaluations[-1] > 0.9

    metric = SegmentationMetric(2)
    model.eval()
    for item in map(Frames(data.splits["validation"], processor).__getitem__, range(3)):
        with torch.inference_mode():
            logits = model(pixel_values=item["pixel_values"][None]).logits
        metric.add(logits.argmax(1)[0].numpy(), item["labels"].numpy())
    expected = metric.compute()
    for _ in range(2):  # the second evaluation starts from an empty metric
        found = trainer.evaluate()
        for key in ("pooled_dice", "pooled_iou", "pixel_accuracy"):
            assert found[f"eval_{key}"] == pytest.approx(expected[key], abs=1e-3)


@pytest.mark.slow
def test_without_augmentation_nothing_is_drawn(data, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module, "rng_for", lambda *args: pytest.fail("drew"))
    model, processor = build_model(TINY, data, 32)
    finetune(model, processor, data, arguments(tmp_path, max_steps=1), augmentation="none")


def test_model_fits_the_data(data, tmp_path):
    model, processor = build_model(TINY, dataclasses.replace(data, ignore_index=9), 32)
    assert model.config.id2label == {0: "dark", 1: "bright"}
    assert model.config.label2id == {"dark": 0, "bright": 1}
    assert model.config.semantic_loss_ignore_index == 9
    assert model.config.pretraining["name"] == "none (random initialization)"
    assert TINY.pretraining is None
    assert list(processor.image_mean) == [0.46888983, 0.29536288, 0.28712815]

    model.to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    three = dataclasses.replace(data, labels=("dark", "bright", "tool"))
    again, processor = build_model(str(tmp_path), three, 64)
    assert again.dtype == torch.float32
    assert again.config.id2label == {0: "dark", 1: "bright", 2: "tool"}
    assert again.config.semantic_loss_ignore_index == 255
    assert again.config.pretraining["name"] == "none (random initialization)"
    inputs = processor(frame(0)["image"], return_tensors="pt")
    assert again(**inputs).logits.shape == (1, 3, 64, 64)
    saved, loaded = model.surgenet.state_dict(), again.surgenet.state_dict()
    assert all(torch.equal(saved[key].float(), loaded[key]) for key in saved)


def test_another_number_of_classes_is_refused(data, tmp_path):
    model, processor = build_model(TINY, data, 32)
    three = dataclasses.replace(data, labels=("dark", "bright", "tool"))
    with pytest.raises(ValueError, match="model has 2 classes, the dataset 'boxes' has 3"):
        finetune(model, processor, three, arguments(tmp_path))
