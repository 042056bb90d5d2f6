"""Source of all random draws in training.

The order of frames, crops, flips, color changes, and masks are drawn from `rng_for(seed, epoch, index)`. A draw
depends only on these three numbers. It does not depend on the number of workers or devices, or on earlier draws. A
resumed run therefore gives the same result as an uninterrupted one.
"""

import numpy as np


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator for one item of one epoch.

    The three numbers enter `numpy.random.SeedSequence` as entropy and spawn key. This makes the streams of adjacent
    seeds, epochs, and indices independent. Draws for a whole epoch, such as the order of the frames, use an index that
    no item has, e.g. the number of items.

    Args:
        seed: seed of the run, at least 0.
        epoch: index of the epoch, at least 0.
        index: index of the item, at least 0.

    Raises:
        ValueError: a number is negative.
    """
    # PCG64 is explicit because the generator of `default_rng` may change between numpy versions.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, index))))
