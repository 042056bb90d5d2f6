import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch._subclasses import FakeTensorMode
from torchvision.transforms import functional as F

from surgenet_hf.pretraining.arguments import CropConfig
from surgenet_hf.pretraining.frames import crops as augmentation
from surgenet_hf.pretraining.frames import device_crops as device_augmentation
from surgenet_hf.pretraining.frames.crops import Crops, crop_frame, draw_crops
from surgenet_hf.pretraining.frames.device_crops import crop_batch

CONFIG = CropConfig(global_crops_size=64, local_crops_size=33, local_crops_number=4)
NUMBER = len(CONFIG.sizes)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of colored blobs with fine noise."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray((np.asarray(blobs) + noise).clip(0, 255).astype(np.uint8))


def batch(sizes=((320, 180), (320, 180), (161, 97), (320, 180), (50, 40))):
    """Return frames of several sizes and the crops drawn for them.

    The last frame is smaller than the global crops.
    """
    frames = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    return frames, [draw_crops(size, CONFIG, np.random.default_rng(i)) for i, size in enumerate(sizes)]


def plain(crops: Crops) -> Crops:
    """Return crops with the same boxes and no augmentation."""
    no = np.zeros(NUMBER, bool)
    return Crops(crops.boxes, no, crops.order, np.tile(augmentation.NO_JITTER, (NUMBER, 1)), no, np.zeros(NUMBER), no)


def on_device(frames, crops, config=CONFIG, device="cpu") -> list[torch.Tensor]:
    images = [F.pil_to_tensor(frame).to(device) for frame in frames]
    return crop_batch(images, torch.from_numpy(np.stack([x.to_array() for x in crops])).to(device), config)


def differences(found, frames, crops, config=CONFIG) -> torch.Tensor:
    """Return absolute gray-level differences between the crops of a batch and those of `crop_frame`."""
    expected = [torch.stack(x) for x in zip(*map(crop_frame, frames, crops, [config] * len(frames)), strict=True)]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    pairs = zip(found, expected, strict=True)
    return torch.cat([(a.cpu().int() - b.int()).abs().flatten() for a, b in pairs]).float()


def jittered(crops: Crops, operation: int) -> Crops:
    """Return crops with only one color operation, from its smallest to its largest factor."""
    factors = np.tile(augmentation.NO_JITTER, (NUMBER, 1))
    low, high = augmentation.JITTER_LOW[operation], augmentation.JITTER_HIGH[operation]
    factors[:, operation] = np.linspace(low, high, NUMBER)
    return plain(crops)._replace(factors=factors)


ALL = np.ones(NUMBER, bool)
CHANGES = {
    "resize": plain,
    "flip": lambda x: plain(x)._replace(flip=ALL),
    "fractions": lambda x: plain(x)._replace(boxes=x.boxes * 0.93 + 0.37),
    "brightness": lambda x: jittered(x, augmentation.BRIGHTNESS),
    "contrast": lambda x: jittered(x, augmentation.CONTRAST),
    "saturation": lambda x: jittered(x, augmentation.SATURATION),
    "hue": lambda x: jittered(x, augmentation.HUE),
    "gray": lambda x: plain(x)._replace(gray=ALL),
    "blur": lambda x: plain(x)._replace(sigma=np.array([0.1, 0.47, 0.83, 1.21, 1.64, 2.0])),
    "solarize": lambda x: plain(x)._replace(solarize=ALL),
    "all": lambda x: x,
}
# Largest differences in gray levels. Resizing in `crop_frame` causes 2, which brightness and contrast multiply by up
# to 1.4. Hue causes more: PIL stores hue and saturation in 8 bits, and one step of hue is 6 levels of a pure color.
LARGEST = {"brightness": 3, "contrast": 3, "hue": 6, "all": 8}


@pytest.mark.parametrize("name", CHANGES)
def test_crops_are_those_of_the_workers(name):
    frames, drawn = batch()
    crops = [CHANGES[name](x) for x in drawn]
    found = differences(on_device(frames, crops), frames, crops)
    assert found.max() <= LARGEST.get(name, 2)
    assert found.mean() < 0.02
    assert (found > 1).float().mean() < 0.004


@pytest.mark.parametrize("name", CHANGES)
def test_half_precision_as_on_a_gpu(name, monkeypatch):
    monkeypatch.setattr(device_augmentation, "_product_dtype", lambda device: torch.float16)
    frames, drawn = batch()
    crops = [CHANGES[name](x) for x in drawn]
    found = differences(on_device(frames, crops), frames, crops)
    assert found.max() <= LARGEST.get(name, 2) + 2
    assert found.mean() < 0.2
    assert (found > 1).float().mean() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_resizing_is_that_of_pil(dtype, monkeypatch):
    monkeypatch.setattr(device_augmentation, "_product_dtype", lambda device: dtype)
    frames, drawn = batch([(320, 180)] * 3)
    found = on_device(frames, [plain(crops) for crops in drawn])
    for i, (frame, crops) in enumerate(zip(frames, drawn, strict=True)):
        for crop, box, side in zip(found, crops.boxes, CONFIG.sizes, strict=True):
            expected = frame.crop(box.astype(int).tolist()).resize((side, side), Image.BICUBIC)
            difference = (crop[i].int() - F.pil_to_tensor(expected).int()).abs()
            assert difference.max() <= 1
            assert difference.float().mean() < (0.01 if dtype == torch.float32 else 0.15)


