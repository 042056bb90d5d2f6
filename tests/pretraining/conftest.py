from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from surgenet_hf.data.sets import synthetic
from tests.pretraining.running import NUM_FRAMES, pretrain


@pytest.fixture(autouse=True)
def forget_accelerate():
    """Reset Accelerate's state, which keeps the precision for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    labels = ["image,video,label"]
    for i in range(NUM_FRAMES):
        image, _ = synthetic.draw(0, i // 6, i % 6, (72, 96))
        Image.fromarray(image).save(folder / f"{i // 6}_{i:03}.jpg", quality=95)
        labels.append(f"{i // 6}_{i:03}.jpg,video{i // 6},{'ab'[i % 2]}")
    (folder / "labels.csv").write_text("\n".join(labels))
    return folder


@pytest.fixture(scope="session")
def whole_run(frames, tmp_path_factory) -> Path:
    """Return the output folder of an uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(frames, output_dir)
    return output_dir
