"""Embeddings of frames, and dense features of some frames.

The embedding of a frame is the model's `pooler_output`, which DINO trained: the layer-normalized spatial mean of the
last feature map. Segmentation models are trained without this norm, so their embedding is the spatial mean without a
norm. The two are identical for PVTv2, which normalizes its feature maps. Do not compare the two kinds of embeddings
with each other.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from ..atomic import atomic_write
from ..data import SurgicalData, load_data
from ..errors import UserError
from ..heads import load_base
from ..image_processing import load_image_processor
from ..modeling_surgenet import SurgeNetForSemanticSegmentation, SurgeNetModel
from ..modeling_surgical import PooledBackbone
from ..models import is_surgenet, load_config, load_model, resolve_model
from .prediction import predict

MAPS_DRAWN = 4  # frames with dense features
POOLED = "pooled embedding"
SPATIAL_MEAN = "spatial mean of the last feature map, without the norm"
ANY = "class token, or spatial mean of the last feature map"
MAP_SCALE = 3  # enlargement of these frames, because features have a stride of 32 pixels


def predict_embeddings(
    model, processor, dataset, batch_size: int = 8, indices: Iterable[int] | None = None
) -> Iterator[tuple[dict, np.ndarray]]:
    """Compute the embedding of each frame (see the module docstring).

    Args:
        model: `SurgeNetModel`, or another model whose outputs have `last_hidden_state` and `pooler_output`.
        processor: image processor of the model.
        dataset: rows {"image", "video", ...} of `surgenet_hf.data`.
        batch_size: number of frames per forward pass.
        indices: indices of the rows. None uses all rows.

    Yields:
        The row, and its embedding float32 (C,).
    """
    indices = range(len(dataset)) if indices is None else indices
    for rows, outputs in predict(model, processor, dataset, indices, batch_size):
        yield from zip(rows, pooled_features(outputs), strict=True)


def pooled_features(outputs) -> np.ndarray:
    """Return the embeddings float32 (B, C) of a batch (see the module docstring)."""
    pooled = outputs.pooler_output
    if pooled is None:
        pooled = outputs.last_hidden_state.float().mean((-2, -1))
    return pooled.float().cpu().numpy()


def load_backbone(source: str, dtype: torch.dtype = torch.float32) -> tuple[SurgeNetModel | PooledBackbone, str]:
    """Load the backbone of a model of any family, with or without a head.

    Args:
        source: folder, or repository on the Hub.
        dtype: data type of the weights.

    Returns:
        The backbone, and the kind of its embedding, `POOLED`, `SPATIAL_MEAN`, or `ANY`.

    Raises:
        UserError: the model has no backbone that `AutoModel` loads, or its weights are not complete.
    """
    config = load_config(source)
    architecture = config.architectures[0] if config.architectures else None
    if not is_surgenet(config):
        return PooledBackbone(load_base(source, config).to(dtype)), ANY
    if architecture == SurgeNetForSemanticSegmentation.__name__:
        return load_model(SurgeNetForSemanticSegmentation, source, dtype=dtype).surgenet, SPATIAL_MEAN
    return load_model(SurgeNetModel, source, dtype=dtype), POOLED


def load_frames(
    names: list[str], data_dirs: list[str], max_frames: int
) -> list[tuple[SurgicalData, object, list[int]]]:
    """Select evenly spaced frames from all splits of each dataset, without decoding them.

    Args:
        names: names of datasets.
        data_dirs: folders of the datasets, in the same order.
        max_frames: maximum number of frames per dataset.

    Returns:
        (dataset, split, indices of rows) for each split.
    """
    parts = []
    for name, data_dir in zip_longest(names, data_dirs):
        data = load_data(name, data_dir)
        chosen = spread(sum(map(len, data.splits.values())), max_frames)
        for split in data.splits.values():
            parts.append((data, split, chosen[chosen < len(split)].tolist()))
            chosen = chosen[chosen >= len(split)] - len(split)
    return parts


def embed_datasets(
    model_name_or_path: str,
    names: list[str],
    data_dirs: list[str],
    max_frames: int,
    batch_size: int = 8,
    bf16: bool = False,
    needs_phases: bool = False,
) -> dict[str, np.ndarray]:
    """Compute embeddings of frames of datasets, in the format of embeddings.npz.

    Args:
        model_name_or_path: model as in `resolve_model`.
        names: names of datasets.
        data_dirs: folders of the datasets, in the same order.
        max_frames: maximum number of frames per dataset.
        batch_size: number of frames per forward pass.
        bf16: whether to compute in bfloat16.
        needs_phases: whether all datasets must have phases.

    Returns:
        The arrays of `embed_frames`, "model" (its name), and "embedding" (its kind).

    Raises:
        UserError: the model or a dataset does not exist, or a dataset has no phases.
    """
    parts = load_frames(names, data_dirs, max_frames)
    if needs_phases and (without := {data.name for data, *_ in parts if not data.is_single_label}):
        raise UserError(f"no phases in {', '.join(sorted(without))}: choose another --color_by")
    path = resolve_model(model_name_or_path)
    model, kind = load_backbone(path, torch.bfloat16 if bf16 else torch.float32)
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    found = embed_frames(model, load_image_processor(path), parts, batch_size)
    return found | {"model": np.array(model_label(model_name_or_path)), "embedding": np.array(kind)}


def save_embeddings(embeddings: dict[str, np.ndarray], path: Path) -> Path:
    """Write embeddings.npz and return its path."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **embeddings)
    return path


def read_embeddings(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read embeddings.npz.

    Raises:
        UserError: the file cannot be read, or lacks required arrays.
    """
    try:
        file = np.load(path)
    except (EOFError, OSError, ValueError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); pass an embeddings.npz of plot-embeddings") from error
    if missing := {"embeddings", "drawn", "model", "dataset", "video", "phase"}.difference(getattr(file, "files", ())):
        raise UserError(f"{path} was not written by plot-embeddings: it lacks {', '.join(sorted(missing))}")
    with file:
        return dict(file)


def model_label(name: str) -> str:
    """Return the last informative part of a name or folder. For example, outputs/xl/model is "xl"."""
    parts = Path(name).parts
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def embed_frames(model, processor, parts: list[tuple], batch_size: int = 8) -> dict[str, np.ndarray]:
    """Compute embeddings of frames, and dense features of some frames.

    Args:
        model: model as in `predict_embeddings`.
        processor: image processor of the model.
        parts: (data, split, indices) from `load_frames`.
        batch_size: number of frames per forward pass.

    Returns:
        A dict of arrays: embeddings (N, C), and dataset, split, video, frame, file_name, and phase, all (N,). frame is
        the number in the video. file_name is the last part of the path, "" without files. phase is "" without phases.
        drawn (M,) has the indices of frames with dense features. For the i-th of them, there are frame<i> (H, W, 3)
        and features<i> (C, h, w).
    """
    embeddings, groups = [], []
    for data, split, indices in parts:
        cells = split.with_format("arrow").select(indices)[:]["image"].to_pylist()
        rows = predict_embeddings(model, processor, split, batch_size, indices)
        for cell, (row, embedding) in zip(cells, rows, strict=True):
            embeddings.append(embedding)
            phase = data.labels[int(row["labels"])] if data.is_single_label else ""
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
    """Return `count` evenly spaced numbers from 0 to total - 1, or all of them if there are not more."""
    return np.unique(np.linspace(0, total - 1, count).astype(int))