def test_blurs_of_all_strengths_are_those_of_pil():
    frame = picture(40, 40)
    sigma = torch.linspace(0, 2, 38)
    found = device_augmentation._blur(F.pil_to_tensor(frame).float().expand(len(sigma), -1, -1, -1), sigma)
    for blurred, value in zip(found, sigma.tolist(), strict=True):
        expected = F.pil_to_tensor(frame.filter(ImageFilter.GaussianBlur(value)))
        difference = (blurred - expected).abs()
        assert difference.max() <= 2
        assert difference.mean() < 0.2


def test_hue_of_every_kind_of_color_is_that_of_pil():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pixels[:64] = pixels[:64, :, :1]  # grays
    pixels[64:96] = np.where(pixels[64:96] > 127, 255, 0)  # the corners of the color cube
    frame = Image.fromarray(pixels)
    for factor in (-0.5, -0.1, -0.0039, 0.002, 0.06, 0.1):
        found = device_augmentation.shift_hue(F.pil_to_tensor(frame)[None].float(), torch.full((1, 1, 1, 1), factor))
        difference = (found[0] - F.pil_to_tensor(F.adjust_hue(frame, factor))).abs()
        assert difference.max() <= 6
        assert (difference > 0).float().mean() < 0.005


def test_flipped_crops_are_mirrored():
    frames, drawn = batch([(161, 97)] * 2)
    straight = on_device(frames, [plain(crops) for crops in drawn])
    flipped = on_device(frames, [CHANGES["flip"](crops) for crops in drawn])
    for ours, theirs in zip(flipped, straight, strict=True):
        assert (ours.int() - theirs.flip(-1).int()).abs().max() <= 1
        assert not torch.equal(ours, theirs)


def test_what_lies_beyond_the_box_does_not_enter():
    frames, drawn = batch([(161, 97)])
    box = [40, 30, 120, 79]
    alone = Image.new("RGB", frames[0].size)
    alone.paste(frames[0].crop(box), box[:2])
    for inner in (box, [40.25, 30.5, 119.5, 78.75]):
        crops = [plain(drawn[0])._replace(boxes=np.tile(inner, (NUMBER, 1)))]
        for ours, theirs in zip(on_device(frames, crops), on_device([alone], crops), strict=True):
            assert torch.equal(ours, theirs)


def test_each_crop_of_each_sample_has_changes_of_its_own():
    frames, drawn = batch([(161, 97)] * 3)
    before = on_device(frames, drawn)
    changed = drawn[1]._replace(flip=drawn[1].flip ^ (np.arange(NUMBER) == 4))
    after = on_device(frames, [drawn[0], changed, drawn[2]])
    same = [[torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
    assert [(k, i) for k in range(NUMBER) for i in range(3) if not same[k][i]] == [(4, 1)]


def test_a_sample_is_the_same_in_any_batch(monkeypatch):
    frames, drawn = batch()
    together = on_device(frames, drawn)
    for again, ours in zip(on_device(frames, drawn), together, strict=True):
        assert torch.equal(again, ours)
    for i, (frame, crops) in enumerate(zip(frames, drawn, strict=True)):
        for single, ours in zip(on_device([frame], [crops]), together, strict=True):
            assert (single[0].int() - ours[i].int()).abs().float().mean() < 0.01  # sums have another order
    monkeypatch.setattr(device_augmentation, "PIXELS_AT_ONCE", 2 * 320 * 180)  # cut the batch in parts
    for parts, ours in zip(on_device(frames, drawn), together, strict=True):
        assert (parts.int() - ours.int()).abs().float().mean() < 0.01


@pytest.mark.parametrize(
    "config",
    [
        CropConfig(global_crops_size=40, local_crops_number=0),
        CropConfig(global_crops_size=31, local_crops_size=31, local_crops_number=1),
        CropConfig(global_crops_size=5, local_crops_size=1, local_crops_number=3),
    ],
)
def test_any_numbers_and_sizes(config):
    frames = [picture(67, 45), picture(45, 67)]
    drawn = [draw_crops(frame.size, config, np.random.default_rng(i)) for i, frame in enumerate(frames)]
    found = on_device(frames, drawn, config)
    assert [crop.shape for crop in found] == [(2, 3, size, size) for size in config.sizes]
    assert differences(found, frames, drawn, config).mean() < 0.05


def test_mixed_precision_of_the_training_step_does_not_touch_crops():
    frames, drawn = batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = on_device(frames, drawn)
    for ours, theirs in zip(found, on_device(frames, drawn), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_values_of_the_device_are_never_waited_for(device):
    """Test that values of the device are never read, with fake tensors.

    Fake tensors have no values and need no GPU. Reading a value or selecting by one raises an error.
    """
    with FakeTensorMode():
        images = [torch.empty(3, *size, dtype=torch.uint8, device=device) for size in [(97, 161), (97, 161), (40, 50)]]
        found = crop_batch(images, torch.empty(3, NUMBER, 16, device=device), CONFIG)
    assert [crop.shape for crop in found] == [(3, 3, size, size) for size in CONFIG.sizes]
    assert {crop.device.type for crop in found} == {device}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    frames, drawn = batch()
    images = [F.pil_to_tensor(frame).cuda() for frame in frames]
    crops = torch.from_numpy(np.stack([x.to_array() for x in drawn])).pin_memory()
    crop_batch(images, crops, CONFIG)  # the first call initializes libraries
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = crop_batch(images, crops, CONFIG)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert differences(found, frames, drawn).mean() < 0.2
