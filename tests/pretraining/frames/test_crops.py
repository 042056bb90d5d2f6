import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as F
from transformers import HfArgumentParser

from surgenet_hf.pretraining.arguments import CropConfig
from surgenet_hf.pretraining.frames import crops as augmentation
from surgenet_hf.pretraining.frames.crops import Crops, crop_frame, draw_crops, normalize

MANY = 3000
SIDE = 48


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of colored blobs with fine noise."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray((np.asarray(blobs) + noise).clip(0, 255).astype(np.uint8))


def plain_crops(boxes) -> Crops:
    """Return crops that are cut and resized but not augmented."""
    boxes = np.asarray(boxes, dtype=float)
    number = len(boxes)
    no, order = np.zeros(number, bool), np.tile(np.arange(4), (number, 1))
    return Crops(boxes, no, order, np.tile(augmentation.NO_JITTER, (number, 1)), no, np.zeros(number), no)


def globals_only(size: int = SIDE) -> CropConfig:
    return CropConfig(global_crops_size=size, local_crops_number=0)


def cut(image: Image.Image, crops: Crops) -> list[np.ndarray]:
    """Return the two crops of a frame as arrays (h, w, 3)."""
    return [crop.permute(1, 2, 0).numpy() for crop in crop_frame(image, crops, globals_only())]


def test_flags_of_the_original():
    flags = "--global_crops_scale 0.25 1 --local_crops_scale 0.1 0.25 --local_crops_number 3 --local_crops_size 64"
    (config,) = HfArgumentParser(CropConfig).parse_args_into_dataclasses(flags.split())
    assert config == CropConfig([0.25, 1.0], [0.1, 0.25], 3, 224, 64)
    assert config.sizes == [224, 224, 64, 64, 64]
    assert CropConfig() == CropConfig([0.4, 1.0], [0.05, 0.4], 8, 224, 96)


