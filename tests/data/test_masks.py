import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data.base import Sample, build_splits
from surgenet_hf.data.colors import palette
from surgenet_hf.data.images import raw_values
from surgenet_hf.data.masks import check_ids, count_values, lookup_table

GRAY = np.zeros((8, 9), np.uint8)
GRAY[:2, :3] = [[0, 50, 255], [11, 7, 21]]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_masks_of_every_kind_give_the_same_ids(mode, tmp_path):
    if mode == "P":  # the palette index defines the id, not its color
        mask = Image.fromarray(GRAY)
        mask = Image.frombytes("P", mask.size, mask.tobytes())
        mask.putpalette([(40 * i + 9) % 256 for i in range(768)])
    elif mode == "I;16":
        mask = Image.fromarray(GRAY.astype(np.uint16))
    else:
        mask = Image.fromarray(GRAY).convert(mode)
    mask.save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == mode
    Image.new("L", (9, 8), 100).save(tmp_path / "frame.png")
    sample = Sample(tmp_path / "frame.png", tmp_path / "mask.png", "v", 4)

    # gray codes as in CholecSeg8k are another lookup table, and values that it does not name are ignored
    row = build_splits({"train": [sample]}, lookup_table({50: 0, 11: 1, 21: 2}))["train"][0]
    assert row["mask"][:2, :3].tolist() == [[255, 0, 255], [1, 255, 2]]
    assert row["mask"].dtype == np.uint8
    assert row["image"].mode == "RGB"
    assert (row["video"], row["frame"], row["split"]) == ("v", 4, "train")
    counts = count_values([sample])
    assert counts.shape == (1, 256)
    assert {value: int(n) for value, n in enumerate(counts[0]) if n} == {0: 67, 7: 1, 11: 1, 21: 1, 50: 1, 255: 1}


def test_values_that_are_no_ids_are_refused():
    with pytest.raises(ValueError, match="300"):
        raw_values(Image.fromarray(np.array([[300]], np.uint16)))
    with pytest.raises(ValueError, match="class ids"):
        raw_values(Image.new("RGBA", (2, 2), (1, 1, 2, 255)))


def test_a_turned_photograph_has_the_size_that_it_is_shown_with(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (40, 30)).save(tmp_path / "frame.jpg", exif=exif)
    Image.new("L", (30, 40)).save(tmp_path / "mask.png")
    sample = Sample(tmp_path / "frame.jpg", tmp_path / "mask.png", "v", 0)
    count_values([sample])
    row = build_splits({"train": [sample]}, lookup_table({0: 0}))["train"][0]
    assert row["image"].size == (30, 40) == row["mask"].shape[::-1]


def test_a_truncated_frame_is_found_when_checking(tmp_path):
    path = tmp_path / "frame.jpg"
    Image.effect_noise((160, 120), 80).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    Image.new("L", (160, 120)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"frame\.jpg cannot be read.*truncated"):
        count_values([Sample(path, tmp_path / "mask.png", "v", 0)])


def test_colors_are_distinct():
    assert len(set(palette(255))) == 255
    assert palette(9)[:4] == palette(4)
    assert all(0 <= value <= 255 for color in palette(255) for value in color)


def test_large_datasets_are_checked_on_evenly_spaced_masks(tmp_path):
    Image.new("RGB", (9, 8)).save(tmp_path / "frame.png")
    for i in range(6):
        Image.fromarray(np.full((8, 9), i, np.uint8)).save(tmp_path / f"{i}.png")
    samples = [Sample(tmp_path / "frame.png", tmp_path / f"{i}.png", "v", i) for i in range(6)]
    assert check_ids(samples, range(6)) == []
    ignored = "Id {0} is not a class and is ignored: 72 px in 1 mask(s) (v frame {0})."
    assert check_ids(samples, range(4)) == [ignored.format(4), ignored.format(5)]
    assert check_ids(samples, range(2), most=3) == [ignored.format(2), ignored.format(4), "Checked 3 of 6 masks."]
