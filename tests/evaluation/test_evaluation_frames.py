"""Tests of predictions on frames outside of a dataset: an image or a video stream."""

import numpy as np
import pytest
import torch
from PIL import Image

from surgenet_hf import SurgeNetForImageClassification, SurgeNetForPhaseRecognition, SurgeNetForSemanticSegmentation
from surgenet_hf.configuration_surgenet_phase import SurgeNetPhaseConfig
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference.prediction import predict_phases, predict_scores, predict_segmentation, stream_phases

processor = build_image_processor(image_size=64)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)) for i in range(6)]


def test_a_picture_without_a_mask(tiny_config, images):
    """Test that the class map has the size of the image and equals that of a row with a mask of this size."""
    torch.manual_seed(0)
    model = SurgeNetForSemanticSegmentation(tiny_config())
    bare = [found for _, found in predict_segmentation(model, processor, [{"image": image} for image in images])]
    assert [found.shape for found in bare] == [(40 + i, 50) for i in range(6)]
    rows = [{"image": image, "mask": np.zeros((40 + i, 50), np.uint8)} for i, image in enumerate(images)]
    for (_, found), expected in zip(predict_segmentation(model, processor, rows), bare, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", None])
def test_scores(tiny_config, images, kind):
    torch.manual_seed(0)
    model = SurgeNetForImageClassification(tiny_config(problem_type=kind)).eval()
    scores = np.stack([each for _, each in predict_scores(model, processor, [{"image": image} for image in images])])
    with torch.no_grad():
        logits = model(**processor(images, return_tensors="pt")).logits
    expected = logits.softmax(-1) if kind == "single_label_classification" else logits.sigmoid()
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("temporal", [True, False])
def test_a_stream_gives_what_the_whole_video_does(tiny_config, images, temporal):
    torch.manual_seed(0)
    if temporal:
        config = SurgeNetPhaseConfig(backbone_config=tiny_config(), num_stages=2, num_layers=3, num_labels=3)
        model = SurgeNetForPhaseRecognition(config).eval()
    else:
        model = SurgeNetForImageClassification(tiny_config(problem_type="single_label_classification")).eval()
    came = []

    def video():
        for image in images:
            came.append(image)
            yield image

    stream = stream_phases(model, processor, video())
    first = next(stream)
    assert len(came) == 1  # does not wait for the next frame
    scores = np.stack([first, *stream])
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    rows = [{"image": image, "labels": 0} for image in images]
    _, phases = predict_phases(model, processor, rows, range(len(rows)))
    np.testing.assert_array_equal(scores.argmax(1), phases)
    if temporal:  # with memory, the same frame has other scores later in a video
        again = list(stream_phases(model, processor, [images[0]] * 4))
        assert np.abs(again[3] - again[0]).max() > 1e-6
