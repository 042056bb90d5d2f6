import os

import numpy as np
import torch
from PIL import Image

from surgenet_hf import SurgeNetForPhaseRecognition, SurgeNetPhaseConfig
from surgenet_hf.checkpoints.conversion import build_image_processor
from surgenet_hf.data import load_classification
from surgenet_hf.finetuning.phase import VideoFeatures
from tests.checkpoints.files import tiny


def make_videos(root, seed=0):
    """Two videos of four frames, of two phases."""
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
    split = load_classification("videos", root).splits["train"]
    return VideoFeatures(model, build_image_processor(image_size=32), split, cache_dir)[0]["features"]


def test_cached_features_are_of_these_frames(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = SurgeNetForPhaseRecognition(SurgeNetPhaseConfig(backbone_config=tiny().to_dict(), num_labels=2)).eval()
    root, cache = make_videos(tmp_path / "one"), tmp_path / "cache"
    first = features(model, root, cache)

    with monkeypatch.context() as patch:  # nothing is computed for the same frames
        patch.setattr("surgenet_hf.finetuning.phase.compute_features", None)
        assert torch.equal(features(model, root, cache), first)

    # another data set with the same names of videos and frames
    other = features(model, make_videos(tmp_path / "other", seed=1), cache)
    assert not torch.equal(other, first)

    # the same files, with other pixels
    video = load_classification("videos", root).splits["train"][0]["video"]
    for path in (root / "frames" / video).iterdir():
        replacement = tmp_path / "other" / "frames" / video / path.name
        os.replace(replacement, path)
    assert torch.equal(features(model, root, cache), other)
