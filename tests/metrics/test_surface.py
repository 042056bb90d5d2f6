import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from surgenet_hf.metrics.surface import surface_distances


@pytest.mark.parametrize("density", [0.02, 0.5, 0.97])
def test_agrees_with_distance_transforms(density):
    rng = np.random.default_rng(0)
    for _ in range(5):
        prediction, reference = rng.random((2, 31, 47)) < density
        surfaces = [mask & ~binary_erosion(mask) for mask in (prediction, reference)]
        there = distance_transform_edt(~surfaces[1])[surfaces[0]]
        back = distance_transform_edt(~surfaces[0])[surfaces[1]]
        assd, hd95, pooled_hd95 = surface_distances(prediction, reference)
        assert assd == pytest.approx((there.sum() + back.sum()) / (len(there) + len(back)))
        assert hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
        assert pooled_hd95 == pytest.approx(np.percentile(np.concatenate([there, back]), 95))


def test_single_pixels_and_identical_masks():
    prediction, reference = np.zeros((2, 5, 5), bool)
    prediction[0, 0] = reference[3, 4] = True
    assert surface_distances(prediction, reference) == (5, 5, 5)
    assert surface_distances(prediction, prediction) == (0, 0, 0)
    whole = np.ones((5, 5), bool)  # its surface is the image border
    assert surface_distances(whole, whole) == (0, 0, 0)
