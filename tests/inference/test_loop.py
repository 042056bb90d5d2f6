"""Tests of the pipeline that reads ahead in threads."""

import threading
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage

from surgenet_hf import SurgeNetModel
from surgenet_hf.data.images import DecodeFrames
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference.loop import read_ahead
from surgenet_hf.inference.prediction import predict


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_are_in_order(num_workers):
    def slow(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(read_ahead(range(20), slow, num_workers)) == [item * item for item in range(20)]
    assert list(read_ahead([], slow, num_workers)) == []


def test_reading_overlaps_and_is_bounded():
    started = []
    results = read_ahead(iter(range(5000)), lambda item: started.append(item) or item, num_workers=2)
    for item in range(100):
        assert next(results) == item
        assert len(started) <= item + 4  # the current item, and three that wait
        deadline = time.monotonic() + 5
        while len(started) < item + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(started) >= item + 2  # the next item is read while this one is used
    results.close()


def test_an_error_comes_after_the_results_before_it():
    def items():
        yield from range(5)
        raise OSError("the source ended")

    found = []

    def collect(results):
        for item in results:
            found.append(item)

    with pytest.raises(OSError, match="the source ended"):
        collect(read_ahead(items(), lambda item: item, 2))
    assert found == list(range(5))

    found.clear()
    with pytest.raises(ZeroDivisionError):
        collect(read_ahead([3, 2, 1, 0, 1], lambda item: 6 // item, 2))
    assert found == [2, 3, 6]


def test_closing_ends_the_source_and_the_threads():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    results = read_ahead(items(), lambda item: item, 2)
    next(results)
    results.close()
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("surgenet-")]


class OneThread:
    """Rows that must not be read in several threads, as an open file."""

    def __init__(self, images):
        self.images, self.threads = images, set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.threads.add(threading.get_ident())
        return {"image": self.images[index]}


def test_predictions_do_not_depend_on_the_threads(tiny_config, tmp_path):
    rng = np.random.default_rng(0)
    images = [PILImage.fromarray(rng.integers(0, 255, (40, 50 + i % 2, 3), np.uint8)) for i in range(10)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    cells = [{"path": str(tmp_path / f"{i}.png"), "bytes": None} for i in range(10)]
    files = (
        Dataset.from_dict({"image": cells}).cast_column("image", Image(decode=False)).with_transform(DecodeFrames())
    )
    torch.manual_seed(0)
    model, processor = SurgeNetModel(tiny_config()).train(), build_image_processor(image_size=64)
    rows, found = OneThread(images), []
    for dataset, num_workers in ((rows, 0), (rows, 3), (files, 3)):
        batches = predict(model, processor, dataset, range(9, -1, -1), 4, num_workers)
        outputs = [(len(batch), outputs.pooler_output) for batch, outputs in batches]
        assert [size for size, _ in outputs] == [4, 4, 2]
        found.append(torch.cat([part for _, part in outputs]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(rows.threads) == 2  # this thread, and the one that reads ahead
    assert model.training  # restored
