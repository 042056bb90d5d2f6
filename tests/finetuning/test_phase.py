import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from surgenet_hf import SurgeNetForPhaseRecognition, SurgeNetPhaseConfig, UserError, finetune_phase
from surgenet_hf.data import Sample, SurgicalData, load_data
from surgenet_hf.data.base import SINGLE, build_splits
from surgenet_hf.finetuning import classification
from surgenet_hf.finetuning.phase import VideoFeatures
from surgenet_hf.image_processing import build_image_processor
from tests.checkpoints.files import tiny


def make_videos(root, seed=0):
    """Write two videos of four frames and two phases, and return their folder."""
    rng = np.random.default_rng(seed)
    (root / "phases").mkdir(parents=True)
    for video in "ab":
        (root / "frames" / video).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (32, 48, 3), np.uint8)
            Image.fromarray(pixels).save(root / "frames" / video / f"{i:06d}.png")
        (root / "phases" / f"{video}.txt").write_text("0\tx\n1\tx\n2\ty\n3\ty\n")
    return root


def features(model, root, cache_dir):
    split = load_data("videos", root).splits["train"]
    return VideoFeatures(model, build_image_processor(image_size=32), split, cache_dir)[0]["features"]


def test_cached_features_are_of_these_frames(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = SurgeNetForPhaseRecognition(SurgeNetPhaseConfig(backbone_config=tiny().to_dict(), num_labels=2)).eval()
    root, cache = make_videos(tmp_path / "one"), tmp_path / "cache"
    first = features(model, root, cache)

    with monkeypatch.context() as patch:  # features of the same frames are not recomputed
        patch.setattr("surgenet_hf.finetuning.phase.compute_features", None)
        assert torch.equal(features(model, root, cache), first)

    # another dataset with the same names of videos and frames
    other = features(model, make_videos(tmp_path / "other", seed=1), cache)
    assert not torch.equal(other, first)

    # the same files with other pixels
    video = load_data("videos", root).splits["train"][0]["video"]
    for path in (root / "frames" / video).iterdir():
        replacement = tmp_path / "other" / "frames" / video / path.name
        os.replace(replacement, path)
    assert torch.equal(features(model, root, cache), other)


def test_the_second_stage_alone_needs_a_frame_classifier(tmp_path):
    options = {"data_dir": make_videos(tmp_path / "data"), "output_dir": tmp_path / "out", "use_cpu": True}
    with pytest.raises(UserError, match="skip_stage1 needs a trained frame classifier"):
        finetune_phase(dataset="videos", backbone="tiny", skip_stage1=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1.0, None])
def test_frames_are_not_flipped_for_phases(rate, tmp_path):
    """Test that frames of phases are not flipped, with frames whose left half is bright.

    Without a frame rate, the frames do not belong to phases.
    """
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24] = 200
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    rows = {split: [Sample(png.getvalue(), i % 2, split, i) for i in range(4)] for split in ("train", "validation")}
    splits = build_splits(rows)
    task = "phase-recognition" if rate else "image-classification"
    colors = ((0, 0, 0), (1, 1, 1))
    data = SurgicalData("phases", task, ("x", "y"), colors, splits, problem_type=SINGLE, frames_per_second=rate)
    model, processor = classification.build_model(tiny(), data, 32)
    args = TrainingArguments(tmp_path, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    frames = classification.finetune(model, processor, data, args).train_dataset
    flipped = []
    for epoch in range(10):
        frames.set_epoch(epoch)
        for frame in frames:
            left, right = frame["pixel_values"].chunk(2, dim=-1)
            flipped.append(bool(left.mean() < right.mean()))
    assert any(flipped) == (rate is None)