def many_crops(**kwargs) -> CropConfig:
    """Return a config with more local crops than training allows, for statistics over one draw."""
    config = CropConfig(**kwargs)
    config.local_crops_number = MANY
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_crops_scale": [1.0, 0.4]}, r"global_crops_scale must be .* got \[1.0, 0.4\]"),
        ({"local_crops_scale": [0.0, 0.4]}, r"local_crops_scale must be .* got \[0.0, 0.4\]"),
        ({"global_crops_scale": [0.5, 1.5]}, "global_crops_scale must be two fractions"),
        ({"local_crops_scale": [0.4]}, "local_crops_scale must be two fractions"),
        ({"global_crops_size": 0}, "global_crops_size must be at least 1 pixel, got 0"),
        ({"local_crops_size": -96}, "local_crops_size must be at least 1 pixel, got -96"),
        ({"local_crops_number": -1}, "local_crops_number must not be negative, got -1"),
        ({"local_crops_number": 10**6}, "local_crops_number must be at most 100, got 1,000,000"),
        ({"global_crops_size": 50_000}, "global_crops_size must be at most 4,096 pixels, got 50,000"),
        ({"global_crops_scale": ["a", None]}, "global_crops_scale must be two fractions"),
        ({"local_crops_scale": [0.1, float("nan")]}, "local_crops_scale must be two fractions"),
    ],
)
def test_impossible_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        CropConfig(**changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "scale"),
    [((1280, 720), [0.4, 1.0]), ((1280, 720), [0.05, 0.4]), ((97, 131), [0.05, 0.4]), ((700, 250), [0.4, 1.0])],
)
def test_boxes_are_drawn_as_torchvision_draws_them(size, scale):
    torch.manual_seed(0)
    width, height = size
    frame = torch.empty(3, height, width)
    expected = np.array([RandomResizedCrop.get_params(frame, scale, [3 / 4, 4 / 3]) for _ in range(MANY)])
    config = many_crops(local_crops_scale=scale)
    boxes = draw_crops(size, config, np.random.default_rng(0)).boxes[2:]
    assert (boxes == boxes.astype(int)).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    left, top, right, bottom = boxes.T
    shapes = [top, left, bottom - top, right - left, (right - left) / (bottom - top), (right - left) * (bottom - top)]
    others = [*expected.T, expected[:, 3] / expected[:, 2], expected[:, 3] * expected[:, 2]]
    for ours, theirs in zip(shapes, others, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 0.005


def test_boxes_reach_every_border():
    config = many_crops(local_crops_scale=[0.3, 0.5])
    boxes = draw_crops((9, 12), config, np.random.default_rng(0)).boxes[2:]
    assert boxes.min(axis=0)[:2].tolist() == [0, 0]
    assert boxes.max(axis=0)[2:].tolist() == [9, 12]


@pytest.mark.parametrize("size", [(1000, 11), (11, 1000), (3, 50), (1, 1)])
def test_frames_in_which_no_box_fits_give_their_center(size):
    frame = torch.empty(3, size[1], size[0])
    top, left, height, width = RandomResizedCrop.get_params(frame, [0.9, 1.0], [3 / 4, 4 / 3])
    drawn = draw_crops(size, CropConfig(global_crops_scale=[0.9, 1.0]), np.random.default_rng(0))
    assert drawn.boxes[:2].tolist() == [[left, top, left + width, top + height]] * 2


def test_changes_are_drawn_with_the_original_probabilities():
    config = many_crops()
    local = Crops(*(x[2:] for x in draw_crops((64, 64), config, np.random.default_rng(0))))
    jitter = (local.factors != augmentation.NO_JITTER).any(axis=1)
    for chosen, probability in [(local.flip, 0.5), (jitter, 0.8), (local.gray, 0.2), (local.sigma > 0, 0.5)]:
        assert stats.binomtest(int(chosen.sum()), MANY, probability).pvalue > 0.005
    assert not local.solarize.any()
    assert stats.kstest(local.sigma[local.sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 0.005
    torch.manual_seed(0)
    ranges = ColorJitter(0.4, 0.4, 0.2, 0.1)
    theirs = [
        ColorJitter.get_params(ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue) for _ in range(MANY)
    ]
    for i, values in enumerate(zip(*(x[1:] for x in theirs), strict=True)):
        assert stats.ks_2samp(local.factors[jitter, i], values).pvalue > 0.005
    orders, counts = np.unique(local.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > 0.005


def test_global_crops_are_blurred_and_solarised_as_the_original():
    drawn = [draw_crops((64, 64), globals_only(), np.random.default_rng(i)) for i in range(1000)]
    sigma, solarize = (np.stack([getattr(x, name) for x in drawn]) for name in ("sigma", "solarize"))
    assert (sigma[:, 0] >= 0.1).all()
    assert (sigma <= 2).all()
    assert not solarize[:, 0].any()
    assert stats.binomtest(int((sigma[:, 1] > 0).sum()), 1000, 0.1).pvalue > 0.005
    assert stats.binomtest(int(solarize[:, 1].sum()), 1000, 0.2).pvalue > 0.005


def test_choices_are_independent_of_each_other():
    drawn = draw_crops((640, 480), many_crops(), np.random.default_rng(0))
    jitter = drawn.factors[:, 0] != 1
    columns = [drawn.boxes[:, 0], drawn.flip, jitter, drawn.order[:, 0], drawn.gray, drawn.sigma > 0]
    correlations = np.corrcoef(np.stack(columns)[:, 2:])[~np.eye(len(columns), dtype=bool)]
    assert np.abs(correlations).max() < 4 / np.sqrt(MANY)


def test_draws_come_from_the_generator_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first, again, other = (
        draw_crops((640, 480), CropConfig(), np.random.default_rng(seed)).to_array() for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first[:, 0] != other[:, 0]).any()
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    generators = [np.random.default_rng(0) for _ in range(2)]
    for size, rng in zip([(640, 480), (900, 9)], generators, strict=True):
        draw_crops(size, CropConfig(), rng)
    assert generators[0].random() == generators[1].random()  # the number of draws does not depend on the frame


def test_crops_travel_as_one_array():
    drawn = [draw_crops((641, 479), CropConfig(), np.random.default_rng(i)) for i in range(3)]
    batch = np.stack([crops.to_array() for crops in drawn])
    assert (batch.shape, batch.dtype) == ((3, 10, 16), np.float32)
    for restored in (Crops.from_array(batch), Crops.from_array(torch.from_numpy(batch))):
        for i, crops in enumerate(drawn):
            for name, value in crops._asdict().items():
                np.testing.assert_allclose(np.asarray(getattr(restored, name)[i]), value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("size", [(320, 180), (161, 97), (30, 20)])  # the last size is smaller than the crop
def test_resizing_is_that_of_torchvision(size):
    image = picture(*size)
    config = CropConfig(global_crops_size=63, local_crops_size=35)
    crops = draw_crops(size, config, np.random.default_rng(0))
    plain = plain_crops(crops.boxes)
    for crop, box, side in zip(crop_frame(image, plain, config), crops.boxes, config.sizes, strict=True):
        left, top, right, bottom = box.astype(int).tolist()
        expected = F.crop(image, top, left, bottom - top, right - left)
        expected = F.resize(expected, [side, side], F.InterpolationMode.BICUBIC)
        difference = (crop.int() - F.pil_to_tensor(expected).int()).abs()
        enlarged = min(right - left, bottom - top) < side
        assert crop.dtype == torch.uint8
        assert difference.max() <= (2 if enlarged else 1)
        assert difference.float().mean() < 0.02


def test_what_lies_beyond_the_box_does_not_enter():
    image = picture(200, 150)
    box = (40, 30, 137, 121)
    alone = Image.new("RGB", image.size)
    alone.paste(image.crop(box), box[:2])
    for boxes in ([box] * 2, [(40.25, 30.5, 136.5, 120.75)] * 2):
        for ours, theirs in zip(cut(image, plain_crops(boxes)), cut(alone, plain_crops(boxes)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_boxes_with_fractions_of_pixels():
    image = picture(200, 150)
    expected = image.crop((10, 20, 78, 91)).resize((SIDE, SIDE), Image.BICUBIC, box=(0.5, 0.25, 67.75, 70.5))
    found = cut(image, plain_crops([(10.5, 20.25, 77.75, 90.5)] * 2))
    np.testing.assert_array_equal(found[0], np.asarray(expected))


CHANGES = {
    "flip": ({"flip": np.array([True, False])}, F.hflip),
    "brightness": ({"factors": np.array([[1.37, 1, 1, 0]] * 2)}, lambda x: F.adjust_brightness(x, 1.37)),
    "contrast": ({"factors": np.array([[1, 0.62, 1, 0]] * 2)}, lambda x: F.adjust_contrast(x, 0.62)),
    "saturation": ({"factors": np.array([[1, 1, 1.19, 0]] * 2)}, lambda x: F.adjust_saturation(x, 1.19)),
    "hue": ({"factors": np.array([[1, 1, 1, -0.07]] * 2)}, lambda x: F.adjust_hue(x, -0.07)),
    "gray": ({"gray": np.array([True, False])}, lambda x: F.to_grayscale(x, 3)),
    "blur": ({"sigma": np.array([1.3, 0])}, lambda x: x.filter(ImageFilter.GaussianBlur(1.3))),
    "solarize": ({"solarize": np.array([True, False])}, lambda x: F.solarize(x, 128)),
}
# boxes of the crop's own size: nothing is resampled, so results must be equal
EXACT = [(5, 7, 5 + SIDE, 7 + SIDE)] * 2


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_alone_is_that_of_torchvision(name):
    image = picture(80, 70)
    changes, expected = CHANGES[name]
    found = cut(image, plain_crops(EXACT)._replace(**changes))
    original = image.crop(EXACT[0])
    np.testing.assert_array_equal(found[0], np.asarray(expected(original)))
    assert (found[0] != np.asarray(original)).mean() > 0.2


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_all_changes_together(order):
    image = picture(80, 70)
    factors = (0.7, 1.3, 0.85, 0.09)
    crops = plain_crops(EXACT)._replace(
        flip=np.array([True, False]),
        order=np.array([order] * 2),
        factors=np.array([factors] * 2),
        sigma=np.array([0.8, 0]),
        solarize=np.array([True, False]),
    )
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    jittered = image.crop(EXACT[0])
    for i in order:
        jittered = adjust[i](jittered, factors[i])
    expected = F.solarize(F.hflip(jittered).filter(ImageFilter.GaussianBlur(0.8)), 128)
    first, second = cut(image, crops)
    np.testing.assert_array_equal(first, np.asarray(expected))
    np.testing.assert_array_equal(second, np.asarray(jittered))  # each crop has its own changes


def test_normalize():
    mean, std = (0.1, 0.2, 0.4), (0.5, 0.25, 0.2)
    crops = [torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8) for size in (8, 5)]
    for statistics in ((mean, std), (torch.tensor(mean), torch.tensor(std))):
        for found, crop in zip(normalize(crops, *statistics), crops, strict=True):
            torch.testing.assert_close(found, F.normalize(crop / 255, mean, std))
