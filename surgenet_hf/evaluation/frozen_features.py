"""Features of a frozen backbone for the frames of a dataset, cached in files that several probes share.

A split is divided into parts of `PART` frames, with one file per part. The name of its folder contains a hash of the
weights, the image processor, the pooling, the classes, and the frames and labels of the split. Each file is written
completely or not at all, so a killed run continues with the next part. A lock on the folder makes a second process
wait for the first, instead of computing the same features.
"""

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout

from ..atomic import atomic_write
from ..checkpointing import check_output_dir
from ..checkpoints.reading import check_finite
from ..data import SurgicalData
from ..data.identity import digest, split_identity
from ..distributed import gather, process_state, wait_for_everyone
from ..errors import UserError
from ..image_processing import load_image_processor
from ..inference.embeddings import load_backbone, pooled_features
from ..inference.prediction import fingerprint, predict
from ..modeling_surgical import PooledBackbone, last_hidden_state, pool_patches, split_tokens
from ..models import load_config, resolve_model
from .probe_arguments import DEFAULT_POOLING, PROBE_POOLINGS
from .probes import LabeledEmbeddings, frame_targets

logger = logging.getLogger(__name__)

PART = 1024  # frames
POOLING_K = 10  # activations of each channel for "topk", as in `SurgicalConfig`


@dataclass(frozen=True)
class FrozenBackbone:
    """Backbone that is not trained, with everything that determines its features.

    Attributes:
        name: name of the model, or its folder.
        model: the backbone, in float32.
        processor: its image processor.
        config: configuration of the model, with the source of its weights.
        pooling: one of `PROBE_POOLINGS`.
    """

    name: str
    model: Any
    processor: Any
    config: Any
    pooling: str


def load_frozen(
    model_name_or_path: str, pooling: str = DEFAULT_POOLING, image_size: int | None = None
) -> FrozenBackbone:
    """Load the backbone of a model of any family, with or without a head, to the device of this process.

    Args:
        model_name_or_path: model as in `resolve_model`.
        pooling: "default": the embedding of the model itself, see `surgenet_hf.inference.embeddings`. "cls": the class
            token. "mean": the mean over the last feature map. "topk": for each channel, the mean of its `POOLING_K`
            largest activations in the last feature map.
        image_size: height and width in pixels that frames are resized to. Default: that of the image processor.

    Raises:
        UserError: the model does not exist, has no backbone or no class token, or its weights are not finite.
    """
    if pooling not in PROBE_POOLINGS:
        raise UserError(f"--pooling is {pooling!r}; expected one of {', '.join(PROBE_POOLINGS)}")
    source = resolve_model(model_name_or_path)
    is_folder = Path(model_name_or_path).expanduser().is_dir()
    config = copy.deepcopy(load_config(source))
    if getattr(config, "pretraining", None) is None and not Path(source).is_dir():
        config.pretraining = {"name": source}  # as in fine-tuning
    model, _ = load_backbone(source)
    check_finite(model.state_dict(), "The model")
    model.to(process_state().device).eval()
    processor = load_image_processor(source, image_size)
    if pooling == "cls" and not _has_class_token(model, processor):
        raise UserError(f"{model_name_or_path} has no class token: choose --pooling default, mean, or topk")
    return FrozenBackbone(source if is_folder else model_name_or_path, model, processor, config, pooling)


def _has_class_token(model, processor) -> bool:
    if not isinstance(model, PooledBackbone):
        return False
    size = (processor.size["height"], processor.size["width"])
    with torch.inference_mode():
        hidden = last_hidden_state(model.model, torch.zeros(1, 3, *size, device=model.device))
    return split_tokens(model.model, hidden, size)[0].shape[1] > 0


