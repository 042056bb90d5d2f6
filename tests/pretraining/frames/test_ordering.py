import io
import pickle
import signal
import struct
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from surgenet_hf.pretraining.arguments import CropConfig
from surgenet_hf.pretraining.frames import ordering as frames
from surgenet_hf.pretraining.frames.crops import Crops, crop_frame, draw_crops
from surgenet_hf.pretraining.frames.device_crops import crop_batch
from surgenet_hf.pretraining.frames.ordering import (
    BatchLoader,
    EpochOrder,
    FrameDataset,
    FrameSampler,
    collate,
    unpack_images,
)
from surgenet_hf.pretraining.frames.sources import open_source
from surgenet_hf.rng import rng_for
from tests.pretraining import pictures

CONFIG = CropConfig(global_crops_size=24, local_crops_size=8, local_crops_number=2)
NUM_FRAMES = 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return a folder of 20 frames and a zip of 6, in which frame i shows its number (see `number_of`)."""
    root = tmp_path_factory.mktemp("frames")
    pictures.write_folder(root / "a", {f"{i:02d}.jpg": pictures.encode(i) for i in range(NUM_FRAMES)})
    pictures.write_zip(root / "b.zip", {f"{i:02d}.png": pictures.encode(20 + i, (40, 32), "PNG") for i in range(6)})
    return [open_source("folder", str(root / "a")), open_source("shards", str(root / "b.zip"))]


def number_of(image: torch.Tensor) -> int:
    return round((float(image.float().mean()) - 10) / 5)


def numbers(batch: dict) -> list[int]:
    return [number_of(image) for image in unpack_images(batch["pixels"], batch["sizes"])]


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    assert a["unreadable"] == b["unreadable"]
    for key in a.keys() - {"unreadable"}:
        left, right = ([x[key]] if isinstance(x[key], torch.Tensor) else x[key] for x in (a, b))
        for one, other in zip(left, right, strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other)), key


class TestOrder:
    def test_an_epoch_is_a_permutation_of_its_own(self):
        order = EpochOrder([30, 12], seed=1)
        first, second = order.order(0), order.order(1)
        assert sorted(first) == sorted(second) == list(range(42))
        assert first.tolist() != second.tolist()
        assert first.tolist() == EpochOrder([30, 12], seed=1).order(0).tolist()
        assert first.tolist() != EpochOrder([30, 12], seed=2).order(0).tolist()

    def test_short_epochs_take_every_frame_before_one_comes_again(self):
        order = EpochOrder([30], frames_per_epoch=20)
        drawn = np.concatenate([order.order(epoch) for epoch in range(6)])
        assert (np.bincount(drawn) == 4).all()
        assert sorted(drawn[:30]) == list(range(30))

    def test_weights_give_shares(self):
        order = EpochOrder([100, 10, 50], [1, 2, 4], frames_per_epoch=75)
        drawn = order.order(3)
        assert [int(((start <= drawn) & (drawn < stop)).sum()) for start, stop in ((0, 100), (100, 110), (110, 160))] \
            == [11, 21, 43]  # fmt: skip
        # without replacement: the counts of frames in a source differ by at most one, within and across epochs
        counts = np.bincount(np.concatenate([order.order(epoch) for epoch in range(5)]), minlength=160)
        for source in (counts[:100], counts[100:110], counts[110:]):
            assert source.max() - source.min() <= 1
        assert np.diff(drawn[np.argsort(drawn, kind="stable")]).min() == 0  # the small source is repeated
        assert len({int(start) for start in drawn[:12] // 100}) == 2  # the sources are mixed

    def test_weights_are_rounded_by_largest_remainder(self):
        assert EpochOrder([9, 9, 9], [1, 1, 1], frames_per_epoch=10)._shares in ([4, 3, 3], [3, 4, 3], [3, 3, 4])
        assert EpochOrder([9, 9], [0.26, 0.74], frames_per_epoch=10)._shares == [3, 7]

    def test_millions_of_frames(self):
        order = EpochOrder([4_000_000, 1_000_000], [1, 1])
        drawn = order.order(2)
        assert len(drawn) == 5_000_000
        assert int((drawn < 4_000_000).sum()) == 2_500_000
        assert (np.bincount(drawn[drawn >= 4_000_000] - 4_000_000) >= 2).all()
        assert (np.bincount(EpochOrder([5_000_000]).order(0)) == 1).all()

    def test_what_cannot_be_ordered(self):
        with pytest.raises(ValueError, match="at least one frame"):
            EpochOrder([3, 0])
        with pytest.raises(ValueError, match=r"they would get \[10, 0\]"):
            EpochOrder([3, 3], [1000, 1], frames_per_epoch=10)
        with pytest.raises(ValueError, match="each source needs a weight"):
            EpochOrder([3, 3], [1])


class TestSampler:
    def test_processes_share_the_order(self):
        order = EpochOrder([50])
        one = [key for batch in FrameSampler(order, 6) for key in batch]
        samplers = [FrameSampler(order, 3, rank, 2) for rank in range(2)]
        two = [key for batches in zip(*samplers, strict=True) for batch in batches for key in batch]
        assert one == two
        assert len(samplers[0]) == 8
        assert [position for _, position, _ in one] == list(range(48))  # the last two frames are left out
        assert [index for _, _, index in one] == order.order(0)[:48].tolist()

    def test_starting_in_mid_epoch_is_running_through(self):
        sampler = FrameSampler(EpochOrder([50]), 4, 1, 2)
        sampler.set_epoch(3)
        whole = list(sampler)
        sampler.set_epoch(3, 2)
        assert list(sampler) == whole[2:]
        assert len(sampler) == 4
        assert all(epoch == 3 for batch in whole for epoch, _, _ in batch)
        sampler.set_epoch(3, 6)
        assert list(sampler) == []

    def test_too_few_frames(self):
        with pytest.raises(ValueError, match="50 frames, but one step of 3 processes takes 20 x 3"):
            FrameSampler(EpochOrder([50]), 20, 0, 3)


@pytest.mark.parametrize("on_device", [False, True])
class TestLoader:
    def test_workers_give_the_same_bit_for_bit_and_from_any_step(self, sources, on_device):
        dataset = FrameDataset(sources, CONFIG, 5, on_device)
        sampler = FrameSampler(EpochOrder([20, 6]), 4)
        plain, workers = BatchLoader(dataset, batch_sampler=sampler), BatchLoader(dataset, 2, batch_sampler=sampler)
        for epoch, start in ((0, 0), (1, 0), (1, 3)):  # workers persist across epochs
            sampler.set_epoch(epoch, start)
            expected, found = list(plain), list(workers)
            assert len(expected) == len(found) == 6 - start
            for a, b in zip(expected, found, strict=True):
                assert_same(a, b)
            if start:
                for a, b in zip(whole[start:], found, strict=True):  # noqa: F821
                    assert_same(a, b)
            whole = expected
        shapes = [crop.shape for crop in whole[0]["crops"]]
        assert shapes == ([(4, 16)] * 4 if on_device else [(4, 3, 24, 24)] * 2 + [(4, 3, 8, 8)] * 2)

    def test_the_sample_depends_on_seed_epoch_and_position_alone(self, sources, on_device):
        dataset = FrameDataset(sources, CONFIG, 5, on_device)
        same = pickle.loads(pickle.dumps(dataset))
        first = collate([dataset[0, 7, 3]])
        assert_same(first, collate([same[0, 7, 3]]))
        for other, key in ((dataset, (0, 8, 3)), (dataset, (1, 7, 3)), (FrameDataset(sources, CONFIG, 6, on_device),
                                                                         (0, 7, 3))):  # fmt: skip
            with pytest.raises(AssertionError, match="crops"):
                assert_same(first, collate([other[key]]))

    def test_the_global_generator_of_torch_is_left_alone(self, sources, on_device):
        loader = BatchLoader(
            FrameDataset(sources, CONFIG, 5, on_device), 1, batch_sampler=FrameSampler(EpochOrder([20, 6]), 4)
        )
        before = torch.get_rng_state()
        next(iter(loader))
        assert torch.equal(before, torch.get_rng_state())


def test_two_processes_of_two_workers_see_every_frame_once(sources):
    order = EpochOrder([20, 6])
    seen = []
    for rank in range(2):
        dataset = FrameDataset(sources, CONFIG, 0, on_device=True)
        for batch in BatchLoader(dataset, 2, batch_sampler=FrameSampler(order, 1, rank, 2)):
            seen += numbers(batch)
    assert sorted(seen) == list(range(26))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="Linux alone tells who sent a signal")
def test_workers_obey_a_sigterm_of_their_parent_alone(sources):
    sampler = FrameSampler(EpochOrder([20, 6]), 1)
    batches = iter(BatchLoader(FrameDataset(sources, CONFIG, 0), 2, batch_sampler=sampler))
    workers = batches._workers  # just started
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)  # like a scheduler
    assert len(list(batches)) == 26
    for worker in workers:
        worker.terminate()  # otherwise a failed run would wait for its workers forever
        worker.join(60)
        assert worker.exitcode == 0


class TestBrokenFrames:
    @pytest.fixture
    def folder(self, tmp_path):
        """Return a folder with frames 0 to 5 in a and 6 in b, and a broken frame at the end of b."""
        content = {f"a/{i}.jpg": pictures.encode(i) for i in range(6)}
        pictures.write_folder(tmp_path, content | {"b/6.jpg": pictures.encode(6), "b/7.jpg": b"no picture"})
        return tmp_path

    @pytest.mark.parametrize("on_device", [False, True])
    @pytest.mark.parametrize(
        "content",
        [
            pictures.encode(2)[:-200],
            pictures.encode(2)[:100],
            pictures.encode(2, file_format="PNG")[:-80],
            pictures.encode(2, file_format="PNG").replace(b"IDAT", b"IDAX"),
            pictures.encode(2, file_format="BMP").replace((48).to_bytes(4, "little"), b"\0\0\1\0", 1),
            pictures.encode(2, file_format="WEBP")[:-40],
            pictures.encode(2, (16, 8))[:0],
            b"<html>quota exceeded</html>",
            None,
        ],
        ids=["truncated", "header", "png", "chunk", "bomb", "webp", "empty", "text", "missing"],
    )
    def test_the_next_of_the_shard_comes_instead(self, folder, content, on_device):
        source = open_source("folder", str(folder))
        (folder / "a" / "2.jpg").unlink() if content is None else (folder / "a" / "2.jpg").write_bytes(content)
        dataset = FrameDataset([source], CONFIG, 0, on_device)
        batch = collate([dataset[0, 5, 2]])
        assert batch["unreadable"] == [str(folder / "a" / "2.jpg")]
        assert_same({**batch, "unreadable": []}, collate([dataset[0, 5, 3]]))

    def test_a_tiny_frame_is_broken(self, folder):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 7)).save(buffer, "PNG")
        (folder / "a" / "5.jpg").write_bytes(buffer.getvalue())
        sample = FrameDataset([open_source("folder", str(folder))], CONFIG, 0, True)[0, 0, 5]
        assert sample["unreadable"] == [str(folder / "a" / "5.jpg")]
        # the first frame of folder a follows its last frame, not folder b
        assert number_of(torch.tensor(sample["image"])) == 0

    def test_a_frame_of_too_many_pixels_is_broken(self, folder):
        """Test that a frame with too many pixels counts as broken.

        Its header alone would make the decoder allocate gigabytes.
        """
        png = io.BytesIO()
        Image.new("RGB", (8, 8)).save(png, "PNG")
        header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + png.getvalue()[24:29]
        content = png.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png.getvalue()[33:]
        (folder / "a" / "5.jpg").write_bytes(content)
        sample = FrameDataset([open_source("folder", str(folder))], CONFIG, 0, True)[0, 0, 5]
        assert sample["unreadable"] == [str(folder / "a" / "5.jpg")]

    def test_orientation_tags_are_not_applied(self, folder):
        """Test that orientation tags are ignored, as in the original code."""
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (48, 40)).save(folder / "a" / "5.jpg", exif=exif)
        sample = FrameDataset([open_source("folder", str(folder))], CONFIG, 0, True)[0, 0, 5]
        assert sample["image"].shape == (40, 48, 3)

    def test_names_travel_with_the_batch_through_workers(self, folder):
        dataset = FrameDataset([open_source("folder", str(folder))], CONFIG, 0, True)
        loader = BatchLoader(dataset, 2, batch_sampler=FrameSampler(EpochOrder([8]), 4))
        batches = list(loader)
        assert [name for batch in batches for name in batch["unreadable"]] == [str(folder / "b" / "7.jpg")]
        assert sorted(number for batch in batches for number in numbers(batch)) == [0, 1, 2, 3, 4, 5, 6, 6]

    def test_a_shard_without_any_whole_frame(self, folder, monkeypatch):
        (folder / "b" / "6.jpg").write_bytes(b"no picture either")
        dataset = FrameDataset([open_source("folder", str(folder))], CONFIG, 0)
        with pytest.raises(
            OSError, match=r"2 consecutive frames .* from .*7.jpg to .*6.jpg .*its format is not known"
        ):
            dataset[0, 0, 7]
        monkeypatch.setattr(frames, "MAX_TRIES", 1)
        with pytest.raises(OSError, match="1 consecutive frames"):
            dataset[0, 0, 7]

    def test_faults_of_the_program_are_not_taken_for_damage(self, folder, monkeypatch):
        def fail(*args):
            raise ValueError("a fault")

        monkeypatch.setattr(frames, "crop_frame", fail)
        with pytest.raises(ValueError, match="a fault"):
            FrameDataset([open_source("folder", str(folder))], CONFIG, 0)[0, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_frames_of_any_mode_become_rgb(tmp_path, mode):
    image = Image.open(io.BytesIO(pictures.encode(9))).convert(mode)
    image.save(tmp_path / ("1.tif" if mode == "CMYK" else "1.png"))
    for on_device in (False, True):
        sample = FrameDataset([open_source("folder", str(tmp_path))], CONFIG, 0, on_device)[0, 0, 0]
        assert sample["unreadable"] == []


def scene(width: int, height: int, file_format: str) -> bytes:
    """Return an encoded smooth image in which every position looks different."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    pixels = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x + 7 * y)], axis=-1) * 255
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, file_format, quality=97)
    return buffer.getvalue()


