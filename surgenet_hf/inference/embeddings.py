"""Embeddings of frames, and dense features of some of them.

The embedding of a frame is the model's `pooler_output`, which DINO trained: the norm of the spatial mean of the last
feature map. Segmentation models are trained without that norm. Their embedding is the spatial mean of the last feature
map, without a norm (the two are the same for PVTv2, which norms its feature maps). Do not compare embeddings of the
two kinds with each other.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np
import torch
from transformers import AutoConfig

from ..data import SurgicalData, load_data
from ..data.base import SINGLE
from ..modeling_surgenet import SurgeNetForSemanticSegmentation, SurgeNetModel
from ..models import load_model
from .prediction import predict

MAPS_DRAWN = 4  # frames with dense features
POOLED = "pooled embedding"
SPATIAL_MEAN = "spatial mean of the last feature map, without the norm"
MAP_SCALE = 3  # times the processor's size for these: features have a stride of 32 pixels


def predict_embeddings(
    model, processor, dataset, batch_size: int = 8, indices: Iterable[int] | None = None
) -> Iterator[tuple[dict, np.ndarray]]:
    """Compute the embedding of each frame, see the top of this module.

    Args:
        model: a `SurgeNetModel`, or another whose outputs have `last_hidden_state` and `pooler_output`.
        processor: its image processor.
        dataset: rows {"image", "video", ...} as `surgenet_hf.data` gives them.
        batch_size: number of frames at a time.
        indices: of the rows; None: all.

    Yields:
        The row, and its embedding, float32 (C,).
    """
    indices = range(len(dataset)) if indices is None else indices
    for rows, outputs in predict(model, processor, dataset, indices, batch_size):
        pooled = outputs.pooler_output
        if pooled is None:
            pooled = outputs.last_hidden_state.float().mean((-2, -1))
        yield from zip(rows, pooled.float().cpu().numpy(), strict=True)


def load_backbone(source: str, dtype: torch.dtype = torch.float32) -> tuple[SurgeNetModel, str]:
    """Load the backbone of a SurgeNet model, with or without a head.

    Args:
        source: a folder, or a repository on the Hub.
        dtype: of the weights.

    Returns:
        The backbone, and what its embedding is: `POOLED` or `SPATIAL_MEAN`.
    """
    architecture = (AutoConfig.from_pretrained(source).architectures or [None])[0]
    if architecture == SurgeNetForSemanticSegmentation.__name__:
        return load_model(SurgeNetForSemanticSegmentation, source, dtype=dtype).surgenet, SPATIAL_MEAN
    return load_model(SurgeNetModel, source, dtype=dtype), POOLED


def load_frames(
    names: list[str], data_dirs: list[str], max_frames: int
) -> list[tuple[SurgicalData, object, list[int]]]:
    """Evenly spread frames of each data set, in all its splits, not yet decoded: (data, split, indices).

    Raises:
        UserError: a dataset is unknown or cannot be read.
    """
    parts = []
    for name, data_dir in zip_longest(names, data_dirs):
        data = load_data(name, data_dir)
        chosen = spread(sum(map(len, data.splits.values())), max_frames)
        for split in data.splits.values():
            parts.append((data, split, chosen[chosen < len(split)].tolist()))
            chosen = chosen[chosen >= len(split)] - len(split)
    return parts


def embed_frames(model, processor, parts: list[tuple], batch_size: int = 8) -> dict[str, np.ndarray]:
    """Compute embeddings of frames, and dense features of some.

    Args:
        model, processor: as in `predict_embeddings`.
        parts: (data, split, indices) as `load_frames` gives them.
        batch_size: number of frames at a time.

    Returns:
        embeddings (N, C). dataset, split, video, frame (number in the video), file_name (last part of the path, empty
        without files) and phase (empty without phases), all (N,). drawn (M,), the rows that have dense features:
        frame<i> (H, W, 3) and features<i> (C, h, w).
    """
    embeddings, groups = [], []
    for data, split, indices in parts:
        cells = split.with_format("arrow").select(indices)[:]["image"].to_pylist()
        rows = predict_embeddings(model, processor, split, batch_size, indices)
        for cell, (row, embedding) in zip(cells, rows, strict=True):
            embeddings.append(embedding)
            phase = data.labels[int(row["labels"])] if has_phases(data) else ""
            file = os.path.basename(cell["path"] or "")
            groups.append((data.name, row["split"], row["video"], row["frame"], file, phase))
    names, splits, videos, frames, files, phases = map(np.array, zip(*groups, strict=True))
    found = {
        "embeddings": np.stack(embeddings),
        "dataset": names,
        "split": splits,
        "video": videos,
        "frame": frames,
        "file_name": files,
        "phase": phases,
        "drawn": spread(len(groups), MAPS_DRAWN),
    }
    larger = copy.deepcopy(processor)
    larger.size = {side: MAP_SCALE * processor.size[side] for side in ("height", "width")}
    places = [(split, index) for _, split, indices in parts for index in indices]
    for i, number in enumerate(found["drawn"]):
        split, index = places[number]
        (((row,), outputs),) = predict(model, larger, split, [index])
        found[f"frame{i}"] = np.asarray(row["image"])
        found[f"features{i}"] = outputs.last_hidden_state[0].float().cpu().numpy()
    return found


def spread(total: int, count: int) -> np.ndarray:
    """`count` of the numbers 0 ... total - 1, evenly spread; all if there are no more."""
    return np.unique(np.linspace(0, total - 1, count).astype(int))


def has_phases(data: SurgicalData) -> bool:
    return data.problem_type == SINGLE