def split_features(
    backbone: FrozenBackbone,
    data: SurgicalData,
    split: str,
    batch_size: int = 8,
    features_dir: str | os.PathLike | None = None,
) -> LabeledEmbeddings:
    """Compute the features and targets of all frames of a split, or read them. All processes share the frames.

    The targets of a segmentation frame are the classes in its mask.

    Args:
        backbone: backbone from `load_frozen`.
        data: dataset.
        split: name of the split.
        batch_size: number of frames per forward pass.
        features_dir: folder for the files. None: no files.

    Returns:
        The features, with the targets and videos of their frames, in the order of the rows.

    Raises:
        UserError: the split does not exist, a feature is not finite, or a file is damaged.
        UnavailableError: the folder cannot be written to.
    """
    rows = data.split(split)
    videos = np.array(rows.select_columns(["video"])[:]["video"])
    parts = [range(start, min(start + PART, len(rows))) for start in range(0, len(rows), PART)]
    if features_dir is None:
        found = [_compute(backbone, data, split, part, batch_size) for part in parts]
    else:
        identity = [fingerprint(backbone.model, backbone.processor), backbone.config.model_type, backbone.pooling]
        key = digest([*identity, data.labels, sorted(split_identity(rows).items())])
        folder = Path(check_output_dir(features_dir, "--features_dir"), f"{split}-{backbone.pooling}-{key}")
        paths = [folder / f"part-{i:05d}.npz" for i in range(len(parts))]
        _write_missing(backbone, data, split, batch_size, parts, paths)
        found = [_read(path) for path in paths]
    embeddings, targets = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*found, strict=True))
    if not embeddings.isfinite().all():
        raise UserError(f"embeddings of {data.name!r}, {split}, are not finite: use other weights")
    return LabeledEmbeddings(embeddings, targets, videos)


def _write_missing(backbone, data, split: str, batch_size: int, parts: Sequence[range], paths: list[Path]) -> None:
    is_main = process_state().is_main_process
    if is_main:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
    with _locked(paths[0].parent) if is_main else nullcontext():
        # the main process decides for all: another one could see the files later
        missing = gather([i for i, path in enumerate(paths) if not path.exists()] if is_main else [])
        if not missing and is_main:
            logger.info(f"The features of {data.name}, {split}, are read from {paths[0].parent}")
        for i in missing:
            embeddings, targets = _compute(backbone, data, split, parts[i], batch_size)
            if is_main:
                with atomic_write(paths[i], durable=True) as temporary, open(temporary, "wb") as file:
                    np.savez(file, embeddings=embeddings, targets=targets)
            if len(parts) > 1:
                logger.info(f"Features of {data.name}, {split}: {parts[i].stop:,} of {parts[-1].stop:,} frames")
        wait_for_everyone()


def _locked(folder: Path):
    lock = FileLock(folder / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"Waiting for another process that computes the features in {folder}")
        return lock.acquire()


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as file:
            return file["embeddings"], file["targets"]
    except (EOFError, KeyError, OSError, ValueError, BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and run the command again") from error


def _compute(backbone: FrozenBackbone, data, split: str, part: range, batch_size: int):
    """Return embeddings float32 (n, C) and targets float32 (n, num_labels). Each process computes a part of them."""
    state = process_state()
    own = part[state.process_index :: state.num_processes]
    found = dict(gather(list(zip(own, _embed(backbone, data, split, own, batch_size), strict=True))))
    embeddings, targets = zip(*(found[i] for i in part), strict=True)
    return np.stack(embeddings), np.stack(targets)


def _embed(backbone, data, split: str, indices: range, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for rows, outputs in predict(backbone.model, backbone.processor, data.split(split), indices, batch_size):
        vectors = _pooled(outputs, backbone.pooling)
        yield from ((vector, frame_targets(data, row)) for row, vector in zip(rows, vectors, strict=True))


def _pooled(outputs, pooling: str) -> np.ndarray:
    if pooling in (DEFAULT_POOLING, "cls"):  # with a class token, it is the embedding of the model itself
        return pooled_features(outputs)
    return pool_patches(outputs.last_hidden_state.float(), pooling, POOLING_K).cpu().numpy()
