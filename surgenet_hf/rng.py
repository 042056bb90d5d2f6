"""The one source of random draws of all training.

Order of frames, crops, flips, color changes, masks: whatever training draws, it draws from `rng_for(seed, epoch,
index)`. A draw is then a function of these three alone: not of the number of workers or devices, nor of what was
drawn before, so a run that was interrupted goes on exactly as if it had not been.
"""

import numpy as np


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator for one item of one epoch.

    The three numbers (each >= 0) enter `numpy.random.SeedSequence` as entropy and spawn key, which makes streams of
    neighboring seeds, epochs and indices independent. Draws that concern a whole epoch, such as the order of the
    frames, take an index that no item has, for instance the number of items.

    Raises:
        ValueError: a negative number.
    """
    # PCG64 by name: what `default_rng` stands for may change with numpy's version.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, index))))