class TestReducedDecoding:
    def samples(self, tmp_path, size, config, file_format="JPEG", positions=range(30)):
        """Yield (full image, crops drawn for it, sample for the device) for each position."""
        content = scene(*size, file_format)
        pictures.write_folder(tmp_path, {"a/1.jpg": content})
        dataset = FrameDataset([open_source("folder", str(tmp_path))], config, 3, on_device=True)
        full = Image.open(io.BytesIO(content)).convert("RGB")
        for position in positions:
            yield full, draw_crops(size, config, rng_for(3, 0, position)), dataset[0, position, 0]

    @pytest.mark.parametrize("size", [(1283, 717), (641, 479), (200, 150)])
    def test_crops_keep_their_pixels_and_no_more_than_needed(self, tmp_path, size):
        config = CropConfig(global_crops_size=100, local_crops_size=40, local_crops_number=4)
        scales = []
        for _, drawn, sample in self.samples(tmp_path, size, config):
            scale = round(size[0] / sample["image"].shape[1])
            assert sample["image"].shape == (-(-size[1] // scale), -(-size[0] // scale), 3)
            most = ((drawn.boxes[:, 2:] - drawn.boxes[:, :2]) / np.array(config.sizes)[:, None]).min()
            assert scale <= max(most, 1) < max(2 * scale, 2)
            np.testing.assert_allclose(Crops.from_array(sample["crops"]).boxes * scale, drawn.boxes, rtol=1e-6)
            scales.append(scale)
        assert max(scales) == {1283: 4, 641: 4, 200: 1}[size[0]]

    def test_crops_show_the_same_place(self, tmp_path):
        config = CropConfig(global_crops_size=100, local_crops_size=40, local_crops_number=4)
        scales = set()
        for full, drawn, sample in self.samples(tmp_path, (641, 479), config, positions=range(8)):
            expected = crop_frame(full, drawn, config)
            boxes = Crops.from_array(sample["crops"]).boxes.astype(float)
            found = crop_frame(Image.fromarray(sample["image"]), drawn._replace(boxes=boxes), config)
            scales.add(sample["image"].shape[1])
            for a, b, solarized in zip(expected, found, drawn.solarize, strict=True):
                if not solarized:  # solarizing turns the smallest difference around its threshold into the largest
                    assert float((a.float() - b.float()).abs().mean()) < 1
        assert len(scales) > 1

    def test_other_formats_are_decoded_in_full(self, tmp_path):
        for full, drawn, sample in self.samples(tmp_path, (320, 240), CONFIG, "PNG", range(3)):
            assert np.array_equal(sample["image"], np.asarray(full))
            np.testing.assert_allclose(Crops.from_array(sample["crops"]).boxes, drawn.boxes)


def test_both_ways_cut_the_same_crops(sources):
    keys = [(0, position, index) for position, index in enumerate((3, 22, 9, 25))]
    on_device = collate([FrameDataset(sources, CONFIG, 4, True)[key] for key in keys])
    images = unpack_images(on_device["pixels"], on_device["sizes"])
    assert [tuple(image.shape) for image in images] == [(3, 40, 48), (3, 32, 40)] * 2
    cut = crop_batch(images, on_device["crops"], CONFIG)
    expected = collate([FrameDataset(sources, CONFIG, 4)[key] for key in keys])["crops"]
    for a, b in zip(expected, cut, strict=True):
        assert a.shape == b.shape
        assert float((a.float() - b.float()).abs().mean()) < 2
