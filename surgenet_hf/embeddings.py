"""What a backbone makes of frames: an embedding for each, and dense features of some."""

import copy
from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np

from .data import (
    CLASSIFICATION,
    SEGMENTATION,
    ClassificationData,
    SegmentationData,
    load_classification,
    load_segmentation,
)
from .data.classification import SINGLE
from .evaluation import predict

MAPS_DRAWN = 4  # frames with dense features
MAP_SCALE = 3  # times the processor's size for these: features have a stride of 32 pixels


def predict_embeddings(
    model, processor, dataset, batch_size: int = 8, indices: Iterable[int] | None = None
) -> Iterator[tuple[dict, np.ndarray]]:
    """The rows, and the embedding of each frame, float32 (C,): the model's `pooler_output`.

    Args:
        model: a `SurgeNetModel`, or another whose outputs have a `pooler_output`.
        processor: its image processor.
        dataset: rows {"image", "video", ...} as `surgenet_hf.data` gives them.
        indices: of the rows; None: all.
    """
    indices = range(len(dataset)) if indices is None else indices
    for rows, outputs in predict(model, processor, dataset, indices, batch_size):
        yield from zip(rows, outputs.pooler_output.float().cpu().numpy(), strict=True)


def load_frames(
    names: list[str], data_dirs: list[str], max_frames: int
) -> list[tuple[SegmentationData | ClassificationData, object, list[int]]]:
    """Evenly spread frames of each data set, in all its splits, not yet decoded: (data, split, indices).

    Raises:
        ValueError: a data set that is not known.
    """
    loaders = dict.fromkeys(CLASSIFICATION, load_classification) | dict.fromkeys(SEGMENTATION, load_segmentation)
    parts = []
    for name, data_dir in zip_longest(names, data_dirs):
        if name not in loaders:
            raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(loaders)}")
        data = loaders[name](name, data_dir)
        chosen = spread(sum(map(len, data.splits.values())), max_frames)
        for split in data.splits.values():
            parts.append((data, split, chosen[chosen < len(split)].tolist()))
            chosen = chosen[chosen >= len(split)] - len(split)
    return parts


def embed_frames(model, processor, parts: list[tuple]) -> dict[str, np.ndarray]:
    """Embeddings of frames, what they are grouped by, and the dense features of some.

    Args:
        parts: (data, split, indices) as `load_frames` gives them.

    Returns:
        embeddings (N, C); dataset, video and phase (N,), where a frame without a phase has an empty one; drawn (M,),
        the numbers of the frames with dense features: frame<i> (H, W, 3) and features<i> (C, h, w).
    """
    embeddings, groups = [], []
    for data, split, indices in parts:
        for row, embedding in predict_embeddings(model, processor, split, indices=indices):
            embeddings.append(embedding)
            groups.append((data.name, row["video"], data.labels[int(row["labels"])] if has_phases(data) else ""))
    names, videos, phases = map(np.array, zip(*groups, strict=True))
    found = {
        "embeddings": np.stack(embeddings),
        "dataset": names,
        "video": videos,
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


def has_phases(data: SegmentationData | ClassificationData) -> bool:
    return getattr(data, "problem_type", None) == SINGLE
