"""Deterministic tensors from names, with the same bytes on every machine and numpy version."""

import math
import zlib

import numpy as np


def uniform(name: str, shape) -> np.ndarray:
    """Return deterministic float64 values in [0, 1), with one stream per name.

    The values are raw 64-bit draws of PCG64, seeded with crc32(name), shifted right by 11 bits, times 2**-53.
    """
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def parameter(name: str, shape) -> np.ndarray:
    """Return a deterministic float32 parameter.

    Kernels are uniform with unit gain. Vectors are near 1 (weight, scale, gamma) or near 0 (the rest). Tokens and
    position embeddings are between -0.5 and 0.5.
    """
    u = uniform(name, shape)
    if name.endswith(("token", "tokens", "pos_embed")):
        return (u - 0.5).astype(np.float32)
    if len(shape) > 1 and not name.endswith(("gamma", "beta")):
        bound = math.sqrt(3.0 / math.prod(shape[1:]))
        return ((2 * u - 1) * bound).astype(np.float32)
    if name.endswith(("weight", "scale", "gamma", "gamma_1", "gamma_2", "weight_g")):
        return (0.5 + u).astype(np.float32)
    return (0.2 * (u - 0.5)).astype(np.float32)
